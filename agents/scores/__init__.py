"""Pure functions: observation → a score for every pair, (..., n, P); more is better.

All take ``(observation, rng)`` and their own keyword settings. Leading axes of the observation are a batch. Each draws
from ``rng`` at most once, with the leading axes first, so that a batch gets what its members would get one by one.
Scores of pairs that the mask forbids are any number: selection leaves them out. P = m (m - 1) / 2 pairs (i, j), i < j.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Observation = Mapping[str, NDArray[np.generic]]
FloatArray = NDArray[np.floating]


class Score(Protocol):
    """A method with its settings bound."""

    def __call__(self, observation: Observation, rng: np.random.Generator) -> FloatArray:
        """(..., n, P) scores."""
