"""Rules that spread the labelled prompts over the space of embeddings.

They choose among prompts, which stand where :mod:`agents.scores.points` says; in the per-prompt form only their pair
score matters.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agents.scores import FloatArray, Observation, Plan
from agents.scores.points import ROUNDING, Points
from agents.scores.policy import pair_score
from agents.scores.prompts import Taken, first_pairs, kept_then_margin, own_margin
from prefenv.types import whole_number

IntArray = NDArray[np.int64]

SAME_DISTANCE = 9  # decimals, in units of the largest squared distance: closer distances are equal


def coreset(observation: Observation, rng: np.random.Generator, plan: Plan, *, pair: str = "random") -> FloatArray:
    """Greedy k-centre: the prompt farthest from all that is labelled or picked [arXiv 1708.00489; 2604.02766].

    ``argmax_x min_c |x - c|`` over the pairs c labelled in this episode and those picked so far. With nothing labelled
    the first is random. It assumes that near prompts teach the same. It fails where outliers are many or mean nothing:
    it takes these first. The public code compares one drawn pair of each prompt in a random part of the
    pool, drawn with the same seed in every round; here the whole pool competes, and ``pair`` chooses.

    Args:
        observation: with ``embedding`` (..., n, m, d), ``mask``, what the pair score needs, and in the sequential form
            ``selected``: a prompt with a selected pair has had its first.
        rng: one uniform array is drawn, for ties.
        plan: k labels, and what the episode has labelled.
        pair: what chooses the pair inside a prompt, a key of :data:`~agents.scores.policy.PAIR_SCORES`.

    Returns:
        (..., n, P): the pair of the prompt taken t-th, t from 0, scores 1 + k - t; those of prompts that are not taken
        score 1, and all other pairs less than 1.

    Raises:
        ValueError: ``pair`` is no pair score.

    >>> shown = {"embedding": np.array([[[0.0], [0]], [[1], [1]], [[9], [9]]]), "mask": np.ones((3, 2))}
    >>> coreset(shown, np.random.default_rng(0), Plan.at_start(2, d=1)).ravel()  # the first is random
    array([2., 1., 3.])
    """
    firsts = first_pairs(observation, rng, plan, pair_score(pair))
    if plan.each_prompt:
        return firsts.score()
    points = Points.of(observation, firsts, plan)
    nearest, equal = points.nearest_labelled(), ROUNDING * points.spread()
    taken = Taken(firsts, min(plan.labels, nearest.shape[1]))
    for _ in range(taken.count):
        nearest = np.minimum(nearest, points.distances_to(taken.best(nearest, equal)))
    return firsts.score(taken.place)


def kmeans(
    observation: Observation, rng: np.random.Generator, plan: Plan, *, pair: str = "random", iterations: int = 20
) -> FloatArray:
    """The prompt nearest to each of k cluster centres [k-means++, Arthur & Vassilvitskii 2007; arXiv 2604.02766].

    k-means++ seeds and Lloyd's steps; of each cluster the member nearest to its mean comes first. A cluster that runs
    empty has none, and prompts at random fill up; so they do where k is n or more. It assumes that the pool has about k
    groups worth one label each, and it fails where k is large against what is to be found: clusters of two are a coin
    flip. It does not see what was labelled before. In the sequential form k is 1, and it takes the most central of the
    prompts left. The public code clusters the two embeddings side by side, so that it matters which response is first;
    here a pair is its midpoint.

    Args:
        observation: as in :func:`coreset`.
        rng: one uniform array is drawn, for seeds and ties.
        plan: k labels.
        pair: as in :func:`coreset`.
        iterations: Lloyd's steps at most; it stops when no prompt changes its cluster.

    Returns:
        (..., n, P): the pairs of the prompts taken score 2, those of other prompts 1, and all other pairs less than 1.

    Raises:
        ValueError: ``pair`` is no pair score, ``iterations`` no whole number of at least 1.

    >>> shown = {"embedding": np.array([[[0.0], [0]], [[1], [1]], [[3], [3]]]), "mask": np.ones((3, 2))}
    >>> kmeans(shown, np.random.default_rng(0), Plan.at_start(1, d=1)).ravel()  # 1 is nearest to 4 / 3
    array([1., 2., 1.])
    """
    whole_number("iterations", iterations)
    firsts = first_pairs(observation, rng, plan, pair_score(pair), columns=2)
    if plan.each_prompt or plan.labels >= firsts.pair.shape[1]:
        return firsts.score()
    points = Points.of(observation, firsts, plan)
    nearest = np.full(firsts.pair.shape, np.inf)
    seeds = _drawn(points, nearest, np.ones_like(nearest), Taken(firsts, plan.labels), firsts.noise[..., 1])
    cluster, own = _lloyd(points.here, seeds, firsts.is_open, iterations)
    spread = points.spread()
    own = np.round(own / np.where(spread > 0, spread, 1.0), SAME_DISTANCE)
    return firsts.score(_first_of_each(np.where(firsts.is_open, cluster, plan.labels), own, firsts.noise[..., 0]))


def div_reward(
    observation: Observation,
    rng: np.random.Generator,
    plan: Plan,
    *,
    pair: str = "margin",
    gamma: float = 0.5,
    oversample: int = 2,
) -> FloatArray:
    """Weighted k-means++ draws, and of these the largest margins first [Random Is Hard to Beat, arXiv 2604.02766].

    ``oversample k`` prompts are drawn one after the other with chances ``(D w^gamma)^2``: D is the distance to the
    nearest drawn or labelled one, ``w = |h_i - h_j|`` of the prompt's pair. With nothing labelled the first is drawn by
    w alone; where all margins are 0, by D alone. It assumes what :func:`~agents.scores.policy.margin` does, and that
    near prompts teach the same.

    The public code draws k, so that its ranking by margin has nothing to leave out: that is ``oversample=1``. It begins
    with the point of the largest norm, and with labels it measures D to these only, not to what it has drawn.

    Args:
        observation: as in :func:`coreset`, with ``implicit_reward`` (..., n, m).
        rng: one uniform array is drawn.
        plan: as in :func:`coreset`.
        pair: as in :func:`coreset`.
        gamma: how much the margin counts, 0 or more; 0 is plain k-means++.
        oversample: prompts drawn for each label.

    Returns:
        (..., n, P): the pairs of the prompts drawn score 4 to 5, those of other prompts 2 to 3, both by margin, and all
        other pairs less than 1.

    Raises:
        ValueError: a setting that cannot be.

    >>> shown = {"embedding": np.zeros((3, 2, 1)), "implicit_reward": np.array([[0.0, 4.0], [0, 0], [0, 2]])}
    >>> plan = Plan.at_start(1, d=1)
    >>> div_reward(shown | {"mask": np.ones((3, 2))}, np.random.default_rng(0), plan, oversample=1).ravel()
    array([5. , 2. , 2.5])
    """
    if not 0 <= gamma < np.inf:
        raise ValueError(f"gamma={gamma} must be 0 or more, and finite")
    whole_number("oversample", oversample)
    firsts = first_pairs(observation, rng, plan, pair_score(pair), columns=2)
    if plan.each_prompt:
        return firsts.score()
    points = Points.of(observation, firsts, plan)
    margins = own_margin(observation, firsts)
    largest = margins.max(axis=-1, keepdims=True)
    weight = np.where(largest > 0, margins / np.where(largest > 0, largest, 1.0), 1.0) ** (2 * gamma)
    drawn = Taken(firsts, min(oversample * plan.labels, weight.shape[1]))
    _drawn(points, points.nearest_labelled(), weight, drawn, firsts.noise[..., 1])
    return firsts.score(kept_then_margin(observation, firsts, drawn.place > 0))


def _drawn(points: Points, nearest: FloatArray, weight: FloatArray, taken: Taken, uniform: FloatArray) -> IntArray:
    """(B, count) prompts drawn with chances ``D^2 weight``; D^2 begins as ``nearest`` (B, n), 1 where infinite."""
    drawn = np.zeros((len(nearest), taken.count), dtype=np.int64)
    for step in range(taken.count):
        chance = np.where(np.isinf(nearest), 1.0, nearest) * weight
        drawn[:, step] = taken.drawn(chance, uniform[:, step])
        nearest = np.minimum(nearest, points.distances_to(drawn[:, step]))
    return drawn


def _lloyd(
    points: FloatArray, seeds: IntArray, counted: NDArray[np.bool_], iterations: int
) -> tuple[IntArray, FloatArray]:
    """(B, n) cluster of each point, and its squared distance to the mean of that cluster.

    Args:
        points: (B, n, d).
        seeds: (B, k) points that are the first centres.
        counted: (B, n); others belong to clusters, but have no part in the means.
        iterations: at most.
    """
    points = points - points[:, :1]
    centres = np.take_along_axis(points, seeds[..., None], axis=1)
    cluster = np.full(points.shape[:2], -1)
    for _ in range(iterations):
        squared = np.square(centres).sum(axis=-1)[:, None, :] - 2 * (points @ centres.swapaxes(-1, -2))  # less |x|^2
        previous, cluster = cluster, squared.argmin(axis=-1)
        if np.array_equal(cluster, previous):
            break
        member = ((cluster[..., None] == np.arange(seeds.shape[1])) & counted[..., None]).astype(np.float64)
        size = member.sum(axis=1)[..., None]
        centres = np.where(size > 0, member.swapaxes(-1, -2) @ points / np.maximum(size, 1.0), centres)
    own = np.take_along_axis(centres, cluster[..., None], axis=1)
    return cluster, np.square(points - own).sum(axis=-1)


def _first_of_each(cluster: IntArray, distance: FloatArray, noise: FloatArray) -> FloatArray:
    """(B, n): 1 for the point with the least distance of each cluster, the one with the least noise of equal ones."""
    order = np.lexsort((noise, distance, cluster), axis=-1)  # the last key counts first
    sorted_ = np.take_along_axis(cluster, order, axis=-1)
    is_first = np.concatenate([np.ones_like(sorted_[:, :1]), sorted_[:, 1:] != sorted_[:, :-1]], axis=-1)
    first = np.zeros(cluster.shape)
    np.put_along_axis(first, order, is_first.astype(np.float64), axis=-1)
    return first
