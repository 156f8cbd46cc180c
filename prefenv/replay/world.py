"""The replay world: pools and labels from a table of annotated candidates, a log-linear policy on embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefenv.evaluation.win_rate import chance_to_beat, win_rate
from prefenv.oracles.bradley_terry import BradleyTerryOracle
from prefenv.posteriors.bayesian_linear import BayesianLinearPosterior
from prefenv.protocols import RewardPosterior, State, World
from prefenv.replay.data import ReplayData
from prefenv.replay.settings import ReplaySettings
from prefenv.synthetic.policy import Policies, PromptResponses
from prefenv.synthetic.simulator import expected_gain
from prefenv.synthetic.story import log_softmax
from prefenv.synthetic.world import LogLinearPolicy, hidden_reward
from prefenv.types import Evaluation, FloatArray, IntArray, Pool

MIN_LENGTH = 0.05  # of the median: what SimPO takes shorter responses for
PAIRS_EACH = 4  # held-out pairs of each evaluation prompt that the posterior is asked to rank


@dataclass(frozen=True, eq=False)
class ReplayPool(Pool):
    """A pool of rows of the table; padding repeats the first candidate of the prompt.

    Attributes:
        table_rows: (n, m) int64.
        features: (n, m, D) float32, what the policy is linear in.
        reward: (n, m) float32, log-odds, for the oracle.
        responses: all candidates of the prompts, of which the pool shows some.
    """

    table_rows: IntArray
    features: FloatArray
    reward: FloatArray
    responses: PromptResponses


@dataclass(frozen=True, eq=False)
class Split:
    """What the prompts of a table are for in one episode. No two kinds have a prompt's text in common.

    Attributes:
        held_out: (E,) int64 prompts on which the policy is measured.
        warm: (W,) prompts that the posterior has learned from before.
        train: (T,) prompts of the pools, in their order.
    """

    held_out: IntArray
    warm: IntArray
    train: IntArray


def split(data: ReplayData, settings: ReplaySettings, rng: np.random.Generator) -> Split:
    """A random split.

    Raises:
        ValueError: the table has too few prompts.
    """
    order = np.argsort(rng.permutation(int(data.group.max()) + 1)[data.group], kind="stable")
    group = data.group[order]
    held_out = order[: settings.n_eval_prompts]
    rest = order[settings.n_eval_prompts :]
    rest = rest[~np.isin(group[settings.n_eval_prompts :], group[: settings.n_eval_prompts])]
    n_warm = round(settings.warm_share * len(rest))
    warm, train = rest[:n_warm], rest[n_warm:]
    train = train[~np.isin(data.group[train], data.group[warm])]
    if len(held_out) < settings.n_eval_prompts or len(train) < settings.n_prompts:
        raise ValueError(
            f"{data.table.path} has {data.table.n_prompts} prompts: {len(train)} are left for pools of "
            f"{settings.n_prompts} beside {settings.n_eval_prompts} held-out ones and {n_warm} for the warm start: "
            "take fewer n_eval_prompts, fewer n_prompts or a smaller warm_share"
        )
    return Split(held_out, warm, train)


class ReplaySource:
    """Pools of the train prompts: all of them, in random order, before one comes again."""

    def __init__(self, data: ReplayData, settings: ReplaySettings, policies: Policies, n_candidates: int) -> None:
        self.data, self._settings, self._policies, self._m = data, settings, policies, n_candidates
        self.reset(np.random.default_rng(0))

    def reset(self, rng: np.random.Generator) -> None:
        """A new split of the prompts."""
        self._rng, self.split, self._dealt = rng, split(self.data, self._settings, rng), 0

    def draw(self) -> ReplayPool:
        """The next n prompts."""
        n = self._settings.n_prompts
        prompts = self.split.train[self._dealt : self._dealt + n]
        self._dealt += n
        if len(prompts) < n:  # the last ones of a round through all, and the first ones of the next
            anew = self._rng.permutation(self.split.train)
            others = anew[~np.isin(anew, prompts)][: n - len(prompts)]
            train = np.concatenate([others, anew[~np.isin(anew, others)]])
            self.split, self._dealt = Split(self.split.held_out, self.split.warm, train), len(others)
            prompts = np.concatenate([prompts, others])
        every = self.data.rows_of(prompts)
        shown = self._shown(every)
        return make_pool(self.data, self._policies, prompts, every, shown, self._settings.beta)

    def _shown(self, every: IntArray) -> IntArray:
        """(n, m) places among all candidates: all in their order, or a random part; -1 where there is none."""
        exists, g = every >= 0, every.shape[1]
        place = np.where(exists, np.arange(g), g)
        if g > self._m:
            drawn = np.argsort(np.where(exists, self._rng.random(every.shape), 2.0), axis=1)[:, : self._m]
            place = np.sort(np.take_along_axis(place, drawn, axis=1), axis=1)
        shown = np.full((len(every), self._m), -1)
        shown[:, : place.shape[1]] = np.where(place < g, place, -1)
        return shown

    def state_dict(self) -> State:
        """The split, how far it is dealt, and the generator."""
        parts = (self.split.held_out.copy(), self.split.warm.copy(), self.split.train.copy())
        return {"split": parts, "dealt": self._dealt, "rng": self._rng.bit_generator.state}

    def load_state_dict(self, state: State) -> None:
        """Restore."""
        self.split, self._dealt = Split(*(part.copy() for part in state["split"])), state["dealt"]
        self._rng.bit_generator.state = state["rng"]


def make_pool(
    data: ReplayData, policies: Policies, prompts: IntArray, every: IntArray, shown: IntArray, beta: float
) -> ReplayPool:
    """A pool as the policy sees it now.

    Args:
        data: of the table.
        policies: of B = 1.
        prompts: (n,) of the table.
        every: (n, G) rows of all their candidates, -1 where there is none.
        shown: (n, m) places among these, -1 where there is none.
        beta: of the implicit reward.
    """
    exists, mask = every >= 0, shown >= 0
    rows = np.where(exists, every, every[:, :1])
    embedding = data.embedding(rows)
    features = data.policy_features(embedding)
    logit = np.where(exists, data.logit[rows], -np.inf)
    reference = log_softmax(logit[None])[0][0]
    logprob = log_softmax((logit + policies.log_ratio(features[None])[0])[None])[0][0]
    prob = np.exp(logprob)
    place = np.where(mask, shown, 0)

    def take(values: NDArray[Any]) -> NDArray[Any]:
        return np.take_along_axis(values, place.reshape(*place.shape, *(1,) * (values.ndim - 2)), axis=1)

    words = data.words[take(rows)]
    relative = np.maximum(words / data.median_words, MIN_LENGTH).astype(np.float32)
    responses = PromptResponses(features[None], logit[None], place[None], relative[None])
    entropy = -np.where(exists, prob * np.where(exists, logprob, 0.0), 0.0).sum(axis=1)
    return ReplayPool(
        prompt_id=prompts,
        embedding=take(embedding),
        logprob=take(logprob).astype(np.float32),
        length=words,
        implicit_reward=(beta * (take(logprob) - take(reference))).astype(np.float32),
        entropy=np.maximum(entropy, 0.0).astype(np.float32),
        generator=data.generator[take(rows)].astype(np.int64),
        mask=mask,
        table_rows=take(rows),
        features=take(features),
        reward=data.reward[take(rows)],
        responses=responses,
    )


class ReplayPosterior(BayesianLinearPosterior):
    """Bayesian linear in the embedding and the surface features; starts warm where the settings say so."""

    def __init__(self, source: ReplaySource, oracle: BradleyTerryOracle, settings: ReplaySettings) -> None:
        super().__init__(source.data.embedding_size, settings.n_samples, settings.prior_std)
        self._source, self._oracle = source, oracle

    def reset(self, rng: np.random.Generator) -> None:
        """Back to the prior, and a random label of each warm prompt. The source must have been reset before."""
        data, prompts = self._source.data, self._source.split.warm
        size = data.table.sizes[prompts]
        first = rng.integers(size)
        second = (first + 1 + rng.integers(size - 1)) % size
        rows = data.table.start[prompts][:, None] + np.stack([first, second], axis=1)
        sign = self._oracle.signs(data.reward[rows[:, 0]].astype(np.float64) - data.reward[rows[:, 1]], rng)
        super().reset(rng)
        if not (sign != 0).any():
            return
        embedding = data.embedding(rows[sign != 0])
        ahead = (sign[sign != 0] > 0)[:, None, None]
        better, worse = np.swapaxes(np.where(ahead, embedding, embedding[:, ::-1]), 0, 1)
        self.beliefs.absorb(better[None], worse[None])


class ReplayEvaluator:
    """Exact expectations over the policy on held-out prompts, with all their candidates."""

    def __init__(self, settings: ReplaySettings, source: ReplaySource, policies: Policies) -> None:
        self._settings, self._source, self._policies = settings, source, policies
        self.reset(np.random.default_rng(0))

    def reset(self, rng: np.random.Generator) -> None:
        """The held-out prompts of the episode. The source must have been reset before."""
        rows = self._source.data.rows_of(self._source.split.held_out)
        size = (rows >= 0).sum(axis=1)[:, None]
        first = rng.integers(size, size=(len(rows), PAIRS_EACH))
        second = (first + 1 + rng.integers(size - 1, size=first.shape)) % size
        self._fill(rows, np.stack([first, second], axis=-1))

    def _fill(self, rows: IntArray, pairs: IntArray) -> None:
        data = self._source.data
        exists = rows >= 0
        safe = np.where(exists, rows, rows[:, :1])
        embedding = data.embedding(safe)
        self._rows, self._pairs, self._exists = rows, pairs, exists
        self._features = data.policy_features(embedding)
        self._reference = log_softmax(np.where(exists, data.logit[safe], -np.inf)[None])[0][0].astype(np.float64)
        prob = np.exp(self._reference)

        def beats(reward: FloatArray) -> FloatArray:
            return chance_to_beat(reward[safe].astype(np.float64), prob, self._settings.oracle_temperature)

        self._beats, self._controlled = beats(data.reward), beats(data.controlled)
        self._second = None if data.second is None else beats(data.second)
        self._capability = None if data.capability is None else data.capability[safe].astype(np.float64)
        where = np.arange(len(rows))[:, None, None]
        self._pair_embedding = embedding[where, pairs].reshape(-1, 2, embedding.shape[-1])
        reward = data.reward[safe][where, pairs].reshape(-1, 2)
        self._pair_truth = np.sign(reward[:, 0] - reward[:, 1])

    def evaluate(self, posterior: RewardPosterior) -> Evaluation:
        """Win rates, capability less the reference's (in standard deviations of a candidate), KL, ranking accuracy."""
        logprob = self._logprob()
        prob = np.exp(logprob)
        reference = np.exp(self._reference)

        def mean(values: FloatArray | None) -> float | None:
            return None if values is None else float((prob * values).sum(axis=1).mean().clip(0.0, 1.0))

        capability = None
        if self._capability is not None:
            capability = float(((prob - reference) * self._capability).sum(axis=1).mean())
        ratio = np.where(self._exists, logprob - np.where(self._exists, self._reference, 0.0), 0.0)
        believed = posterior.mean(self._pair_embedding)
        agrees = np.sign(believed[:, 0] - believed[:, 1]) * self._pair_truth
        return Evaluation(
            win_rate=win_rate((prob * self._beats).sum(axis=1)),
            second=mean(self._second),
            capability=capability,
            kl=max(float((prob * ratio).sum(axis=1).mean()), 0.0),
            posterior_accuracy=float(0.5 + 0.5 * agrees.mean(dtype=np.float64)),
            length_controlled=mean(self._controlled),
        )

    def _logprob(self) -> FloatArray:
        """(E, G) float64 under the policy; -inf where there is no candidate."""
        ratio = self._policies.log_ratio(self._features[None])[0].astype(np.float64)
        return np.asarray(log_softmax((self._reference + ratio)[None])[0][0])

    def win_rate_gradient(self) -> FloatArray:
        """(1, D) derivative of the win rate in theta: mean over prompts of Cov(b(y), f(y))."""
        prob = np.exp(self._logprob())
        centred = prob * (self._beats - (prob * self._beats).sum(axis=1, keepdims=True))
        return np.einsum("eg,egd->d", centred, self._features)[None] / len(prob)

    def state_dict(self) -> State:
        """The held-out rows and pairs; all else follows from the table."""
        return {"rows": self._rows.copy(), "pairs": self._pairs.copy()}

    def load_state_dict(self, state: State) -> None:
        """Restore."""
        self._fill(state["rows"].copy(), state["pairs"].copy())


def make_replay_world(settings: ReplaySettings, name: str = "replay") -> World:
    """A world on a table.

    Raises:
        FileNotFoundError: the table or its features are not there.
        ValueError: the table cannot serve these settings; the message says what would.
    """
    data = ReplayData.shared(settings)
    largest = int(data.table.sizes.max())
    m = largest if settings.n_candidates is None else min(settings.n_candidates, largest)
    policies = Policies(settings, 1, data.policy_size)
    source = ReplaySource(data, settings, policies, m)
    oracle = BradleyTerryOracle(hidden_reward, settings.oracle_temperature, settings.oracle_tie, settings.oracle_flip)
    evaluator = ReplayEvaluator(settings, source, policies)
    return World(
        name=name,
        source=source,
        oracle=oracle,
        posterior=ReplayPosterior(source, oracle, settings),
        learner=LogLinearPolicy(policies),
        evaluator=evaluator,
        n_prompts=settings.n_prompts,
        n_candidates=m,
        embedding_size=data.embedding_size,
        n_samples=settings.n_samples,
        settings=settings,
        gain=ReplayGain(settings, policies, evaluator),
        digest=data.digest,
    )


class ReplayGain:
    """Pool → (n, P): first-order gain in win rate that each label is expected to bring, up to a common factor."""

    def __init__(self, settings: ReplaySettings, policies: Policies, evaluator: ReplayEvaluator) -> None:
        self._settings, self._policies, self._evaluator = settings, policies, evaluator

    def __call__(self, pool: Pool) -> FloatArray:
        """(n, P) float64."""
        assert isinstance(pool, ReplayPool)
        gradient = self._evaluator.win_rate_gradient()
        features, reward = pool.features[None], pool.reward[None]
        return expected_gain(self._settings, features, reward, self._policies.theta, gradient)[0]
