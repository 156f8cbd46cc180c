"""What crosses a seam between two parts: frozen, validated dataclasses.

Symbols: n prompts, m candidates, k labels, d embedding size, S posterior draws.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]
IntArray = NDArray[np.integer]
BoolArray = NDArray[np.bool_]

ROUNDING = 1e-9  # of a count: a share such as 0.3 of 100 can be a little less than 30 in floats


def unknown_name(what: str, given: object, known: Iterable[str]) -> ValueError:
    """The error for a name that does not exist, with the closest one that does.

    >>> str(unknown_name("agent", "drst", ["drts", "random"]))
    "unknown agent 'drst': did you mean 'drts'? There are: drts, random"
    """
    names = sorted(known)
    close = difflib.get_close_matches(str(given).lower(), names, n=1, cutoff=0.4)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return ValueError(f"unknown {what} '{given}': {hint}There are: {', '.join(names)}")


def whole_number(name: str, value: object, minimum: int = 1) -> int:
    """The value as an int, if it is a whole number of at least ``minimum``.

    >>> whole_number("budget", 8)
    8

    Raises:
        ValueError: it is not; True and 2.0 are not whole numbers here.
    """
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or value < minimum:
        raise ValueError(f"{name}={value!r} must be a whole number of at least {minimum}")
    return int(value)


def _require_shape(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, expected {shape}")


def _require_finite(name: str, array: np.ndarray) -> None:
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name} holds NaN or infinite values")


@dataclass(frozen=True, eq=False)
class Pool:
    """n prompts with up to m candidates each, and what a model knows of them.

    Entries where ``mask`` is False are padding; their values must be finite but mean nothing.

    Attributes:
        prompt_id: (n,) int64, no two alike; a world's own number for each prompt.
        embedding: (n, m, d) float32.
        logprob: (n, m) float32, nats: log-probability of the whole response under the policy at the draw.
        length: (n, m) float32, tokens.
        implicit_reward: (n, m) float32, beta * log(policy / reference).
        entropy: (n,) float32, nats: predictive entropy of the policy at the prompt.
        generator: (n, m) int64, which model wrote the candidate.
        mask: (n, m) bool, at least two candidates a prompt.

    Raises:
        ValueError: a shape, a value or the mask is not as above.
    """

    prompt_id: IntArray
    embedding: FloatArray
    logprob: FloatArray
    length: FloatArray
    implicit_reward: FloatArray
    entropy: FloatArray
    generator: IntArray
    mask: BoolArray

    def __post_init__(self) -> None:
        if self.embedding.ndim != 3:
            raise ValueError(f"embedding must be (n, m, d), got shape {self.embedding.shape}")
        n, m, _ = self.embedding.shape
        for name, shape in {
            "prompt_id": (n,), "logprob": (n, m), "length": (n, m), "implicit_reward": (n, m),
            "entropy": (n,), "generator": (n, m), "mask": (n, m),
        }.items():  # fmt: skip
            _require_shape(name, getattr(self, name), shape)
        for name in ("embedding", "logprob", "length", "implicit_reward", "entropy"):
            _require_finite(name, getattr(self, name))
        if self.mask.dtype != np.bool_:
            raise ValueError(f"mask must be bool, got {self.mask.dtype}")
        if np.any(self.mask.sum(axis=1) < 2):
            raise ValueError("every prompt of a pool needs at least two candidates: leave the others out")
        if len(np.unique(self.prompt_id)) != n:
            raise ValueError("a pool holds a prompt twice")

    @property
    def n_prompts(self) -> int:
        """N."""
        return int(self.embedding.shape[0])

    @property
    def n_candidates(self) -> int:
        """M."""
        return int(self.embedding.shape[1])


@dataclass(frozen=True, eq=False)
class Pairs:
    """k pairs of candidates, each of one prompt, first < second.

    Attributes:
        prompt: (k,) int64, row of the pool.
        first: (k,) int64, candidate.
        second: (k,) int64, candidate.

    Raises:
        ValueError: shapes differ, or a pair is not ordered (so never i = j).
    """

    prompt: IntArray
    first: IntArray
    second: IntArray

    def __post_init__(self) -> None:
        _require_shape("first", self.first, self.prompt.shape)
        _require_shape("second", self.second, self.prompt.shape)
        if np.any(self.first < 0) or np.any(self.first >= self.second):
            raise ValueError("a pair needs 0 <= first < second: two different candidates in order")

    def __len__(self) -> int:
        return len(self.prompt)


@dataclass(frozen=True, eq=False)
class Preferences:
    """Labels: of two candidates of one prompt, which was preferred.

    Attributes:
        prompt: (k,) int64, row of the pool.
        chosen: (k,) int64, candidate.
        rejected: (k,) int64, candidate.
        abstained: comparisons that were asked for and got no answer; they are not among the k.

    Raises:
        ValueError: shapes differ, or a candidate is preferred to itself.
    """

    prompt: IntArray
    chosen: IntArray
    rejected: IntArray
    abstained: int = 0

    def __post_init__(self) -> None:
        _require_shape("chosen", self.chosen, self.prompt.shape)
        _require_shape("rejected", self.rejected, self.prompt.shape)
        if np.any(self.chosen == self.rejected):
            raise ValueError("a candidate cannot be preferred to itself")

    def __len__(self) -> int:
        return len(self.prompt)


@dataclass(frozen=True, eq=False)
class Belief:
    """What the posterior says of the rewards of n × m candidates.

    Attributes:
        mean: (n, m) float32, in units of log-odds of being preferred.
        std: (n, m) float32, same units.
        samples: (S, n, m) float32, joint draws: one draw is one reward function for all candidates.
    """

    mean: FloatArray
    std: FloatArray
    samples: FloatArray

    def __post_init__(self) -> None:
        _require_shape("std", self.std, self.mean.shape)
        _require_shape("samples", self.samples, (self.samples.shape[0], *self.mean.shape))
        for name in ("mean", "std", "samples"):
            _require_finite(name, getattr(self, name))
        if np.any(self.std < 0):
            raise ValueError("a standard deviation is negative")


LabelSource = Literal["oracle", "generator"]


@dataclass(frozen=True)
class Recipe:
    """How a round's labels are made and learned from, where a method says something about it. The default is plain.

    Attributes:
        labels: who labels the chosen pairs. "oracle"; or "generator": the response of the generator with the larger
            number is chosen, nobody judges, and a pair of one generator gets no label [Delta, arXiv 2507.06187].
        self_labelled: share, in [0, 1), of the labels in a DPO step that the reward posterior makes itself. They come
            on top of the round's own: on random prompts, the best against the worst candidate of a random joint draw
            [SEA, arXiv 2411.01493]. They cost nothing, and the posterior does not learn from them.
        burn_in: rounds of an episode before there are such labels.
        exploration_bonus: alpha, 0 or more: the DPO loss of a label gets alpha times the policy's log-probability of
            the reference's responses to its prompt, so that a step leads away from what the reference would say
            [XPO, arXiv 2405.21046].

    Raises:
        ValueError: a value that cannot be.

    >>> Recipe(self_labelled=0.3).self_labels(70)
    30
    """

    labels: LabelSource = "oracle"
    self_labelled: float = 0.0
    burn_in: int = 0
    exploration_bonus: float = 0.0

    def __post_init__(self) -> None:
        if self.labels not in get_args(LabelSource):
            raise ValueError(f"labels={self.labels!r} must be one of {', '.join(get_args(LabelSource))}")
        if not 0 <= self.self_labelled < 1:
            raise ValueError(f"self_labelled={self.self_labelled} must be a share of the labels, in [0, 1)")
        whole_number("burn_in", self.burn_in, minimum=0)
        if not 0 <= self.exploration_bonus < float("inf"):
            raise ValueError(f"exploration_bonus={self.exploration_bonus} must be 0 or more, and finite")

    def require_prompts(self, n_prompts: int, labels_per_round: int) -> None:
        """Check that a pool has a prompt for each of the posterior's own labels.

        Raises:
            ValueError: it has not.
        """
        count = self.self_labels(labels_per_round)
        if count > n_prompts:
            raise ValueError(
                f"self_labelled={self.self_labelled} adds {count} labels to {labels_per_round}, each on a prompt of "
                f"its own, but a pool has {n_prompts}: take a smaller share"
            )

    def self_labels(self, asked: int) -> int:
        """How many labels the posterior adds to ``asked`` ones, so that they are its share of all; rounded down."""
        return int(self.self_labelled / (1 - self.self_labelled) * asked + ROUNDING)


@dataclass(frozen=True)
class WinRate:
    """A win rate in [0, 1] against the reference, with a 95 % interval over evaluation prompts.

    Attributes:
        mean: ties count one half.
        low: lower end of the interval.
        high: upper end of the interval.
        n: evaluation prompts.
    """

    mean: float
    low: float
    high: float
    n: int

    def __post_init__(self) -> None:
        if not 0.0 <= self.low <= self.mean <= self.high <= 1.0:
            raise ValueError(f"not a win rate in its interval: {self.low} <= {self.mean} <= {self.high}")


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation of the policy on held-out prompts found.

    Attributes:
        win_rate: against the reference, by the reward that the oracle labels with.
        second: the win rate by a second judge, who did not label; None where there is none.
        capability: a value besides the reward; the world says which. None where it is not measured.
        kl: nats a response: KL(policy || reference), mean over evaluation prompts.
        posterior_accuracy: share of held-out pairs that the posterior mean ranks as the oracle's reward does.
        length_controlled: the win rate by the reward less what goes with length; None where it is not measured.
    """

    win_rate: WinRate
    second: float | None
    capability: float | None
    kl: float
    posterior_accuracy: float
    length_controlled: float | None = None


@dataclass(frozen=True)
class Seconds:
    """Wall-clock seconds of each part of a step.

    Two are always equal: how long a step took is no part of what the step did, so a comparison of two ``info``
    (Gymnasium's ``check_env`` makes one) is about what happened.
    """

    draw: float = field(default=0.0, compare=False)
    observe: float = field(default=0.0, compare=False)
    label: float = field(default=0.0, compare=False)
    update: float = field(default=0.0, compare=False)
    step: float = field(default=0.0, compare=False)
    evaluate: float = field(default=0.0, compare=False)
