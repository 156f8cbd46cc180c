"""Scores from upper and lower confidence bounds, ``ub = r + width * s`` and ``lb = r - width * s``."""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from agents.scores import FloatArray, Observation, ScoreArray
from agents.scores.picks import best, one_hot
from prefenv.spaces import pair_mask, pair_table


def bounds(observation: Observation, width: float) -> tuple[FloatArray, FloatArray]:
    """Lower and upper bound, (..., n, m) float64 each; 0 for candidates that do not exist.

    Raises:
        ValueError: a width that is negative or not finite.

    >>> bounds({"reward_mean": np.array([[1.0]]), "reward_std": np.array([[0.5]])}, width=2.0)
    (array([[0.]]), array([[2.]]))
    """
    if not 0 <= width < np.inf:
        raise ValueError(f"width={width} standard deviations must be 0 or more, and finite")
    mean = np.asarray(observation["reward_mean"], dtype=np.float64)
    half = width * np.asarray(observation["reward_std"], dtype=np.float64)
    low, high = mean - half, mean + half
    if "mask" in observation and not (mask := np.asarray(observation["mask"], dtype=bool)).all():
        low, high = np.where(mask, low, 0.0), np.where(mask, high, 0.0)
    return low, high


def deltaucb(observation: Observation, rng: np.random.Generator, *, width: float = 1.0) -> FloatArray:
    """The most optimistic gap: ``max(ub_i - lb_j, ub_j - lb_i)`` [AUF, arXiv 2603.09692].

    The same as ``|r_i - r_j| + width (s_i + s_j)``. It ignores that the rewards of two candidates are correlated. The
    public code of [AUF] takes the first of equal gaps, and never reads its own width: it is handed bounds.

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
    low, high = bounds(observation, width)
    first, second = pair_table(low.shape[-1])
    return np.maximum(high[..., first] - low[..., second], high[..., second] - low[..., first])


def infomax(observation: Observation, rng: np.random.Generator, *, width: float = 1.0) -> FloatArray:
    """Widest interval of the preference probability: ``sig(ub_i - lb_j) - sig(lb_i - ub_j)`` [AUF, arXiv 2603.09692].

    Pure exploration: a pair whose outcome is sure scores 0 however large its gap. The public code of [AUF] rounds such
    scores to 0 and takes the first of equals; here they keep their order.

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
    low, high = bounds(observation, width)
    first, second = pair_table(low.shape[-1])
    return interval_width(low[..., first] - high[..., second], high[..., first] - low[..., second])


def interval_width(low: FloatArray, high: FloatArray) -> FloatArray:
    """``sig(high) - sig(low)`` for log-odds ``low <= high``, precise where both chances are near 0 or 1.

    >>> float(interval_width(np.array(40.0), np.array(np.inf))), float(1 - expit(40.0))
    (4.248354255291589e-18, 0.0)
    """
    return expit(high) * expit(-low) * -np.expm1(low - high)


def deltaquantile(
    observation: Observation,
    rng: np.random.Generator,
    *,
    width: float = 1.0,
    quantile: float = 0.05,
    epsilon: float = 0.0,
) -> ScoreArray:
    """A gap that is large but not the largest, and in it the most promising candidate [AUF's code, arXiv 2603.09692].

    The optimistic gaps ``ub_i - lb_j`` of a prompt's N ordered pairs, i != j, are ranked from the largest. Of the ranks
    ``int(N (quantile - epsilon))`` to ``int(N (quantile + epsilon)) - 1``, at least one, it is the pair with the
    highest ``ub_i``. Gaps equal to one in the window are in it too.

    Leaving out the very largest gaps is meant to leave out outliers of the reward model. It assumes that these are at
    most that share of the pairs; with few candidates the share is less than one pair, and it is :func:`deltaucb`. All
    pairs but the chosen score alike, so a budget beyond one pair a prompt is filled at random. The public code takes
    the first of equals, and never reads its own width: it is handed bounds.

    Args:
        observation: with ``reward_mean`` and ``reward_std``, (..., n, m), and ``mask``.
        rng: not used.
        width: half the interval, in standard deviations; 0 ranks the gaps of the means.
        quantile: the window's centre, as a share of the ordered pairs; 0 is the largest gap.
        epsilon: half the window, as a share of the ordered pairs.

    Returns:
        (..., n, P) bool: True for the pair, or for all that are equal.

    Raises:
        ValueError: a negative width; a window that is not within [0, 1]; a reward that is NaN.

    >>> belief = {"reward_mean": np.array([[0.0, 1.0, 3.0]]), "reward_std": np.array([[1.0, 0.5, 0.0]])}
    >>> deltaquantile(belief | {"mask": np.ones((1, 3))}, np.random.default_rng(0), quantile=0.2)
    array([[False, False,  True]])
    """
    if not (epsilon >= 0 and quantile - epsilon >= 0 and quantile + epsilon <= 1):
        raise ValueError(f"quantile={quantile} ± epsilon={epsilon} must be a window within [0, 1]")
    low, high = bounds(observation, width)
    mask = np.asarray(observation["mask"], dtype=bool)
    m = mask.shape[-1]
    exists = mask[..., :, None] & mask[..., None, :] & ~np.eye(m, dtype=bool)  # (..., n, m, m)
    gaps = np.where(exists, high[..., :, None] - low[..., None, :], -np.inf)
    if np.any(np.isnan(gaps)):
        raise ValueError("a gap is NaN: deltaquantile met rewards that it cannot rank")
    count = exists.sum(axis=(-2, -1))  # (..., n)
    start = np.minimum((count * (quantile - epsilon)).astype(np.int64), count - 1)
    stop = np.maximum((count * (quantile + epsilon)).astype(np.int64), start + 1)
    ranked = np.sort(gaps.reshape(*gaps.shape[:-2], m * m), axis=-1)  # upwards, so rank k is k + 1 from the end
    largest, smallest = (np.take_along_axis(ranked, m * m - rank[..., None], axis=-1) for rank in (start + 1, stop))
    within = (gaps >= smallest[..., None]) & (gaps <= largest[..., None]) & exists
    promise = np.where(within, high[..., :, None], -np.inf)
    first, second = pair_table(m)
    of_pair = np.maximum(promise[..., first, second], promise[..., second, first])
    highest = of_pair.max(axis=-1, keepdims=True)
    return np.asarray((of_pair == highest) & pair_mask(mask))


def least_confidence(observation: Observation, rng: np.random.Generator) -> FloatArray:
    """The outcome that the mean reward is least sure of: ``-|sig(r_i - r_j) - 1/2|`` [2604.02766].

    It mixes two doubts: that of not knowing the rewards, and that of a label between candidates known to be equal. A
    label of the second kind teaches nothing, and once the posterior is narrow nearly all are of it: ``reward_std`` is
    not read. A budget goes to the closest pairs of the pool.

    Args:
        observation: with ``reward_mean`` (..., n, m).
        rng: not used.

    Returns:
        (..., n, P) in [-1/2, 0].

    >>> least_confidence({"reward_mean": np.array([[0.0, 1.0, 3.0]])}, np.random.default_rng(0)).round(3)
    array([[-0.231, -0.453, -0.381]])
    """
    mean = np.asarray(observation["reward_mean"], dtype=np.float64)
    first, second = pair_table(mean.shape[-1])
    return -0.5 * np.tanh(np.abs(mean[..., first] - mean[..., second]) / 2)


def maxminlcb(observation: Observation, rng: np.random.Generator, *, width: float = 1.0) -> ScoreArray:
    """The candidate whose worst lower bound is best, against the opponent that makes it so.

    ``lcb_ij = (r_i - r_j) - width (s_i + s_j)``; ``first = argmax_i min_{j != i} lcb_ij``, and ``second`` is that j
    [MaxMinLCB, arXiv 2406.16745; AUF, arXiv 2603.09692]. Equal candidates are equally likely.

    It assumes that the s of two candidates add up, as if their rewards were not correlated. A bandit's rule: it looks
    for the best candidate, so both are good, and the label says little about what is bad. With a large width it falls
    for candidates that are sure. All pairs but the chosen score alike, so a budget beyond one pair a prompt is filled
    at random. The public code of [AUF] first leaves out candidates that cannot be best, and once one is left out it
    takes candidate 0 instead, or the last one left against itself; here all stay.

    Args:
        observation: with ``reward_mean`` and ``reward_std``, (..., n, m), and ``mask``.
        rng: one uniform array is drawn, for ties.
        width: half the interval, in standard deviations; 0 takes the two best means.

    Returns:
        (..., n, P) bool: True for the pair.

    Raises:
        ValueError: a negative width.

    >>> belief = {"reward_mean": np.array([[0.0, 1.0, 3.0]]), "reward_std": np.array([[1.0, 0.5, 0.0]])}
    >>> maxminlcb(belief | {"mask": np.ones((1, 3))}, np.random.default_rng(0))
    array([[False, False,  True]])
    """
    low, high = bounds(observation, width)
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
