"""From scores to pairs: the only place where a best is picked, ties are broken and masks are honoured."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from agents.scores import Observation, ScoreArray
from prefenv.spaces import n_pairs, pair_mask

IntArray = NDArray[np.int64]


def _legal_scores(score: ScoreArray, legal: NDArray[np.bool_]) -> ScoreArray:
    """Scores with -inf where a pair may not be chosen.

    Raises:
        ValueError: shapes differ.
    """
    if score.shape != legal.shape:
        raise ValueError(f"scores of shape {score.shape} for pairs of shape {legal.shape}")
    return score if legal.all() else np.where(legal, score, -np.inf)


def _require_ranked(largest: ScoreArray) -> None:
    """Refuse a maximum that is NaN, which it is where any value is.

    Raises:
        ValueError: it is.
    """
    if np.isnan(largest).any():
        raise ValueError("a score is NaN: the method met numbers that it cannot rank")


def best_of_each_prompt(score: ScoreArray, legal: NDArray[np.bool_], rng: np.random.Generator) -> IntArray:
    """(..., n) int64: the best legal pair of every prompt; equal scores are equally likely.

    Args:
        score: (..., n, P), numbers or bool.
        legal: (..., n, P) bool, at least one pair a prompt.
        rng: a uniform number is drawn for each prompt.

    >>> best_of_each_prompt(np.array([[0.0, 2.0]]), np.array([[True, True]]), np.random.default_rng(0))
    array([1])
    """
    values = _legal_scores(score, legal)
    best = values.argmax(axis=-1)  # which stops at a NaN
    largest = np.take_along_axis(values, best[..., None], axis=-1)
    _require_ranked(largest)
    tied = values == largest
    share = rng.random(best.shape)
    if np.count_nonzero(tied) > best.size:
        tied &= legal  # -inf may be the best there is, of a pair that exists and of others
        count = tied.cumsum(axis=-1)
        best = (count <= (share * count[..., -1])[..., None]).sum(axis=-1)  # the place of the drawn one of them
        best = np.minimum(best, values.shape[-1] - 1)  # of a prompt without a legal pair: some pair, all the same
    return np.asarray(best)


def best_of_pool(score: ScoreArray, legal: NDArray[np.bool_], k: int, rng: np.random.Generator) -> IntArray:
    """(..., k) int64: the k best legal pairs of the pool as prompt · P + pair, best first; ties are spread.

    Fewer than k legal pairs: the rest of the k are pairs that are not legal.

    >>> score = np.array([[0.0, 2.0], [3.0, 1.0]])
    >>> best_of_pool(score, np.ones((2, 2), dtype=bool), 2, np.random.default_rng(0))
    array([2, 1])
    """
    *lead, n, pairs = score.shape
    values: NDArray[Any] = _legal_scores(score, legal).reshape(*lead, n * pairs).astype(np.float64, copy=False)
    illegal: NDArray[Any] = ~legal.reshape(values.shape)
    tie_noise: NDArray[Any] = rng.random(values.shape)
    _require_ranked(values.max(axis=-1))
    size = values.shape[-1]
    if k < size:  # the k best in any order, so that only they have to be sorted
        worst = np.partition(values, size - k, axis=-1)[..., size - k, None]
        late = np.where(values > worst, -1.0, np.where(values == worst, tie_noise + illegal, 3.0))
        best = np.argpartition(late, k - 1, axis=-1)[..., :k]
        values, illegal, tie_noise = (np.take_along_axis(a, best, axis=-1) for a in (values, illegal, tie_noise))
    else:
        best = np.tile(np.arange(size), (*values.shape[:-1], 1))
    order = np.lexsort((tie_noise, -values, illegal), axis=-1)  # the last key counts first
    return np.take_along_axis(best, order, axis=-1)


def legal_pairs(observation: Observation) -> NDArray[np.bool_]:
    """(..., n, P) bool: both candidates exist, and the pair is not selected already this round."""
    mask = np.asarray(observation["mask"])
    legal = pair_mask(mask)
    if "selected" not in observation:
        return legal
    open_ = legal & ~np.asarray(observation["selected"], dtype=bool).reshape(legal.shape)
    any_open = open_.any(axis=(-2, -1), keepdims=True)
    return np.where(any_open, open_, legal)


def form_of(observation: Observation, action_space: spaces.Space | None) -> tuple[int, bool]:
    """How many pairs an action names, and whether that is one for each prompt.

    Args:
        observation: its mask, and whether it has ``selected``.
        action_space: of one environment. ``MultiDiscrete([P] * n)`` (or None): n, one for each prompt.
            ``MultiDiscrete([n·P] * k)``: k anywhere. ``Discrete(n·P)`` (or None with ``selected``): 1 anywhere.

    Raises:
        ValueError: the space fits none of these for this observation.
    """
    n, m = observation["mask"].shape[-2:]
    pairs = n_pairs(m)
    if isinstance(action_space, spaces.Discrete) or (action_space is None and "selected" in observation):
        if action_space is None or action_space.n == n * pairs:
            return 1, False
    elif action_space is None or _is(action_space, [pairs] * n):
        return n, True
    elif isinstance(action_space, spaces.MultiDiscrete):
        k = len(action_space.nvec)
        if _is(action_space, [n * pairs] * k):
            return k, False
    raise ValueError(f"{action_space} does not choose among {n} prompts × {pairs} pairs: is it of another environment?")


def _is(space: spaces.Space, nvec: list[int]) -> bool:
    return isinstance(space, spaces.MultiDiscrete) and list(space.nvec) == nvec


def choose(
    score: ScoreArray, observation: Observation, action_space: spaces.Space | None, rng: np.random.Generator
) -> IntArray:
    """The action that the scores ask for, in the form of the action space.

    Args:
        score: (..., n, P).
        observation: its mask and selected pairs.
        action_space: of one environment, as in :func:`form_of`: the action is (..., n) pairs, (..., k) of
            prompt · P + pair, or (...) of these.
        rng: breaks ties.

    Raises:
        ValueError: as :func:`form_of`; a score that counts is NaN.
    """
    k, each_prompt = form_of(observation, action_space)
    legal = legal_pairs(observation)
    if each_prompt:
        return best_of_each_prompt(score, legal, rng)
    best = best_of_pool(score, legal, k, rng)
    one = isinstance(action_space, spaces.Discrete) or action_space is None
    return best[..., 0] if one else best


def chosen_pairs(action: IntArray, legal: NDArray[np.bool_], each_prompt: bool) -> tuple[IntArray, IntArray]:
    """(..., k) int64 prompts and (..., k) int64 pairs of an action.

    Args:
        action: as :func:`choose` makes it.
        legal: (..., n, P).
        each_prompt: the form, as :func:`form_of` says it.

    >>> prompt, pair = chosen_pairs(np.array([2, 0]), np.ones((2, 3), dtype=bool), each_prompt=True)
    >>> prompt, pair
    (array([0, 1]), array([2, 0]))
    """
    n, pairs = legal.shape[-2:]
    if each_prompt:
        return np.broadcast_to(np.arange(n), action.shape), action
    slots = action.reshape(*legal.shape[:-2], -1)
    return slots // pairs, slots % pairs
