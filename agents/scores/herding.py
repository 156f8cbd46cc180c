"""Herdings: rules that take the prompts whose labels would cover the pool best.

A prompt stands where :mod:`agents.scores.points` says, scaled to length 1, and covers another by the kernel
``k(x, y) = exp(-(|x - y| / bandwidth)^2)``. In the per-prompt form only the pair score of a rule matters.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agents.scores import FloatArray, Observation, Plan
from agents.scores.points import Points, squared_distances
from agents.scores.policy import pair_score
from agents.scores.prompts import Taken, first_pairs, kept_then_margin
from prefenv.types import whole_number

IntArray = NDArray[np.int64]

SAME_GAIN = 1e-12  # of a coverage, which is at most 1: closer gains are equal
SAME_COVERAGE = 1e-9  # the same where a matrix close to a singular one was inverted
NARROWEST = 1e-6  # bandwidth: below it float64 cannot tell a distance from its rounding
JITTER = 1e-6  # on the diagonal of a kernel matrix, as in the public code


def max_herding(
    observation: Observation, rng: np.random.Generator, plan: Plan, *, pair: str = "random", bandwidth: float = 1.0
) -> FloatArray:
    """Greedy coverage of the pool: each pick z has the largest ``mean_x max(k(x, z) - c(x), 0)`` [arXiv 2407.12212].

    ``k(x, y) = exp(-(|x - y| / bandwidth)^2)`` between points of unit length, and ``c(x)``, the coverage, is the
    largest k of x and anything labelled or picked. It assumes that a label tells about what lies within a bandwidth. It
    fails where the embedding does not know which prompts are alike, and with a bandwidth far from the distances at
    hand: all prompts then cover as much.

    Source: MaxHerding; Random Is Hard to Beat, arXiv 2604.02766. The public code of the latter never updates c as it
    picks, so it takes the k largest of one score, near duplicates too: only its first pick is ours.

    Args:
        observation: as in :func:`coreset`.
        rng: one uniform array is drawn, for ties.
        plan: as in :func:`coreset`.
        pair: as in :func:`coreset`.
        bandwidth: distance between points of unit length, at least 1e-6.

    Returns:
        As :func:`~agents.scores.coverage.coreset`.

    Raises:
        ValueError: a setting that cannot be.

    >>> embedding = np.array([[[1.0, 0], [1, 0]], [[1, 1], [1, 1]], [[0, 1], [0, 1]]])
    >>> shown = {"embedding": embedding, "mask": np.ones((3, 2))}
    >>> max_herding(shown, np.random.default_rng(0), Plan.at_start(1, d=2)).ravel()
    array([1., 2., 1.])
    """
    firsts = first_pairs(observation, rng, plan, pair_score(pair))
    _check_bandwidth(bandwidth)
    if plan.each_prompt:
        return firsts.score()
    taken = Taken(firsts, min(plan.labels, firsts.pair.shape[1]))
    _herd(Points.of(observation, firsts, plan), firsts.is_open.astype(np.float64), taken, bandwidth)
    return firsts.score(taken.place)


def u_herding(
    observation: Observation,
    rng: np.random.Generator,
    plan: Plan,
    *,
    pair: str = "margin",
    bandwidth: float = 1.0,
    oversample: int = 2,
) -> FloatArray:
    """Coverage of uncertain prompts, and of those that cover best the largest margin [arXiv 2412.20644; 2604.02766].

    As :func:`max_herding`, but x counts ``max(H(x), 0)`` times in the mean, with H the policy's entropy; ``oversample
    k`` prompts are picked so, and of these come first those whose pair has the largest margin. It assumes that entropy
    tells where the policy has something to learn, and what :func:`max_herding` and :func:`~agents.scores.policy.margin`
    assume. Where no entropy is above 0 all prompts cover as much.

    The public code picks half of a random part of the pool, however few labels are asked for, and never updates the
    coverage; its entropy grows with length, as :func:`~agents.scores.policy.entropy` says.

    Args:
        observation: as in :func:`coreset`, with ``entropy`` (..., n) and ``implicit_reward`` (..., n, m).
        rng: one uniform array is drawn, for ties.
        plan: as in :func:`coreset`.
        pair: as in :func:`coreset`.
        bandwidth: as in :func:`max_herding`.
        oversample: prompts picked for each label.

    Returns:
        As :func:`~agents.scores.coverage.div_reward`.

    Raises:
        ValueError: a setting that cannot be.

    >>> shown = {"embedding": np.array([[[1.0, 0], [1, 0]], [[0, 1], [0, 1]]]), "entropy": np.array([0.1, 0.9])}
    >>> shown |= {"implicit_reward": np.array([[0.0, 2], [0, 1]]), "mask": np.ones((2, 2))}
    >>> u_herding(shown, np.random.default_rng(0), Plan.at_start(1, d=2), oversample=1).ravel()
    array([3. , 4.5])
    """
    firsts = first_pairs(observation, rng, plan, pair_score(pair))
    _check_bandwidth(bandwidth)
    whole_number("oversample", oversample)
    if plan.each_prompt:
        return firsts.score()
    taken = Taken(firsts, min(oversample * plan.labels, firsts.pair.shape[1]))
    uncertain = np.maximum(np.asarray(observation["entropy"], dtype=np.float64).reshape(firsts.pair.shape), 0.0)
    _herd(Points.of(observation, firsts, plan), uncertain * firsts.is_open, taken, bandwidth)
    return firsts.score(kept_then_margin(observation, firsts, taken.place > 0))


def knn_herding(
    observation: Observation,
    rng: np.random.Generator,
    plan: Plan,
    *,
    pair: str = "random",
    bandwidth: float = 1.0,
    neighbours: int = 3,
) -> FloatArray:
    """Coverage by several neighbours together: each pick z has the largest ``mean_x s_x(N_x(z))`` [arXiv 2604.02766].

    ``s_x(N) = sqrt(k_xN' (K_NN + 1e-6 I)^-1 k_xN)`` is the share of x that a Gaussian process with kernel k knows from
    N, and ``N_x(z)`` are the ``neighbours`` points nearest to x among the labelled, the picked and z. Where
    :func:`max_herding` counts the nearest point only, two points on either side of x cover it better than one. It
    assumes the same, and fails as it does. With one neighbour it is :func:`max_herding`, but for the 1e-6.

    This is what the public code computes, there for a random part of the pool and for labelled points among the x too,
    which all z cover alike. Here only the x whose neighbours a pick changes are computed again, each by the
    inverse of its nearest neighbours' matrix bordered by z.

    Args:
        observation: as in :func:`max_herding`.
        rng: one uniform array is drawn, for ties.
        plan: as in :func:`max_herding`.
        pair: as in :func:`max_herding`.
        bandwidth: as in :func:`max_herding`.
        neighbours: of each point, at least 1. Memory grows as n^2 neighbours.

    Returns:
        As :func:`~agents.scores.coverage.coreset`.

    Raises:
        ValueError: a setting that cannot be.

    >>> embedding = np.array([[[1.0, 0], [1, 0]], [[1, 1], [1, 1]], [[0, 1], [0, 1]]])
    >>> shown = {"embedding": embedding, "mask": np.ones((3, 2))}
    >>> knn_herding(shown, np.random.default_rng(0), Plan.at_start(1, d=2)).ravel()
    array([1., 2., 1.])
    """
    firsts = first_pairs(observation, rng, plan, pair_score(pair))
    _check_bandwidth(bandwidth)
    whole_number("neighbours", neighbours)
    if plan.each_prompt:
        return firsts.score()
    points = Points.of(observation, firsts, plan).of_unit_length()
    taken = Taken(firsts, min(plan.labels, firsts.pair.shape[1]))
    pool = _Neighbourhoods(points, neighbours, bandwidth)
    weight = _shares(firsts.is_open.astype(np.float64))[:, None, :]
    for _ in range(taken.count):
        pool.add(taken.best((weight @ pool.coverage)[:, 0], SAME_COVERAGE))
    return firsts.score(taken.place)


def _herd(points: Points, weight: FloatArray, taken: Taken, bandwidth: float) -> None:
    """Take prompts by their gain in coverage of the pool; x counts ``weight`` (B, n) times."""
    points, weight = points.of_unit_length(), _shares(weight)[..., None]
    kernel = _kernel(points.here, points.here, bandwidth)
    covered = np.exp(-points.nearest_labelled() / bandwidth**2)
    rows, with_candidate = np.arange(len(kernel)), np.empty_like(kernel)
    for _ in range(taken.count):
        np.maximum(kernel, covered[:, None, :], out=with_candidate)  # (B, z, x)
        with_candidate -= covered[:, None, :]
        index = taken.best((with_candidate @ weight)[..., 0], SAME_GAIN)
        covered = np.maximum(covered, kernel[rows, index])


def _shares(weight: FloatArray) -> FloatArray:
    total = weight.sum(axis=-1, keepdims=True)
    return weight / np.where(total > 0, total, 1.0)


def _kernel(one: FloatArray, other: FloatArray, bandwidth: float) -> FloatArray:
    return np.exp(squared_distances(one, other) / -(bandwidth**2))


def _largest_first(values: FloatArray, count: int) -> IntArray:
    """(..., count or fewer) where the largest of the last axis are."""
    if values.shape[-1] <= count:
        return np.argsort(-values, axis=-1)
    largest = np.argpartition(-values, count - 1, axis=-1)[..., :count]
    order = np.argsort(-np.take_along_axis(values, largest, axis=-1), axis=-1)
    return np.take_along_axis(largest, order, axis=-1)


class _Neighbourhoods:
    """The nearest known points of each x of the pool, and how well they cover it together with any z.

    Attributes:
        coverage: (B, x, z) ``s_x(N_x(z))``.
    """

    def __init__(self, points: Points, neighbours: int, bandwidth: float) -> None:
        self._points = np.concatenate([points.labelled, points.here], axis=1)  # (B, L + n, d)
        self._kernel = _kernel(self._points, points.here, bandwidth)  # (B, L + n, n)
        self._bandwidth, self._n_labelled = bandwidth, points.known.shape[1]
        worlds, n = points.here.shape[:2]
        # of each x the kernel to its neighbours, largest first, and which they are; a kernel of -1 where there is none
        to_labelled = np.where(points.known[..., None], self._kernel[:, : self._n_labelled], -1.0).swapaxes(-1, -2)
        nearest = _largest_first(to_labelled, neighbours)
        missing = neighbours - nearest.shape[-1]
        self._near = np.pad(np.take_along_axis(to_labelled, nearest, axis=-1), ((0, 0), (0, 0), (0, missing)),
                            constant_values=-1.0)  # fmt: skip
        self._which = np.pad(nearest, ((0, 0), (0, 0), (0, missing)))
        self.coverage = np.empty((worlds, n, n))
        self._cover(*np.nonzero(np.ones((worlds, n), dtype=bool)))

    def add(self, index: IntArray) -> None:
        """The (B,) prompts are known from now on."""
        to_new = self._kernel[np.arange(len(index)), self._n_labelled + index]  # (B, x)
        is_nearer = to_new > self._near[..., -1]
        self._near[..., -1] = np.where(is_nearer, to_new, self._near[..., -1])
        self._which[..., -1] = np.where(is_nearer, self._n_labelled + index[:, None], self._which[..., -1])
        order = np.argsort(-self._near, axis=-1)
        self._near = np.take_along_axis(self._near, order, axis=-1)
        self._which = np.take_along_axis(self._which, order, axis=-1)
        self._cover(*np.nonzero(is_nearer))

    def _cover(self, world: IntArray, x: IntArray) -> None:
        """Compute the coverage of X points, given as (X,) worlds and (X,) prompts.

        z takes the place of the farthest neighbour c if it is nearer. With b the others and K = K_bb + 1e-6 I,
        ``s_x(b + z)^2 = k_xb' K^-1 k_xb + (k_xz - k_xb' K^-1 k_bz)^2 / (k_zz + 1e-6 - k_bz' K^-1 k_bz)``.
        """
        near, which = self._near[world, x], self._which[world, x]  # (X, K)
        exists = near[:, :-1] >= 0
        there = self._points[world[:, None], which]
        among = _kernel(there, there, self._bandwidth)  # (X, K, K)
        base = np.where(exists[:, :, None] & exists[:, None, :], among[:, :-1, :-1], 0.0)
        base += np.eye(base.shape[-1]) * np.where(exists, JITTER, 1.0)[:, :, None]
        inverse = np.linalg.inv(base)
        from_base = np.where(exists, near[:, :-1], 0.0)
        alpha = (inverse @ from_base[..., None])[..., 0]
        covered = (alpha * from_base).sum(axis=-1)[:, None]

        def with_one_more(to_x: FloatArray, to_base: FloatArray) -> FloatArray:
            """(X, …) squared coverage, with z of kernel (X, …) to x and (X, K - 1, …) to the base."""
            to_base = np.where(exists[..., None], to_base, 0.0)
            left = 1 + JITTER - (to_base * (inverse @ to_base)).sum(axis=1)
            return covered + np.square(to_x - (alpha[:, None, :] @ to_base)[:, 0]) / np.maximum(left, JITTER)

        farthest = near[:, -1:]
        without = np.where(farthest >= 0, with_one_more(farthest, among[:, :-1, -1:]), covered)
        to_z = self._kernel[world, self._n_labelled + x]  # (X, z)
        with_z = with_one_more(to_z, self._kernel[world[:, None], which[:, :-1]])
        self.coverage[world, x] = np.sqrt(np.where(to_z > farthest, with_z, without))


def _check_bandwidth(bandwidth: float) -> None:
    if not NARROWEST <= bandwidth < np.inf:
        raise ValueError(f"bandwidth={bandwidth} must be at least {NARROWEST}, and finite")
