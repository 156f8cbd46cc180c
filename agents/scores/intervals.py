"""Scores from upper and lower confidence bounds, ``ub = r + width * s`` and ``lb = r - width * s``."""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from agents.scores import FloatArray, Observation
from agents.scores.picks import best, one_hot
from prefenv.spaces import pair_table


def _bounds(observation: Observation, width: float) -> tuple[FloatArray, FloatArray]:
    """Lower and upper bound, (..., n, m) float64 each."""
    if not 0 <= width < np.inf:
        raise ValueError(f"width={width} standard deviations must be 0 or more, and finite")
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


def maxminlcb(observation: Observation, rng: np.random.Generator, *, width: float = 1.0) -> FloatArray:
    """The candidate whose worst lower bound is best, against the opponent that makes it so.

    ``lcb_ij = (r_i - r_j) - width (s_i + s_j)``; ``first = argmax_i min_{j != i} lcb_ij``, and ``second`` is that j
    [MaxMinLCB, arXiv 2406.16745; AUF, arXiv 2603.09692]. Equal candidates are equally likely.

    It assumes that the s of two candidates add up, as if their rewards were not correlated. A bandit's rule: it looks
    for the best candidate, so both are good, and the label says little about what is bad. With a large width it falls
    for candidates that are sure. All pairs but the chosen score alike, so a budget beyond one pair a prompt is filled
    at random. The public code of [AUF] first leaves out candidates that cannot be best; here all stay.

    Args:
        observation: with ``reward_mean`` and ``reward_std``, (..., n, m), and ``mask``.
        rng: one uniform array is drawn, for ties.
        width: half the interval, in standard deviations; 0 takes the two best means.

    Returns:
        (..., n, P): 1 for the pair, 0 for the others.

    Raises:
        ValueError: a negative width.

    >>> belief = {"reward_mean": np.array([[0.0, 1.0, 3.0]]), "reward_std": np.array([[1.0, 0.5, 0.0]])}
    >>> maxminlcb(belief | {"mask": np.ones((1, 3))}, np.random.default_rng(0))
    array([[0., 0., 1.]])
    """
    low, high = _bounds(observation, width)
    mask = np.asarray(observation["mask"], dtype=bool)
    *lead, m = mask.shape
    tie_noise = rng.random((*lead, 2, m))
    opponents = mask[..., None, :] & ~np.eye(m, dtype=bool)  # (..., n, m, m)
    lcb = np.where(opponents, low[..., :, None] - high[..., None, :], np.inf)
    first = best(lcb.min(axis=-1), mask, tie_noise[..., 0, :])  # (..., n)
    row = first[..., None, None]
    others = np.take_along_axis(opponents, row, axis=-2)[..., 0, :]
    second = best(-np.take_along_axis(lcb, row, axis=-2)[..., 0, :], others, tie_noise[..., 1, :])
    return one_hot(first, second, m)
