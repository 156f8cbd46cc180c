"""D-optimal design: pairs that together tell most about a linear reward."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agents.scores import FloatArray, Observation, Plan
from agents.select import legal_pairs
from prefenv.spaces import pair_table

IntArray = NDArray[np.int64]

TIE = 1e-9  # of the largest value: closer values are equal
JITTER = 1e-13  # of the trace: a smaller ridge would be lost beside the labels in float64
ROUNDING = 1e-12  # of the largest value at the start: what the updates of a value may have lost


def dopt(observation: Observation, rng: np.random.Generator, plan: Plan, *, ridge: float = 1.0) -> FloatArray:
    """Greedy D-optimal design over pair differences ``z = e_i - e_j``: each pick has the largest ``z' A^-1 z``.

    ``A = ridge I + sum z z'`` over the pairs labelled in this episode and those picked so far. ``log det A`` grows by
    ``log(1 + z' A^-1 z)`` with each pick, so this is the greedy choice for it. Once a pick u is made, the value of
    every pair falls by ``(z' w)^2 / (1 + u' w)``, ``w = A^-1 u`` (Sherman-Morrison); differences are never held, only
    products of candidates.

    It assumes a reward that is linear in the embeddings, and that all comparisons are as noisy. It fails where long
    differences are those of outliers, or of pairs whose winner is clear: such labels tell little, and it takes them
    first. ``ridge`` is the prior precision of a weight: small against ``|z|^2`` (2 d, with embeddings of unit scale a
    coordinate), so that one label settles a direction, and large enough to lose no digits.

    Source: ADPO, arXiv 2503.01076; Random Is Hard to Beat, arXiv 2604.02766. The public code of the latter has one
    drawn pair for each prompt, a ridge of 1e-3 on features times beta, and forgets in each round what was labelled
    before, so that it asks again for directions that it knows; here all pairs of the pool compete, and A remembers the
    episode.

    Args:
        observation: with ``embedding`` (..., n, m, d), ``mask``, and in the sequential form ``selected``.
        rng: one uniform array is drawn, for ties.
        plan: k labels; in the per-prompt form one for each prompt, chosen greedily over the prompts that have none.
        ridge: above 0 and finite, in squared units of the embedding.

    Returns:
        (..., n, P): the t-th pick scores k - t, t from 0; the others between -1 and 0, by their last value.

    Raises:
        ValueError: ``ridge`` cannot be.

    >>> shown = {"embedding": np.array([[[0.0], [1.0], [3.0]]]), "mask": np.ones((1, 3))}
    >>> dopt(shown, np.random.default_rng(0), Plan.at_start(1, d=1)).round(2)
    array([[-0.75,  1.  ,  0.  ]])
    """
    if not 0 < ridge < np.inf:
        raise ValueError(f"ridge={ridge} must be above 0, and finite")
    legal = legal_pairs(observation)
    *lead, n, pairs = legal.shape
    noise = rng.random(legal.shape).reshape(-1, n * pairs)
    candidates = _whitened(observation, plan, ridge)
    values = np.ascontiguousarray(np.where(legal.reshape(-1, n, pairs), _squared_gaps(candidates), -np.inf))
    place = _greedy(candidates, values, noise, min(plan.labels, n * pairs), plan.each_prompt)
    is_left = np.isfinite(values)
    largest = np.where(is_left, values, 0.0).max(axis=(-2, -1), keepdims=True)
    rest = np.where(is_left, values, 0.0) / np.where(largest > 0, largest, 1.0) - 1
    return np.where(place > 0, place, rest).reshape(*lead, n, pairs)


def _whitened(observation: Observation, plan: Plan, ridge: float) -> FloatArray:
    """(B, n, m, d) float64 candidates in coordinates in which A is the identity; 0 where none exists.

    They are centred within each prompt, which changes no difference but keeps large common parts from rounding them.
    """
    mask = np.asarray(observation["mask"], dtype=bool)
    n, m, d = observation["embedding"].shape[-3:]
    mask = mask.reshape(-1, n, m, 1)
    candidates = np.where(mask, np.asarray(observation["embedding"], dtype=np.float64).reshape(-1, n, m, d), 0.0)
    centre = candidates.sum(axis=-2, keepdims=True) / mask.sum(axis=-2, keepdims=True)
    candidates = np.where(mask, candidates - centre, 0.0)
    if not plan.known.any():
        candidates *= 1 / np.sqrt(ridge)
        return candidates
    known = plan.known.reshape(len(mask), -1, 1)
    ends = np.asarray(plan.labelled, dtype=np.float64).reshape(len(mask), -1, 2, d)
    labelled = np.where(known, ends[..., 0, :] - ends[..., 1, :], 0.0)
    precision = labelled.swapaxes(-1, -2) @ labelled
    size = np.trace(precision, axis1=-2, axis2=-1)[:, None, None]
    precision += np.maximum(ridge, JITTER * size) * np.eye(d)
    root = np.linalg.inv(np.linalg.cholesky(precision))
    return (candidates.reshape(-1, n * m, d) @ root.swapaxes(-1, -2)).reshape(-1, n, m, d)


def _squared_gaps(candidates: FloatArray) -> FloatArray:
    """(B, n, P) ``|c_i - c_j|^2``, from the products of the candidates of a prompt."""
    first, second = pair_table(candidates.shape[-2])
    gram = candidates @ candidates.swapaxes(-1, -2)
    own = np.diagonal(gram, axis1=-2, axis2=-1)
    return np.maximum(own[..., first] + own[..., second] - 2 * gram[..., first, second], 0.0)


def _greedy(candidates: FloatArray, values: FloatArray, noise: FloatArray, count: int, each_prompt: bool) -> FloatArray:
    """(B, n, P) places: count for the pair picked first, then one less each, 0 for the others.

    ``values`` (B, n, P), contiguous, are worked on in place: -inf where a pair may not be picked (any more).
    """
    worlds, n, m, d = candidates.shape
    first, second = pair_table(m)
    pairs, rows = len(first), np.arange(worlds)
    flat, noise = values.reshape(worlds, -1), noise + 1
    place, gap, other = np.zeros_like(flat), np.empty_like(values), np.empty_like(values)  # memory is asked for once
    inverse = np.broadcast_to(np.eye(d), (worlds, d, d)).copy()
    lost = ROUNDING * np.maximum(flat.max(axis=-1, keepdims=True), 0.0)
    for left in range(count, 0, -1):
        largest = flat.max(axis=-1, keepdims=True)
        tied = flat >= largest - (TIE * np.maximum(largest, 0.0) + lost)
        pick = np.multiply(tied, noise, out=gap.reshape(flat.shape)).argmax(axis=-1)
        is_open = largest[:, 0] > -np.inf  # False where a world has no pair left
        place[rows[is_open], pick[is_open]] = left
        prompt, pair = pick // pairs, pick % pairs
        values[rows, prompt] = np.where(
            each_prompt | (np.arange(pairs) == pair[:, None]), -np.inf, values[rows, prompt]
        )
        u = candidates[rows, prompt, first[pair]] - candidates[rows, prompt, second[pair]]
        w = (inverse @ u[..., None])[..., 0]
        growth = 1 + (u * w).sum(axis=-1)
        inverse -= w[:, :, None] * (w / growth[:, None])[:, None, :]
        along = candidates.reshape(worlds, n * m, d) @ (w / np.sqrt(growth)[:, None])[..., None]
        _gaps(along.reshape(worlds, n, m), gap, other)
        values -= np.square(gap, out=gap)
    return place.reshape(values.shape)


def _gaps(of_candidates: FloatArray, gap: FloatArray, other: FloatArray) -> None:
    """Write (B, n, P) differences of the (B, n, m) numbers into ``gap``; ``other`` is room to work in."""
    first, second = pair_table(of_candidates.shape[-1])
    np.take(of_candidates, first, axis=-1, out=gap, mode="clip")  # any mode but the default writes into out directly
    np.take(of_candidates, second, axis=-1, out=other, mode="clip")
    np.subtract(gap, other, out=gap)
