"""Scores from upper and lower confidence bounds, ``ub = r + width * s`` and ``lb = r - width * s``."""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from agents.scores import FloatArray, Observation
from prefenv.spaces import pair_table


def _bounds(observation: Observation, width: float) -> tuple[FloatArray, FloatArray]:
    """Lower and upper bound, (..., n, m) float64 each."""
    if not width >= 0:
        raise ValueError(f"width={width} standard deviations must be 0 or more")
    mean = np.asarray(observation["reward_mean"], dtype=np.float64)
    half = width * np.asarray(observation["reward_std"], dtype=np.float64)
    return mean - half, mean + half


def deltaucb(observation: Observation, rng: np.random.Generator, *, width: float = 1.0) -> FloatArray:
    """The most optimistic gap: ``max(ub_i - lb_j, ub_j - lb_i)`` [AUF, arXiv 2603.09692].

    The same as ``|r_i - r_j| + width (s_i + s_j)``. It ignores that the rewards of two candidates are correlated.

    Args:
        observation: with ``reward_mean`` and ``reward_std``, (..., n, m).
        rng: not used.
        width: half the interval, in standard deviations; 0 is the gap of the means.

    Returns:
        (..., n, P).

    >>> belief = {"reward_mean": np.array([[0.0, 1.0, 3.0]]), "reward_std": np.array([[1.0, 0.5, 0.0]])}
    >>> deltaucb(belief, np.random.default_rng(0))
    array([[2.5, 4. , 2.5]])
    """
    low, high = _bounds(observation, width)
    first, second = pair_table(low.shape[-1])
    return np.maximum(high[..., first] - low[..., second], high[..., second] - low[..., first])


def infomax(observation: Observation, rng: np.random.Generator, *, width: float = 1.0) -> FloatArray:
    """Widest interval of the preference probability: ``sig(ub_i - lb_j) - sig(lb_i - ub_j)`` [AUF, arXiv 2603.09692].

    Pure exploration: a pair whose outcome is sure scores 0 however large its gap.

    Args:
        observation: with ``reward_mean`` and ``reward_std``, (..., n, m).
        rng: not used.
        width: half the interval, in standard deviations; 0 makes all pairs equal.

    Returns:
        (..., n, P) in [0, 1].

    >>> belief = {"reward_mean": np.array([[0.0, 1.0, 3.0]]), "reward_std": np.array([[1.0, 0.5, 0.0]])}
    >>> infomax(belief, np.random.default_rng(0)).round(3)
    array([[0.547, 0.101, 0.107]])
    """
    low, high = _bounds(observation, width)
    first, second = pair_table(low.shape[-1])
    return expit(high[..., first] - low[..., second]) - expit(low[..., first] - high[..., second])
