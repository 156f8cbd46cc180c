"""Rules of dueling bandits: a champion, and the opponent that is worth a duel with it.

Each names one pair a prompt, which scores 1; all others score 0.
"""

from __future__ import annotations

import numpy as np

from agents.scores import FloatArray, Observation, ScoreArray
from agents.scores.intervals import bounds, interval_width
from agents.scores.picks import best, one_hot
from agents.scores.samples import joint_samples, std_against
from agents.scores.thompson import Draw, best_of_a_draw, posterior_draws


def infogain(
    observation: Observation, rng: np.random.Generator, *, draw: Draw = "joint", width: float = 1.0
) -> ScoreArray:
    """Best of one draw against the opponent whose chance is least known [AUF, arXiv 2603.09692; SEA, arXiv 2411.01493].

    ``first`` is that of :func:`~agents.scores.thompson.dts`; ``second = argmax_{j != first} sig(ub_first - lb_j) -
    sig(lb_first - ub_j)``. Equal candidates are equally likely.

    It assumes that the s of two candidates add up, as if their rewards were not correlated;
    :func:`~agents.scores.samples.sea` does not. With width 0 any opponent is as good. All pairs but the chosen score
    alike, so a budget beyond one pair a prompt is filled at random, and a smaller one is spread over the chosen pairs
    at random. The public code of [AUF] draws from intervals only, and takes the first of the opponents whose scores
    round to 0.

    Args:
        observation: with ``reward_mean``, ``reward_std`` (..., n, m), ``mask``, and for joint draws
            ``reward_samples`` (..., S, n, m).
        rng: one uniform array is drawn.
        draw: "joint" or "interval", for the first.
        width: half the interval in standard deviations, for the second, and for the first with draw="interval".

    Returns:
        (..., n, P) bool: True for the pair.

    Raises:
        ValueError: another ``draw``, a negative width, fewer than two joint draws.

    >>> belief = {"reward_mean": np.array([[0.0, 0.0, 9.0]]), "reward_std": np.array([[1.0, 0.5, 0.5]])}
    >>> infogain(belief | {"mask": np.ones((1, 3))}, np.random.default_rng(0), draw="interval")
    array([[False,  True, False]])
    """
    mask = np.asarray(observation["mask"], dtype=bool)
    m = mask.shape[-1]
    low, high = bounds(observation, width)
    draws, tie_noise = posterior_draws(observation, rng, draw, width, count=1)
    first = best_of_a_draw(draws, mask, tie_noise)  # (..., n)
    others = mask & (np.arange(m) != first[..., None])
    low_first, high_first = (np.take_along_axis(side, first[..., None], axis=-1) for side in (low, high))
    second = best(interval_width(low_first - high, high_first - low), others, tie_noise[..., 1, :])
    return one_hot(first, second, m)


def ids(observation: Observation, rng: np.random.Generator, *, width: float = 1.0, noise: float = 1.0) -> ScoreArray:
    """Information-directed sampling: the least squared regret for the information [arXiv 2105.11802].

    The greedy candidate is ``g = argmax r``. ``s_j`` is the standard deviation of ``R_g - R_j`` over the joint draws,
    ``d = max(0, max_{j != g} (r_j - r_g) + width s_j)`` what staying with g may cost, and ``c_j = r_g - r_j`` what the
    duel with j costs besides. Playing it with chance p has the ratio ``(d + p c_j)^2 / (p I_j)``, with
    ``I_j = log(1 + s_j^2 / noise^2)``. It is least at ``p = min(1, d / c_j)``, where it is ``4 d c_j / I_j`` if
    ``c_j > d`` and ``(d + c_j)^2 / I_j`` otherwise. The opponent is the j for which that is least. With d = 0 all are
    0, and it is the limit for small d: the least ``c_j / I_j``.

    It assumes that the cost of a duel is that of its responses, as for a bandit that has to show them. A label of
    preference learning costs the same whatever is shown, so it is careful without need: it stays near the best. The
    label is always spent on (g, j), whatever p is. Where no gap to g varies any opponent is as good. All pairs but the
    chosen score alike, so a budget beyond one pair a prompt is filled at random, and a smaller one is spread over the
    chosen pairs at random. The public code of [AUF, arXiv 2603.09692] multiplies by the information, adds the mean to
    the regret instead of subtracting it, compares rewards with 1/2, and shows (g, g) with chance 1 - p.

    Args:
        observation: with ``reward_mean`` (..., n, m), ``reward_samples`` (..., S, n, m) and ``mask``.
        rng: one uniform array is drawn, for ties.
        width: standard deviations by which another may be better than g; 0 trusts the means.
        noise: standard deviation of a label's noise, in units of the reward.

    Returns:
        (..., n, P) bool: True for the pair.

    Raises:
        ValueError: a negative width, a noise that is not above 0, fewer than two draws.

    >>> draws = np.array([[[2.0, 1.0, 2.0]], [[2.0, 1.0, 0.0]]])  # 1 is as good as 2, and is known
    >>> belief = {"reward_mean": np.array([[2.0, 1.0, 1.0]]), "reward_samples": draws}
    >>> ids(belief | {"mask": np.ones((1, 3))}, np.random.default_rng(0))
    array([[False,  True, False]])
    """
    if not 0 <= width < np.inf:
        raise ValueError(f"width={width} standard deviations must be 0 or more, and finite")
    if not 0 < noise < np.inf:
        raise ValueError(f"noise={noise} must be above 0, and finite")
    samples = joint_samples(observation, "ids")
    mask = np.asarray(observation["mask"], dtype=bool)
    *lead, m = mask.shape
    mean = np.where(mask, observation["reward_mean"], 0.0).astype(np.float64, copy=False)
    tie_noise = rng.random((*lead, 2, m))
    greedy = best(mean, mask, tie_noise[..., 0, :])  # (..., n)
    others = mask & (np.arange(m) != greedy[..., None])
    cost = np.take_along_axis(mean, greedy[..., None], axis=-1) - mean  # (..., n, m), 0 or more where it counts
    std = std_against(samples, greedy)
    stay = np.where(others, width * std - cost, 0.0).max(axis=-1, keepdims=True)  # 0 or more: that of g itself is 0
    ratio = least_ratio(stay, np.where(others, cost, 0.0), np.log1p((std / noise) ** 2))
    second = best(-ratio, others, tie_noise[..., 1, :])
    return one_hot(greedy, second, m)


def least_ratio(stay: FloatArray, cost: FloatArray, information: FloatArray) -> FloatArray:
    """``min_p (stay + p cost)^2 / (p information) / stay`` over p in (0, 1]; inf without information.

    Divided by ``stay``, which is the same for all opponents, so that stay = 0 has the limit for small values.

    Args:
        stay: 0 or more.
        cost: 0 or more.
        information: 0 or more.

    >>> least_ratio(np.array(1.0), np.array([0.0, 1.0, 3.0, 3.0]), np.array([1.0, 1.0, 2.0, 0.0]))
    array([ 1.,  4.,  6., inf])
    """
    always = cost <= stay  # p = 1; otherwise p = stay / cost
    share = np.divide(cost, stay, out=np.zeros(cost.shape), where=always & (stay > 0))
    least = np.where(always, (stay + cost) * (1 + share), 4 * cost)
    return np.divide(least, information, out=np.full(cost.shape, np.inf), where=information > 0)


def rucb(observation: Observation, rng: np.random.Generator, *, width: float = 1.0) -> ScoreArray:
    """Relative upper confidence bound: one that may be best against the likeliest to beat it [arXiv 1312.3393].

    ``U_ij = sig(ub_i - lb_j)`` is the optimistic chance that i beats j. The champion c is uniform among those that may
    beat everyone, ``U_ij >= 1/2`` for all j, which is ``ub_i >= lb_j``: the candidate with the highest ub is always one
    of them. The opponent is ``argmax_{j != c} U_jc``, the highest ub besides. Equal candidates are equally likely.

    It assumes that the s of two candidates add up, as if their rewards were not correlated. A bandit's rule: with a
    narrow posterior it asks about the two best again and again. With a large width all are champions, and the opponent
    is nearly always the same. All pairs but the chosen score alike, so a budget beyond one pair a prompt is filled at
    random, and a smaller one is spread over the chosen pairs at random. The public code of [AUF, arXiv 2603.09692]
    takes as champions those whose ``ub_i`` itself is above 1/2, whatever the others are, and pairs a single one with
    itself; the paper's leaning to the champion of the last round is in neither.

    Args:
        observation: with ``reward_mean`` and ``reward_std``, (..., n, m), and ``mask``.
        rng: one uniform array is drawn.
        width: half the interval, in standard deviations; 0 takes the two best means.

    Returns:
        (..., n, P) bool: True for the pair.

    Raises:
        ValueError: a negative width.

    >>> belief = {"reward_mean": np.array([[0.0, 1.0, 3.0]]), "reward_std": np.array([[1.0, 0.5, 0.0]])}
    >>> rucb(belief | {"mask": np.ones((1, 3))}, np.random.default_rng(0))
    array([[False, False,  True]])
    """
    low, high = bounds(observation, width)
    mask = np.asarray(observation["mask"], dtype=bool)
    *lead, m = mask.shape
    tie_noise = rng.random((*lead, 2, m))
    bar = np.where(mask, low, -np.inf).max(axis=-1, keepdims=True)  # its own lb is no hurdle: it is at most its ub
    champion = best(np.minimum(high - bar, 0.0), mask, tie_noise[..., 0, :])  # (..., n), 0 for all that reach the bar
    others = mask & (np.arange(m) != champion[..., None])
    return one_hot(champion, best(high, others, tie_noise[..., 1, :]), m)
