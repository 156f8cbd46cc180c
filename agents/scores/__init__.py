"""Pure functions: observation → a score for every pair, (..., n, P); more is better.

A :class:`Score` takes ``(observation, rng)`` and its own keyword settings. A :class:`Design` chooses several pairs
together, so it also takes a :class:`Plan`: how many, in which form, and what this episode has labelled already. Leading
axes of the observation are a batch. Each draws from a generator at most once, with the leading axes first, so that a
batch gets what its members would get one by one. Scores of pairs that the mask forbids are any number: selection leaves
them out. A method that names one pair of each prompt itself says so in bool. P = m (m - 1) / 2 pairs (i, j), i < j.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Observation = Mapping[str, NDArray[np.generic]]
FloatArray = NDArray[np.floating]
ScoreArray = NDArray[np.floating | np.bool_]


class Score(Protocol):
    """A method with its settings bound."""

    def __call__(self, observation: Observation, rng: np.random.Generator) -> ScoreArray:
        """(..., n, P) scores."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What a rule that chooses several pairs together knows besides the observation.

    Attributes:
        labels: k, how many pairs are asked for.
        each_prompt: one pair for each prompt is asked for, and k = n; otherwise k pairs anywhere in the pool.
        labelled: (..., L, 2, d) float32, embeddings of the two candidates of every pair chosen so far in this episode.
        known: (..., L) bool; False where an episode of the batch has no such pair.
        pair_rng: for the draws of a pair score inside the prompts.
    """

    labels: int
    each_prompt: bool
    labelled: FloatArray
    known: NDArray[np.bool_]
    pair_rng: np.random.Generator

    @classmethod
    def at_start(cls, labels: int, d: int, *, each_prompt: bool = False, seed: int = 0) -> Plan:
        """Of the first round of one episode: nothing is labelled.

        >>> Plan.at_start(labels=4, d=2).labelled.shape
        (0, 2, 2)
        """
        labelled = np.zeros((0, 2, d), dtype=np.float32)
        return cls(labels, each_prompt, labelled, np.zeros(0, dtype=bool), np.random.default_rng(seed))


class Design(Protocol):
    """A rule for several pairs at once, with its settings bound."""

    def __call__(self, observation: Observation, rng: np.random.Generator, plan: Plan) -> ScoreArray:
        """(..., n, P) scores; the k pairs of the plan are those that selection takes first."""
