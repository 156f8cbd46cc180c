"""Scores from the policy itself: its implicit reward ``h = beta log(policy / reference)`` and its entropy."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from agents.scores import FloatArray, Observation
from agents.scores.picks import best
from prefenv.spaces import pair_mask, pair_table

ROUNDING = 1e-9  # prompts: a share such as 0.07 of 100 is 7 prompts, though the product is a little more in floats


def margin(observation: Observation, rng: np.random.Generator) -> FloatArray:
    """Largest gap of the implicit reward: ``|h_i - h_j|`` [APL, arXiv 2402.08114; Random Is Hard to Beat, 2604.02766].

    The pairs that the policy is surest of: where it is wrong, DPO has most to mend. It assumes that it is wrong often
    enough; where it is right, the label teaches next to nothing. While the policy is the reference, all pairs are equal
    and it is ``random``.

    Args:
        observation: with ``implicit_reward`` (..., n, m).
        rng: not used.

    Returns:
        (..., n, P), in units of the implicit reward.

    >>> margin({"implicit_reward": np.array([[0.5, -1.0, 0.0]])}, np.random.default_rng(0))
    array([[1.5, 0.5, 1. ]])
    """
    implicit = np.asarray(observation["implicit_reward"], dtype=np.float64)
    first, second = pair_table(implicit.shape[-1])
    return np.abs(implicit[..., first] - implicit[..., second])


def apl(observation: Observation, rng: np.random.Generator, *, keep: float = 0.5) -> FloatArray:
    """Prompts of high entropy first, then the largest margin ``|h_i - h_j|`` [APL, arXiv 2402.08114; 2604.02766].

    The ``ceil(keep n)`` prompts with the highest entropy are kept. First come the largest-margin pairs of the kept
    prompts, one each, by margin; then those of the other prompts; then all other pairs, by margin. The score is
    ``2 tier + margin / (largest margin of the pool)`` with tier 2, 1, 0, so only its order means anything. Equal
    entropies and equal margins within a prompt are spread.

    It chooses prompts: with one pair for each prompt it is :func:`margin`. It assumes that entropy tells where the
    policy has something to learn, and not just where many answers are as good; and what :func:`margin` assumes.

    Args:
        observation: with ``implicit_reward`` (..., n, m), ``entropy`` (..., n), ``mask``, and in the sequential form
            ``selected``: a prompt with a selected pair has had its first.
        rng: one uniform array is drawn, for ties.
        keep: share of the prompts that come first, in (0, 1].

    Returns:
        (..., n, P) in [0, 5].

    Raises:
        ValueError: ``keep`` is no share above 0.

    >>> policy = {"implicit_reward": np.array([[0.0, 4.0], [0.0, 1.0], [0.0, 2.0]]), "entropy": np.array([1.0, 3, 2])}
    >>> apl(policy | {"mask": np.ones((3, 2))}, np.random.default_rng(0)).ravel()
    array([3.  , 4.25, 4.5 ])
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep={keep} must be a share of the prompts, above 0 and at most 1")
    legal = pair_mask(observation["mask"])
    margins = np.where(legal, margin(observation, rng), 0.0)
    *lead, n, pairs = margins.shape
    tie_noise = rng.random((*lead, n, 1 + pairs))
    selected = np.asarray(observation.get("selected", np.zeros(margins.shape)), dtype=bool).reshape(margins.shape)
    count = max(1, math.ceil(keep * n - ROUNDING))
    kept = _highest(np.asarray(observation["entropy"]), count, tie_noise[..., 0] + selected.any(axis=-1))
    its_best = best(margins, legal, tie_noise[..., 1:] + selected)  # of equal pairs the one that is selected already
    tier = np.where(np.arange(pairs) == its_best[..., None], 1 + kept[..., None], 0)
    largest = margins.max(axis=(-2, -1), keepdims=True)
    return 2 * tier + margins / np.where(largest > 0, largest, 1.0)


def _highest(values: FloatArray, count: int, tie_noise: FloatArray) -> NDArray[np.bool_]:
    """(..., n) bool: the ``count`` largest of (..., n) values; of equal ones those with the most noise."""
    order = np.lexsort((tie_noise, values), axis=-1)  # the last key counts first
    highest = np.zeros(values.shape, dtype=bool)
    np.put_along_axis(highest, order[..., -count:], True, axis=-1)
    return highest
