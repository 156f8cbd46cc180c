"""One simulated world: the parts of B = 1 worlds, as the protocols have them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prefenv.oracles.bradley_terry import BradleyTerryOracle
from prefenv.posteriors.single import SinglePosterior
from prefenv.protocols import RewardPosterior, State, World
from prefenv.synthetic.policy import Labels, Policies, PromptResponses
from prefenv.synthetic.settings import SyntheticSettings
from prefenv.synthetic.simulator import Evaluators, Pools, Sources, expected_gain, make_beliefs, start_beliefs
from prefenv.types import Evaluation, FloatArray, Pool, Preferences, WinRate


@dataclass(frozen=True, eq=False)
class SyntheticPool(Pool):
    """A pool that keeps what only the world may know.

    Attributes:
        pools: of B = 1 worlds, with the hidden features and rewards.
    """

    pools: Pools

    @property
    def features(self) -> FloatArray:
        """(n, m, D) float32 hidden features, for the policy."""
        return np.asarray(self.pools.features[0])

    @property
    def reward(self) -> FloatArray:
        """(n, m) float32 hidden reward, for the oracle."""
        return np.asarray(self.pools.reward[0])

    @property
    def responses(self) -> PromptResponses:
        """All responses to the prompts, of B = 1."""
        return self.pools.responses


def hidden_reward(pool: Pool) -> FloatArray:
    """(n, m) the reward that a synthetic pool hides."""
    return pool.reward  # type: ignore[attr-defined, no-any-return]


def _pools(pool: Pool) -> Pools:
    return pool.pools  # type: ignore[attr-defined, no-any-return]


class SyntheticSource:
    """New prompts for ever; m different responses of each, drawn from the policy or from all generators alike."""

    def __init__(self, settings: SyntheticSettings, policies: Policies) -> None:
        self.sources, self._n_drawn = Sources(settings, policies), 0
        self.reset(np.random.default_rng())

    def reset(self, rng: np.random.Generator) -> None:
        """A new hidden truth."""
        self._n_drawn = 0
        self.sources.reset([rng.bit_generator])

    def draw(self) -> SyntheticPool:
        """The next n prompts."""
        pools = self.sources.draw()
        mask = np.ones(pools.generator.shape[1:], dtype=np.bool_)
        self._n_drawn += len(mask)
        return SyntheticPool(
            prompt_id=np.arange(self._n_drawn - len(mask), self._n_drawn),
            embedding=pools.embedding[0],
            logprob=pools.logprob[0],
            length=pools.length[0],
            implicit_reward=pools.implicit_reward[0],
            entropy=pools.entropy[0],
            generator=pools.generator[0],
            mask=mask,
            pools=pools,
        )

    def state_dict(self) -> State:
        """Hidden truth, prompts drawn, generator."""
        return {"sources": self.sources.state_dict(), "n_drawn": self._n_drawn}

    def load_state_dict(self, state: State) -> None:
        """Restore."""
        self.sources.load_state_dict(state["sources"])
        self._n_drawn = state["n_drawn"]


class SyntheticPosterior(SinglePosterior):
    """The posterior of the settings, which starts warm where they say so."""

    def __init__(self, settings: SyntheticSettings, sources: Sources) -> None:
        self._settings, self._sources = settings, sources
        self.beliefs = make_beliefs(settings, n_worlds=1)

    def reset(self, rng: np.random.Generator) -> None:
        """Back to the start. The source must have been reset before, for it makes the hidden truth."""
        start_beliefs(self._settings, self._sources.hidden, [rng.bit_generator], self.beliefs)


class LogLinearPolicy:
    """The policy and its learner, on pools that know their ``features`` (n, m, D) and ``responses``."""

    def __init__(self, policies: Policies) -> None:
        self.policies = policies

    def reset(self, rng: np.random.Generator) -> None:
        """Back to the reference; nothing here is random."""
        self.policies.reset()

    def step(self, pool: Pool, preferences: Preferences, exploration_bonus: float = 0.0) -> None:
        """Gradient steps on the labels of this round."""
        if len(preferences) == 0:
            return
        told = np.ones((1, len(preferences)), dtype=np.bool_)
        labels = Labels(preferences.prompt[None], preferences.chosen[None], preferences.rejected[None], told)
        self.policies.step(pool.features[None], labels, pool.responses, exploration_bonus)  # type: ignore[attr-defined]

    def state_dict(self) -> State:
        """The parameters."""
        return self.policies.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Restore."""
        self.policies.load_state_dict(state)


class SyntheticEvaluator:
    """Exact expectations over the policy on held-out prompts."""

    def __init__(self, settings: SyntheticSettings, policies: Policies, sources: Sources) -> None:
        self._n, self.evaluators = settings.n_eval_prompts, Evaluators(settings, policies, sources)

    def reset(self, rng: np.random.Generator) -> None:
        """New held-out prompts. The source must have been reset before, for it makes the hidden truth."""
        self.evaluators.reset([rng.bit_generator])

    def evaluate(self, posterior: RewardPosterior) -> Evaluation:
        """Exact win rates, capability less the reference's (in standard deviations of a response), exact KL."""
        found = self.evaluators.evaluate(lambda embedding: posterior.mean(embedding[0])[None])
        return Evaluation(
            win_rate=WinRate(float(found.win_rate[0]), float(found.low[0]), float(found.high[0]), self._n),
            second=float(found.second[0]),
            capability=float(found.capability[0]),
            kl=float(found.kl[0]),
            posterior_accuracy=float(found.posterior_accuracy[0]),
        )

    def state_dict(self) -> State:
        """The held-out prompts and what was worked out for them."""
        return self.evaluators.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Restore."""
        self.evaluators.load_state_dict(state)


class ExpectedGain:
    """Pool → (n, P): first-order gain in win rate that each label is expected to bring, up to a common factor."""

    def __init__(self, settings: SyntheticSettings, policies: Policies, evaluators: Evaluators) -> None:
        self._settings, self._policies, self._evaluators = settings, policies, evaluators

    def __call__(self, pool: Pool) -> FloatArray:
        """(n, P) float64."""
        pools = _pools(pool)
        gradient = self._evaluators.win_rate_gradient()
        return expected_gain(self._settings, pools.features, pools.reward, self._policies.theta, gradient)[0]


def make_synthetic_world(settings: SyntheticSettings | None = None, name: str = "synthetic") -> World:
    """A simulated world with these settings (the defaults when None)."""
    settings = settings or SyntheticSettings()
    policies = Policies(settings, 1, settings.embedding_size + 1)
    source = SyntheticSource(settings, policies)
    evaluator = SyntheticEvaluator(settings, policies, source.sources)
    temperature, tie, flip = settings.oracle_temperature, settings.oracle_tie, settings.oracle_flip
    return World(
        name=name,
        source=source,
        oracle=BradleyTerryOracle(hidden_reward, temperature, tie, flip),
        posterior=SyntheticPosterior(settings, source.sources),
        learner=LogLinearPolicy(policies),
        evaluator=evaluator,
        n_prompts=settings.n_prompts,
        n_candidates=settings.n_candidates,
        embedding_size=settings.embedding_size,
        n_samples=settings.n_samples,
        settings=settings,
        gain=ExpectedGain(settings, policies, evaluator.evaluators),
    )
