"""What all rules that choose prompts share: the pair of each prompt, and scores from an order of the prompts.

A rule is a :class:`~agents.scores.Design`. A pair score names the best pair of every prompt; the rule says in which
order the prompts are taken. Inside a rule the leading axes of an observation are one axis B, of length 1 where there
are none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.scores import FloatArray, Observation, Plan, Score
from agents.scores.picks import best
from agents.select import legal_pairs
from prefenv.spaces import pair_table

IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Firsts:
    """The pair of every prompt that is labelled first, if the prompt is taken at all.

    Attributes:
        lead: the leading axes of the observation; B is their product.
        pair: (B, n) int64, best legal pair by the pair score; equal ones are spread.
        is_open: (B, n) bool; False where a pair of the prompt is selected already this round: it has had its first.
        others: (B, n, P) in [0, 1), in the order of the pair score.
        noise: (B, n, columns) float64, uniform: the rule's own draws.
    """

    lead: tuple[int, ...]
    pair: IntArray
    is_open: NDArray[np.bool_]
    others: FloatArray
    noise: FloatArray

    def score(self, order: FloatArray | float = 0.0) -> FloatArray:
        """(..., n, P): the first pair of an open prompt scores 1 + order, any other pair as ``others`` says.

        Args:
            order: (B, n), 0 or more, larger first; a number where the rule has nothing to choose.
        """
        is_first = (np.arange(self.others.shape[-1]) == self.pair[..., None]) & self.is_open[..., None]
        first = np.broadcast_to(1.0 + np.asarray(order), self.pair.shape)[..., None]
        return np.where(is_first, first, self.others).reshape(*self.lead, *self.others.shape[1:])

    def of_pair(self, values: NDArray[np.generic]) -> FloatArray:
        """(B, n, 2, …) float64: the values (..., n, m, …) of the two candidates of each prompt's pair."""
        n, m = self.others.shape[1], values.shape[len(self.lead) + 1]
        rest = values.shape[len(self.lead) + 2 :]
        values = np.asarray(values, dtype=np.float64).reshape(-1, n, m, *rest)
        first, second = pair_table(m)
        where = np.stack([first[self.pair], second[self.pair]], axis=-1)
        return np.take_along_axis(values, where.reshape(*where.shape, *(1 for _ in rest)), axis=2)


def first_pairs(
    observation: Observation, rng: np.random.Generator, plan: Plan, score: Score, columns: int = 1
) -> Firsts:
    """The pair of every prompt, by a pair score.

    Args:
        observation: what the pair score needs, ``mask``, and in the sequential form ``selected``.
        rng: one uniform array is drawn.
        plan: its ``pair_rng`` is for the pair score.
        score: the pair score.
        columns: draws for each prompt that the rule itself needs.
    """
    legal = legal_pairs(observation)
    *lead, n, pairs = legal.shape
    values = np.asarray(score(observation, plan.pair_rng), dtype=np.float64).reshape(-1, n, pairs)
    noise = rng.random((*lead, n, columns + pairs)).reshape(-1, n, columns + pairs)
    legal = legal.reshape(values.shape)
    selected = np.asarray(observation.get("selected", np.zeros(values.shape)), dtype=bool).reshape(values.shape)
    is_open = np.asarray(legal.any(axis=-1) & ~selected.any(axis=-1))
    chosen = best(values, legal, noise[..., columns:])
    return Firsts(tuple(lead), chosen, is_open, _below_one(values, legal), noise[..., :columns])


def unit_range(values: FloatArray) -> FloatArray:
    """(B, n) in [0, 1], in the order of the (B, n) values; 0 where all are equal.

    >>> unit_range(np.array([[2.0, 4.0, 3.0]]))
    array([[0. , 1. , 0.5]])
    """
    low, high = values.min(axis=-1, keepdims=True), values.max(axis=-1, keepdims=True)
    return (values - low) / np.where(high > low, high - low, 1.0)


def _below_one(values: FloatArray, legal: NDArray[np.bool_]) -> FloatArray:
    low = np.where(legal, values, np.inf).min(axis=(-2, -1), keepdims=True)
    high = np.where(legal, values, -np.inf).max(axis=(-2, -1), keepdims=True)
    return np.where(legal, values - low, 0.0) / np.where(high > low, 2 * (high - low), 1.0)


def highest(values: FloatArray, count: int, tie_noise: FloatArray) -> NDArray[np.bool_]:
    """(..., n) bool: the ``count`` largest of (..., n) values; of equal ones those with the most noise.

    >>> highest(np.array([3.0, 1.0, 3.0]), 1, np.array([0.2, 0.9, 0.1]))
    array([ True, False, False])
    """
    order = np.lexsort((tie_noise, values), axis=-1)  # the last key counts first
    is_highest = np.zeros(values.shape, dtype=bool)
    np.put_along_axis(is_highest, order[..., values.shape[-1] - count :], True, axis=-1)
    return is_highest


def kept_then_margin(observation: Observation, firsts: Firsts, kept: NDArray[np.bool_]) -> FloatArray:
    """(B, n) order: the kept prompts first, and among them and among the others by the margin of their pairs.

    ``1 + 2 kept + margin / (largest margin of the pool)``, with the margin ``|h_i - h_j|`` of the prompt's own pair.
    """
    margins = own_margin(observation, firsts)
    largest = margins.max(axis=-1, keepdims=True)
    return 1 + 2 * kept + margins / np.where(largest > 0, largest, 1.0)


def own_margin(observation: Observation, firsts: Firsts) -> FloatArray:
    """(B, n) ``|h_i - h_j|`` of each prompt's pair; 0 where the prompt is not open."""
    implicit = firsts.of_pair(observation["implicit_reward"])
    return np.where(firsts.is_open, np.abs(implicit[..., 0] - implicit[..., 1]), 0.0)


class Taken:
    """The prompts that a rule takes one after the other, in each of B worlds.

    Args:
        firsts: only open prompts are taken; of equal ones that with the most of the first column of noise.
        count: how many are taken.

    Attributes:
        count: as given.
        place: (B, n) float64: count for the prompt taken first, then one less each; 0 for those not taken.
        available: (B, n) bool.
    """

    def __init__(self, firsts: Firsts, count: int) -> None:
        self.count = count
        self.place = np.zeros(firsts.pair.shape)
        self.available = firsts.is_open.copy()
        self._noise = firsts.noise[..., 0]
        self._rows = np.arange(len(self.place))
        self._left = count

    def best(self, values: FloatArray, tolerance: FloatArray | float) -> IntArray:
        """(B,) int64: take the prompt with the largest of the (B, n) values.

        Args:
            values: not NaN.
            tolerance: (B, 1) or a number; values this close to the largest count as equal to it.
        """
        values = np.where(self.available, values, -np.inf)
        tied = (values >= values.max(axis=-1, keepdims=True) - tolerance) & self.available
        return self._take(np.where(tied, self._noise, -1.0).argmax(axis=-1))

    def drawn(self, chance: FloatArray, uniform: FloatArray) -> IntArray:
        """(B,) int64: take a prompt with these chances; where all are 0, any one.

        Args:
            chance: (B, n), 0 or more; need not sum to 1.
            uniform: (B,) draws from [0, 1).
        """
        chance = np.where(self.available, chance, 0.0)
        below = np.cumsum(np.where(chance.any(axis=-1, keepdims=True), chance, self.available), axis=-1)
        total = below[:, -1:]
        reach = np.minimum(uniform[:, None] * total, np.nextafter(total, 0.0))
        return self._take((below > reach).argmax(axis=-1))

    def _take(self, index: IntArray) -> IntArray:
        is_new = self.available[self._rows, index]  # False only where a world has none left
        self.place[self._rows[is_new], index[is_new]] = self._left
        self.available[self._rows, index] = False
        self._left -= 1
        return index
