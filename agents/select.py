"""From scores to pairs: the only place where a best is picked, ties are broken and masks are honoured."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from agents.scores import FloatArray, Observation
from prefenv.spaces import pair_mask

IntArray = NDArray[np.int64]


def _legal_scores(score: FloatArray, legal: NDArray[np.bool_]) -> FloatArray:
    """Scores with -inf where a pair may not be chosen.

    Raises:
        ValueError: a score that counts is NaN, or shapes differ.
    """
    if score.shape != legal.shape:
        raise ValueError(f"scores of shape {score.shape} for pairs of shape {legal.shape}")
    if np.any(np.isnan(score) & legal):
        raise ValueError("a score is NaN: the method met numbers that it cannot rank")
    return np.where(legal, score, -np.inf)


def best_of_each_prompt(score: FloatArray, legal: NDArray[np.bool_], rng: np.random.Generator) -> IntArray:
    """(..., n) int64: the best legal pair of every prompt; equal scores are equally likely.

    Args:
        score: (..., n, P).
        legal: (..., n, P) bool, at least one pair a prompt.
        rng: one uniform array of the shape of ``score`` is drawn.

    >>> best_of_each_prompt(np.array([[0.0, 2.0]]), np.array([[True, True]]), np.random.default_rng(0))
    array([1])
    """
    values = _legal_scores(score, legal)
    tied = (values == values.max(axis=-1, keepdims=True)) & legal
    return np.where(tied, rng.random(score.shape), -1.0).argmax(axis=-1)


def best_of_pool(score: FloatArray, legal: NDArray[np.bool_], k: int, rng: np.random.Generator) -> IntArray:
    """(..., k) int64: the k best legal pairs of the pool as prompt · P + pair, best first; ties are spread.

    Fewer than k legal pairs: the rest of the k are pairs that are not legal.

    >>> score = np.array([[0.0, 2.0], [3.0, 1.0]])
    >>> best_of_pool(score, np.ones((2, 2), dtype=bool), 2, np.random.default_rng(0))
    array([2, 1])
    """
    *lead, n, pairs = score.shape
    values = _legal_scores(score, legal).reshape(*lead, n * pairs)
    illegal = ~legal.reshape(values.shape)
    order = np.lexsort((rng.random(values.shape), -values, illegal), axis=-1)  # the last key counts first
    return order[..., :k]


def legal_pairs(observation: Observation) -> NDArray[np.bool_]:
    """(..., n, P) bool: both candidates exist, and the pair is not selected already this round."""
    legal = pair_mask(observation["mask"])
    if "selected" not in observation:
        return legal
    open_ = legal & ~np.asarray(observation["selected"], dtype=bool).reshape(legal.shape)
    any_open = open_.any(axis=(-2, -1), keepdims=True)
    return np.where(any_open, open_, legal)


def choose(
    score: FloatArray, observation: Observation, action_space: spaces.Space | None, rng: np.random.Generator
) -> IntArray:
    """The action that the scores ask for, in the form of the action space.

    Args:
        score: (..., n, P).
        observation: its mask and selected pairs.
        action_space: of one environment. ``MultiDiscrete([P] * n)`` (or None): a pair a prompt, (..., n).
            ``MultiDiscrete([n·P] * k)``: k anywhere, (..., k). ``Discrete(n·P)``: one anywhere, (...).
        rng: breaks ties.

    Raises:
        ValueError: the space fits none of these for this observation.
    """
    legal = legal_pairs(observation)
    n, pairs = legal.shape[-2:]
    if isinstance(action_space, spaces.Discrete) or (action_space is None and "selected" in observation):
        if action_space is None or action_space.n == n * pairs:
            return best_of_pool(score, legal, 1, rng)[..., 0]
    elif action_space is None or _is(action_space, [pairs] * n):
        return best_of_each_prompt(score, legal, rng)
    elif isinstance(action_space, spaces.MultiDiscrete):
        k = len(action_space.nvec)
        if _is(action_space, [n * pairs] * k):
            return best_of_pool(score, legal, k, rng)
    raise ValueError(f"{action_space} does not choose among {n} prompts × {pairs} pairs: is it of another environment?")


def _is(space: spaces.Space, nvec: list[int]) -> bool:
    return isinstance(space, spaces.MultiDiscrete) and list(space.nvec) == nvec
