"""A table's numbers as the world needs them: rewards, the reference, standardised features."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from prefenv.replay.features import FeatureFiles, Features
from prefenv.replay.settings import ReplaySettings
from prefenv.replay.table import PoolTable
from prefenv.types import FloatArray, IntArray, unknown_name

STATISTICS_ROWS = 20_000  # rows that set the scale of the features
SCALE_PAIRS = 100_000  # random pairs that set the scale of the judge
SEED = 0  # of both: they belong to the table and not to an episode
READ = (
    "pools", "score", "second_score", "capability", "scale", "certainty", "judge", "reference", "reference_strength"
)  # fmt: skip
MIN_STD = 1e-4  # a coordinate that varies less is left in its own unit


@dataclass(frozen=True, eq=False)
class ReplayData:
    """What all episodes on a table share.

    Attributes:
        table: the candidates.
        features: what lies beside it.
        group: (N,) int64, equal for prompts with the same text.
        score: column that the oracle judges by.
        reward: (R,) float32, log-odds: the oracle's score over its scale.
        scale: that scale.
        controlled: (R,) float32, the reward less what goes with length within prompts.
        second: (R,) float32, log-odds by the second judge, or None.
        capability: (R,) float32, standardised over the table, or None.
        logit: (R,) float32 of the reference, but for a constant of the prompt.
        generator: (R,) int32, numbered by the mean of the reward less that of the prompt, 0 for the lowest.
        words: (R,) float32 length of the responses, in words; ``median_words`` is the median.
        shift: (d + F,) float32, means of the embedding and of the surface features.
        spread: (d + F,) float32, their standard deviations.
    """

    table: PoolTable
    features: Features
    group: IntArray
    score: str
    reward: FloatArray
    scale: float
    controlled: FloatArray
    second: FloatArray | None
    capability: FloatArray | None
    logit: FloatArray
    generator: IntArray
    words: FloatArray
    median_words: float
    shift: FloatArray
    spread: FloatArray

    @classmethod
    def open(cls, settings: ReplaySettings) -> ReplayData:
        """Read a table and what lies beside it.

        Raises:
            FileNotFoundError: the table or its features are not there.
            ValueError: no table is named, or it cannot serve; the message says what would.
        """
        if settings.pools is None:
            raise ValueError(
                "the world replay needs a table, pools=PATH (--pools PATH): `prefenv pools import` makes one"
            )
        table = PoolTable.open(Path(settings.pools))
        features = Features.open(table)
        score = _score_column(table, settings)
        reward, scale = _reward(table, settings, score, settings.scale)
        second = None if settings.second_score is None else _reward(table, settings, settings.second_score)[0]
        capability = None if settings.capability is None else _standardised(table.column(settings.capability))
        shift, spread = _statistics(features)
        log_length = np.asarray(features.surface[:, 0])
        words = np.expm1(log_length)
        return cls(
            table=table,
            features=features,
            group=_groups(table),
            score=score,
            reward=reward,
            scale=scale,
            controlled=_without_length(table, reward, log_length),
            second=second,
            capability=capability,
            logit=_reference(table, settings),
            generator=_by_skill(table, reward),
            words=words,
            median_words=max(float(np.median(words)), 1.0),
            shift=shift,
            spread=spread,
        )

    @classmethod
    def shared(cls, settings: ReplaySettings) -> ReplayData:
        """As :meth:`open`; worlds on the same table share it for as long as it and its features stay as they are."""
        if settings.pools is None or not Path(settings.pools).is_file():
            return cls.open(settings)
        stamp = tuple(
            (path.stat().st_mtime_ns, path.stat().st_size)
            for path in (Path(settings.pools), FeatureFiles(Path(settings.pools)).about)
            if path.exists()
        )
        return _opened(ReplaySettings(**{name: getattr(settings, name) for name in READ}), stamp)

    @property
    def digest(self) -> str:
        """Of all that a world reads: the table's texts and numbers, and where its embeddings come from."""
        whole = hashlib.blake2b(f"{self.table.fingerprint} {self.features.settings}".encode(), digest_size=16)
        for numbers in (
            self.reward,
            self.controlled,
            self.second,
            self.capability,
            self.logit,
            self.shift,
            self.spread,
        ):
            whole.update(b"none" if numbers is None else numbers.tobytes())
        return whole.hexdigest()

    @property
    def embedding_size(self) -> int:
        """Of d + F: what the posterior sees."""
        return len(self.shift)

    @property
    def policy_size(self) -> int:
        """Of d + 1: the embedding and log-length, what the policy is linear in."""
        return self.features.embedding.shape[1] + 1

    def embedding(self, rows: IntArray) -> FloatArray:
        """(..., d + F) float32, standardised embedding and surface features of (...) rows."""
        flat = rows.ravel()
        both = np.concatenate([self.features.embedding[flat], self.features.surface[flat]], axis=1, dtype=np.float32)
        return ((both - self.shift) / self.spread).reshape(*rows.shape, -1)

    def policy_features(self, embedding: FloatArray) -> FloatArray:
        """(..., d + 1) float32 of (..., d + F) embeddings: what the policy is linear in, squares summing to about 1.

        The first surface feature is log-length.
        """
        size = self.policy_size
        return np.ascontiguousarray(embedding[..., :size]) * np.float32(1 / np.sqrt(size))

    def rows_of(self, prompts: IntArray) -> IntArray:
        """(n, G) rows of all candidates of n prompts, G those of the longest; -1 where there is none."""
        sizes = self.table.sizes[prompts]
        place = np.arange(sizes.max())
        return np.where(place < sizes[:, None], self.table.start[prompts][:, None] + place, -1)


@lru_cache(maxsize=2)
def _opened(settings: ReplaySettings, stamp: tuple[tuple[int, int], ...]) -> ReplayData:
    return ReplayData.open(settings)


def _score_column(table: PoolTable, settings: ReplaySettings) -> str:
    if settings.score is not None:
        return settings.score
    if not table.columns:
        raise ValueError(
            f"{table.path} has no column of numbers, so nothing to judge by: `prefenv pools import` reads scores"
        )
    return "score" if "score" in table.columns else table.columns[0]


def _reward(
    table: PoolTable, settings: ReplaySettings, name: str, scale: float | None = None
) -> tuple[FloatArray, float]:
    """Scores over their scale, and the scale: the one given, else the one that fits."""
    score = table.numbers(name)
    score = score - score.mean()
    if scale is None and settings.judge == "argmax" and not (score != score[0]).any():
        scale = 1.0
    if scale is None:
        scale = fitted_scale(table, score, settings.certainty, name)
    return (score / scale).astype(np.float32), scale


def fitted_scale(table: PoolTable, score: FloatArray, certainty: float, name: str = "score") -> float:
    """The T for which ``mean max(p, 1 - p) = certainty``, ``p = sig(gap / T)``, over pairs whose scores differ.

    Args:
        table: of the candidates.
        score: (R,).
        certainty: in (1/2, 1).
        name: of the column, for the message.

    Raises:
        ValueError: no scores differ within a prompt.
    """
    rng = np.random.default_rng(SEED)
    prompt = rng.integers(table.n_prompts, size=SCALE_PAIRS)
    size = table.sizes[prompt]
    first = rng.integers(size)
    second = (first + 1 + rng.integers(size - 1)) % size
    start = table.start[prompt]
    gap = np.abs(score[start + first].astype(np.float64) - score[start + second])
    gap = gap[gap > 0]
    if not len(gap):
        raise ValueError(
            f"column '{name}' of {table.path}: the candidates of a prompt have equal scores, so that no scale can be "
            "fitted: give a scale, or another column"
        )
    typical = gap.mean()

    def excess(log_scale: float) -> float:
        return float(expit(gap / np.exp(log_scale)).mean()) - certainty

    return float(np.exp(brentq(excess, np.log(typical) - 30, np.log(typical) + 30, xtol=1e-6)))


def _standardised(values: FloatArray) -> FloatArray:
    std = values.std(dtype=np.float64)
    return ((values - values.mean(dtype=np.float64)) / (std if std > 0 else 1.0)).astype(np.float32)


def _within(table: PoolTable, values: FloatArray) -> FloatArray:
    """(R,) float64: values less their mean over the prompt."""
    mean = np.add.reduceat(values.astype(np.float64), table.start[:-1]) / table.sizes
    return values - np.repeat(mean, table.sizes)


def _without_length(table: PoolTable, reward: FloatArray, log_length: FloatArray) -> FloatArray:
    """The reward less the least-squares slope on log-length, within prompts, times log-length."""
    length = _within(table, log_length)
    squares = float(length @ length)
    slope = float(length @ _within(table, reward)) / squares if squares > 0 else 0.0
    return (reward - slope * log_length).astype(np.float32)


def _reference(table: PoolTable, settings: ReplaySettings) -> FloatArray:
    kind, _, name = settings.reference.partition(":")
    strength = np.float32(settings.reference_strength)
    if kind == "generator":
        if name not in table.generators:
            raise unknown_name(f"generator of {table.path}", name, table.generators)
        return strength * (table.generator == table.generators.index(name)).astype(np.float32)
    if kind == "column":
        return strength * _standardised(table.column(name))
    if kind == "logprob":
        return table.column(name)
    return np.zeros(table.n_rows, dtype=np.float32)


def _by_skill(table: PoolTable, reward: FloatArray) -> IntArray:
    """(R,) int32: generators numbered by their mean reward within prompts, as a public leaderboard would."""
    count = np.bincount(table.generator, minlength=len(table.generators))
    mean = np.bincount(table.generator, _within(table, reward), len(table.generators)) / np.maximum(count, 1)
    return np.argsort(np.argsort(mean)).astype(np.int32)[table.generator]


def _statistics(features: Features) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation of the embedding and the surface features, over a sample of rows."""
    rows = len(features.surface)
    sample = np.sort(np.random.default_rng(SEED).permutation(rows)[:STATISTICS_ROWS])
    both = np.concatenate([features.embedding[sample], features.surface[sample]], axis=1, dtype=np.float64)
    std = both.std(axis=0)
    return both.mean(axis=0).astype(np.float32), np.where(std > MIN_STD, std, 1.0).astype(np.float32)


def _groups(table: PoolTable) -> IntArray:
    """(N,) int64, equal for prompts whose texts are equal: such prompts must not stand on both sides of a split."""
    number: dict[str, int] = {}
    group, read, before = [], 0, None
    begins = np.zeros(table.n_rows, dtype=bool)
    begins[table.start[:-1]] = True
    for batch in table.batches(["prompt"]):
        texts = batch["prompt"]
        for text, begin in zip(texts, begins[read : read + len(texts)], strict=True):
            if begin:
                group.append(number.setdefault(text, len(number)))
            if text is None or (not begin and text != before):
                raise ValueError(
                    f"{table.path}: a prompt_id has rows without a prompt or with different ones: "
                    "`prefenv pools import` leaves such rows out"
                )
            before = text
        read += len(texts)
    return np.array(group, dtype=np.int64)
