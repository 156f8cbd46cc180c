"""For methods that name one pair themselves: the best with ties spread, and the pair as scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agents.scores import FloatArray
from prefenv.spaces import n_pairs, pair_index


def best(values: FloatArray, allowed: NDArray[np.bool_], tie_noise: FloatArray) -> NDArray[np.int64]:
    """(...) int64: where the last axis of the values is largest.

    Args:
        values: (..., m); any number, NaN too, where not allowed.
        allowed: (..., m) bool, at least one of each m.
        tie_noise: (..., m), 0 or more; among equal values the one with the most noise is taken.

    Raises:
        ValueError: a value that counts is NaN.

    >>> best(np.array([2.0, 9.0, 2.0]), np.array([True, False, True]), np.array([0.1, 0.9, 0.7]))
    array(2)
    """
    if not allowed.all():
        values = np.where(allowed, values, -np.inf)
    first = values.argmax(axis=-1)
    largest = np.take_along_axis(values, first[..., None], axis=-1)
    if np.isnan(largest).any():  # argmax stops at a NaN
        raise ValueError("a candidate's value is NaN: the method met numbers that it cannot rank")
    tied = values == largest
    if np.count_nonzero(tied) == first.size:
        return np.asarray(first)
    return np.asarray(np.where(tied & allowed, tie_noise, -1.0).argmax(axis=-1))


def one_hot(first: NDArray[np.int64], second: NDArray[np.int64], m: int) -> NDArray[np.bool_]:
    """(..., P) bool: True for the pair of the (...) candidates, in either order.

    As bytes, for what a method that names its pair itself costs is to write down its score.

    >>> one_hot(np.array([2]), np.array([0]), m=3)
    array([[False,  True, False]])
    """
    pairs = n_pairs(m)
    score = np.zeros(first.size * pairs, dtype=np.bool_)
    score[np.arange(0, score.size, pairs) + pair_index(first, second, m).ravel()] = True
    return score.reshape(*first.shape, pairs)
