"""Observation and action spaces, and the one numbering of pairs: pair index ↔ (i, j).

Pairs of m candidates are numbered in lexicographic order of (i, j), i < j: (0, 1), (0, 2), …, (m-2, m-1).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from gymnasium import spaces

from prefenv.types import BoolArray, IntArray


def n_pairs(m: int) -> int:
    """P = m (m - 1) / 2.

    >>> n_pairs(4)
    6
    """
    return m * (m - 1) // 2


@lru_cache(maxsize=64)
def pair_table(m: int) -> tuple[IntArray, IntArray]:
    """The two candidates of every pair: i (P,) int64 and j (P,) int64, read-only.

    >>> i, j = pair_table(3)
    >>> list(zip(i.tolist(), j.tolist()))
    [(0, 1), (0, 2), (1, 2)]

    Raises:
        ValueError: m < 2, so that there is no pair.
    """
    if m < 2:
        raise ValueError(f"m={m} candidates make no pair: at least 2 are needed")
    first, second = (index.astype(np.int64) for index in np.triu_indices(m, 1))
    first.flags.writeable = second.flags.writeable = False
    return first, second


def pair_index(i: IntArray | int, j: IntArray | int, m: int) -> IntArray:
    """Index of the pair {i, j}, in either order, element by element.

    >>> pair_index(2, 0, m=3)
    array(1)

    Raises:
        ValueError: i = j somewhere, or a candidate outside 0 … m-1.
    """
    i, j = np.asarray(i), np.asarray(j)
    index = None
    if min(i.min(initial=0), j.min(initial=0)) >= 0 and max(i.max(initial=0), j.max(initial=0)) < m:
        index = _index_table(m)[i, j]
    if index is None or (index < 0).any():
        raise ValueError(f"a pair needs two different candidates in 0 … {m - 1}")
    return np.asarray(index)


@lru_cache(maxsize=64)
def _index_table(m: int) -> IntArray:
    """(m, m) int64: the index of the pair {i, j}; -1 where i = j."""
    table = np.full((m, m), -1, dtype=np.int64)
    first, second = pair_table(m)
    table[first, second] = table[second, first] = np.arange(n_pairs(m))
    table.flags.writeable = False
    return table


def pair_mask(mask: np.ndarray) -> BoolArray:
    """(..., n, P) bool: both candidates exist, from the (..., n, m) mask of a pool.

    >>> pair_mask(np.array([[1, 0, 1]]))
    array([[False,  True, False]])
    """
    present = np.asarray(mask, dtype=bool)
    if present.all():
        return np.ones((*present.shape[:-1], n_pairs(present.shape[-1])), dtype=np.bool_)
    first, second = pair_table(present.shape[-1])
    return present[..., first] & present[..., second]


def observation_space(
    n: int, m: int, d: int, n_samples: int, *, selected: bool = False, privileged: bool = False, gain: bool = False
) -> spaces.Dict:
    """The flat Dict of DESIGN: float32 boxes, and the candidates' ``mask``.

    Args:
        n: prompts.
        m: candidates a prompt.
        d: embedding size.
        n_samples: S, joint posterior draws.
        selected: with the (n·P,) pairs already selected for this round.
        privileged: with the (n, m) ``oracle_score``.
        gain: with the (n, P) ``oracle_gain``.
    """

    def box(*shape: int, low: float = -np.inf, high: float = np.inf) -> spaces.Box:
        return spaces.Box(low, high, shape=shape, dtype=np.float32)

    entries: dict[str, spaces.Space] = {
        "embedding": box(n, m, d),
        "reward_mean": box(n, m),
        "reward_std": box(n, m, low=0.0),
        "reward_samples": box(n_samples, n, m),
        "logprob": box(n, m),
        "length": box(n, m, low=0.0),
        "implicit_reward": box(n, m),
        "entropy": box(n),
        "generator": box(n, m, low=0.0),
        "mask": spaces.MultiBinary([n, m]),
        "budget": box(1, low=0.0, high=1.0),
    }
    if selected:
        entries["selected"] = box(n * n_pairs(m), low=0.0, high=1.0)
    if privileged:
        entries["oracle_score"] = box(n, m)
    if gain:
        entries["oracle_gain"] = box(n, n_pairs(m))
    return spaces.Dict(entries)


def per_prompt_space(n: int, m: int) -> spaces.MultiDiscrete:
    """One pair for each prompt: ``MultiDiscrete([P] * n)``."""
    return spaces.MultiDiscrete(np.full(n, n_pairs(m), dtype=np.int64))


def budget_space(n: int, m: int, k: int) -> spaces.MultiDiscrete:
    """K pairs anywhere in the pool: ``MultiDiscrete([n·P] * k)``; index = prompt · P + pair."""
    return spaces.MultiDiscrete(np.full(k, n * n_pairs(m), dtype=np.int64))


def sequential_space(n: int, m: int) -> spaces.Discrete:
    """One pair anywhere in the pool: ``Discrete(n·P)``."""
    return spaces.Discrete(n * n_pairs(m))
