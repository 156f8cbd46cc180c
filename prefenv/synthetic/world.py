"""Source and evaluator of the simulator, and the world they make with policy, oracle and posterior."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from prefenv.evaluation.win_rate import chance_to_beat, preference_prob, win_rate
from prefenv.oracles.bradley_terry import BradleyTerryOracle
from prefenv.posteriors.bayesian_linear import BayesianLinearPosterior
from prefenv.protocols import RewardPosterior, State, World
from prefenv.spaces import pair_table
from prefenv.synthetic.policy import LogLinearPolicy
from prefenv.synthetic.settings import SyntheticSettings
from prefenv.synthetic.story import (
    LOG_LENGTH_MEAN,
    LOG_LENGTH_STD,
    Hidden,
    draw_hidden,
    draw_responses,
)
from prefenv.types import Evaluation, FloatArray, Pool


@dataclass(frozen=True, eq=False)
class SyntheticPool(Pool):
    """A pool that keeps what only the world may know.

    Attributes:
        features: (n, m, d) float64 hidden features, for the policy.
        reward: (n, m) float64 hidden reward, for the oracle.
    """

    features: FloatArray
    reward: FloatArray


def hidden_reward(pool: Pool) -> FloatArray:
    """(n, m) the reward that a synthetic pool hides."""
    return pool.reward  # type: ignore[attr-defined, no-any-return]


class SyntheticSource:
    """New prompts for ever; m different responses of each, drawn from the policy or from all generators alike."""

    def __init__(self, settings: SyntheticSettings, policy: LogLinearPolicy) -> None:
        self._settings, self._policy = settings, policy
        self.reset(np.random.default_rng())

    def reset(self, rng: np.random.Generator) -> None:
        """A new hidden truth."""
        self._rng, self._n_drawn = rng, 0
        self.hidden: Hidden = draw_hidden(self._settings, rng)

    def draw(self) -> SyntheticPool:
        """The next n prompts."""
        n, m = self._settings.n_prompts, self._settings.n_candidates
        responses = draw_responses(self._settings, self.hidden, n, self._rng)
        logprob = self._policy.logprob(responses)
        # Gumbel noise and the m largest: m responses without replacement
        order_by = self._rng.gumbel(size=logprob.shape) + (logprob if self._settings.on_policy else 0.0)
        generator = np.argsort(-order_by, axis=1)[:, :m]

        def take(array: FloatArray) -> FloatArray:
            index = generator if array.ndim == 2 else generator[..., None]
            return np.take_along_axis(array, index, axis=1)

        log_ratio = take(logprob - responses.reference_logprob)
        self._n_drawn += n
        return SyntheticPool(
            prompt_id=np.arange(self._n_drawn - n, self._n_drawn),
            embedding=take(responses.embedding).astype(np.float32),
            logprob=take(logprob).astype(np.float32),
            length=take(responses.length).astype(np.float32),
            implicit_reward=(self._settings.beta * log_ratio).astype(np.float32),
            entropy=np.maximum(0.0, -(np.exp(logprob) * logprob).sum(axis=1)).astype(np.float32),
            generator=generator,
            mask=np.ones((n, m), dtype=np.bool_),
            features=take(responses.features),
            reward=take(responses.reward),
        )

    def state_dict(self) -> State:
        """Hidden truth, prompts drawn, generator."""
        return {
            "hidden": copy.deepcopy(self.hidden),
            "n_drawn": self._n_drawn,
            "rng": self._rng.bit_generator.state,
        }

    def load_state_dict(self, state: State) -> None:
        """Restore."""
        self.hidden, self._n_drawn = copy.deepcopy(state["hidden"]), state["n_drawn"]
        self._rng.bit_generator.state = state["rng"]


class SyntheticEvaluator:
    """Exact expectations over the policy on held-out prompts.

    The reference does not move, so each response's chance to beat it is worked out once an episode; then a win rate is
    a softmax and a dot product.
    """

    def __init__(self, settings: SyntheticSettings, policy: LogLinearPolicy, source: SyntheticSource) -> None:
        self._settings, self._policy, self._source = settings, policy, source

    def reset(self, rng: np.random.Generator) -> None:
        """New held-out prompts. The source must have been reset before, for it makes the hidden truth."""
        self._responses = draw_responses(self._settings, self._source.hidden, self._settings.n_eval_prompts, rng)
        self._capability = self._responses.features @ self._source.hidden.capability_direction
        reference = np.exp(self._responses.reference_logprob)
        log_length = (np.log(self._responses.length) - LOG_LENGTH_MEAN) / LOG_LENGTH_STD
        second_reward = self._responses.reward + self._settings.length_bias * log_length
        temperature = self._settings.oracle_temperature
        self._beats = chance_to_beat(self._responses.reward, reference, temperature)
        self._beats_second = chance_to_beat(second_reward, reference, temperature)
        self._reference_capability = (reference * self._capability).sum(axis=1)

    def evaluate(self, posterior: RewardPosterior) -> Evaluation:
        """Exact win rates, capability less the reference's (in standard deviations of a response), exact KL."""
        logprob = self._policy.logprob(self._responses)
        prob = np.exp(logprob)
        return Evaluation(
            win_rate=win_rate((prob * self._beats).sum(axis=1)),
            second=win_rate((prob * self._beats_second).sum(axis=1)),
            capability=float(((prob * self._capability).sum(axis=1) - self._reference_capability).mean()),
            kl=max(0.0, float((prob * (logprob - self._responses.reference_logprob)).sum(axis=1).mean())),
            posterior_accuracy=self._accuracy(posterior),
        )

    def win_rate_gradient(self) -> FloatArray:
        """(d,) derivative of the win rate in the policy's theta: the mean over prompts of Cov(b(y), f(y))."""
        prob = np.exp(self._policy.logprob(self._responses))
        centred = self._beats - (prob * self._beats).sum(axis=1, keepdims=True)
        return np.asarray(np.einsum("eg,egd->d", prob * centred, self._responses.features) / len(prob))

    def _accuracy(self, posterior: RewardPosterior) -> float:
        """Share of neighbouring responses (1 with 2, 3 with 4, …) ranked right; equal means count one half."""
        believed = posterior.mean(self._responses.embedding)
        pairs = self._settings.n_generators // 2 * 2
        gap = believed[:, 0:pairs:2] - believed[:, 1:pairs:2]
        truth = self._responses.reward[:, 0:pairs:2] - self._responses.reward[:, 1:pairs:2]
        return float((0.5 + 0.5 * np.sign(gap) * np.sign(truth)).mean())

    def state_dict(self) -> State:
        """The held-out prompts and what was worked out for them."""
        names = ("_responses", "_capability", "_beats", "_beats_second", "_reference_capability")
        return {name[1:]: copy.deepcopy(getattr(self, name)) for name in names}

    def load_state_dict(self, state: State) -> None:
        """Restore."""
        for name, value in state.items():
            setattr(self, f"_{name}", copy.deepcopy(value))


class ExpectedGain:
    """Pool → (n, P): first-order gain in win rate that each pair's label is expected to bring, up to a common factor.

    With p the chance that i is preferred and h its log-ratio to the reference over that of j, a DPO gradient step moves
    theta along ``f_i - f_j`` by ``p sig(-beta h) - (1 - p) sig(beta h) = p - sig(beta h)`` on average; the win rate
    follows by its gradient.
    """

    def __init__(self, settings: SyntheticSettings, policy: LogLinearPolicy, evaluator: SyntheticEvaluator) -> None:
        self._settings, self._policy, self._evaluator = settings, policy, evaluator

    def __call__(self, pool: Pool) -> FloatArray:
        """(n, P) float64."""
        first, second = pair_table(pool.n_candidates)
        features = pool.features  # type: ignore[attr-defined]  # a SyntheticPool
        delta = features[:, first] - features[:, second]
        reward = hidden_reward(pool)
        preferred = preference_prob(reward[:, first] - reward[:, second], self._settings.oracle_temperature)
        step = preferred - expit(self._settings.beta * (delta @ self._policy.theta))
        return np.asarray(step * (delta @ self._evaluator.win_rate_gradient()))


def make_synthetic_world(settings: SyntheticSettings | None = None, name: str = "synthetic") -> World:
    """A simulated world with these settings (the defaults when None)."""
    settings = settings or SyntheticSettings()
    policy = LogLinearPolicy(settings)
    source = SyntheticSource(settings, policy)
    evaluator = SyntheticEvaluator(settings, policy, source)
    return World(
        name=name,
        source=source,
        oracle=BradleyTerryOracle(hidden_reward, settings.oracle_temperature),
        posterior=BayesianLinearPosterior(settings.embedding_size, settings.n_samples, settings.prior_std),
        learner=policy,
        evaluator=evaluator,
        n_prompts=settings.n_prompts,
        n_candidates=settings.n_candidates,
        embedding_size=settings.embedding_size,
        n_samples=settings.n_samples,
        settings=settings,
        gain=ExpectedGain(settings, policy, evaluator),
    )
