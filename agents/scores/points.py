"""Where prompts stand in the space of embeddings, and how far they are from what is labelled.

A prompt stands where the midpoint ``(e_i + e_j) / 2`` of its pair is: about where a text of both responses would embed,
and the same for either order of the two. So stand the pairs that the episode has labelled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.scores import FloatArray, Observation, Plan
from agents.scores.prompts import Firsts

ROUNDING = 1e-12  # of the largest squared distance: what products of float64 may lose of a smaller one


@dataclass(frozen=True, eq=False)
class Points:
    """The points of B pools.

    Attributes:
        here: (B, n, d) float64, one for each prompt. A prompt that is not open stands where one that is open does.
        labelled: (B, L, d) float64.
        known: (B, L) bool; False where there is no such point.
    """

    here: FloatArray
    labelled: FloatArray
    known: NDArray[np.bool_]

    @classmethod
    def of(cls, observation: Observation, firsts: Firsts, plan: Plan) -> Points:
        """From the ``embedding`` (..., n, m, d) of an observation."""
        worlds = len(firsts.pair)
        some_open = firsts.is_open.argmax(axis=-1)
        stand_in = np.where(firsts.is_open, np.arange(firsts.pair.shape[1]), some_open[:, None])
        midpoints = firsts.of_pair(observation["embedding"]).mean(axis=2)
        here = np.take_along_axis(midpoints, stand_in[..., None], axis=1)
        known = plan.known.reshape(worlds, -1)
        ends = np.asarray(plan.labelled, dtype=np.float64).reshape(worlds, known.shape[1], 2, here.shape[-1])
        return cls(here, np.where(known[..., None], ends.mean(axis=2), 0.0), known)

    def of_unit_length(self) -> Points:
        """Scaled to length 1; a point at 0 stays there."""
        return Points(_unit(self.here), _unit(self.labelled), self.known)

    def spread(self) -> FloatArray:
        """(B, 1) the largest squared distance from one of the prompts: the unit of what rounding is."""
        return np.square(self.here - self.here[:, :1]).sum(axis=-1).max(axis=-1, keepdims=True)

    def distances_to(self, index: NDArray[np.int64]) -> FloatArray:
        """(B, n) squared distances to the (B,) prompts."""
        return np.square(self.here - self.here[np.arange(len(index)), index][:, None, :]).sum(axis=-1)

    def nearest_labelled(self) -> FloatArray:
        """(B, n) squared distance to the nearest labelled point; infinite where none is known."""
        if not self.known.any():
            return np.full(self.here.shape[:2], np.inf)
        from_labelled = np.where(self.known[..., None], squared_distances(self.labelled, self.here), np.inf)
        return from_labelled.min(axis=1)


def squared_distances(one: FloatArray, other: FloatArray) -> FloatArray:
    """(B, a, b) squared distances of (B, a, d) and (B, b, d) points; those that rounding could have made are 0.

    >>> squared_distances(np.array([[[0.0], [1.0]]]), np.array([[[3.0]]]))
    array([[[9.],
            [4.]]])
    """
    one, other = one - other[:, :1], other - other[:, :1]  # keeps a large common part from rounding the differences
    own, others = np.square(one).sum(axis=-1), np.square(other).sum(axis=-1)
    squared = one @ (-2 * other.swapaxes(-1, -2))
    squared += own[..., None]
    squared += others[:, None, :]
    scale = np.maximum(own.max(axis=-1, initial=0.0), others.max(axis=-1, initial=0.0))
    squared[squared < ROUNDING * scale[:, None, None]] = 0.0
    return squared


def _unit(points: FloatArray) -> FloatArray:
    length = np.linalg.norm(points, axis=-1, keepdims=True)
    return points / np.where(length > 0, length, 1.0)
