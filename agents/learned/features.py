"""What a learned agent sees of a pair: numbers that mean the same in every world and for every n, m, d."""

from __future__ import annotations

from collections.abc import Mapping

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from agents.scores import FloatArray, Observation
from prefenv.spaces import pair_mask, pair_table

FEATURES = (
    "gap of the reward means",
    "standard deviation of the reward difference",
    "larger reward mean, above the prompt's",
    "smaller reward mean, above the prompt's",
    "sum of the reward deviations",
    "difference of the reward deviations",
    "chance that one of the two is the best",
    "chance that one of the two is the worst",
    "gap of the implicit rewards",
    "gap of the log-probabilities",
    "mean of the log-probabilities",
    "does the policy prefer the better one",
    "gap of the log-lengths",
    "distance of the embeddings",
    "entropy of the prompt",
    "share of the budget left",
    "legal",
)
CLIP = 5.0  # standard deviations; one wild candidate must not drown the rest
TINY = 1e-6


def _standardised(values: FloatArray, mask: NDArray[np.bool_]) -> FloatArray:
    """(..., n, m) in standard deviations from the mean over the pool's candidates; padding is 0."""
    count = np.maximum(mask.sum(axis=(-2, -1), keepdims=True), 1)
    mean = np.where(mask, values, 0.0).sum(axis=(-2, -1), keepdims=True) / count
    centred = np.where(mask, values - mean, 0.0)
    std = np.sqrt((centred**2).sum(axis=(-2, -1), keepdims=True) / count)
    return centred / np.maximum(std, TINY)


def _chance_of_extreme(samples: FloatArray, mask: NDArray[np.bool_], sign: float) -> FloatArray:
    """(..., n, m) share of the (..., S, n, m) draws in which a candidate is its prompt's best (or worst)."""
    values = np.where(mask[..., None, :, :], sign * samples, -np.inf)
    best = values == values.max(axis=-1, keepdims=True)
    return (best / best.sum(axis=-1, keepdims=True)).mean(axis=-3)


def _embedding_distance(embedding: FloatArray, mask: NDArray[np.bool_]) -> FloatArray:
    """(..., n, P) distance of two candidates' embeddings, over the mean distance of the pool's legal pairs."""
    gram = embedding @ np.swapaxes(embedding, -1, -2)
    first, second = pair_table(mask.shape[-1])
    square = gram[..., first, first] + gram[..., second, second] - 2 * gram[..., first, second]
    distance = np.where(pair_mask(mask), np.sqrt(np.maximum(square, 0.0)), 0.0)
    count = np.maximum(pair_mask(mask).sum(axis=(-2, -1), keepdims=True), 1)
    return distance / np.maximum(distance.sum(axis=(-2, -1), keepdims=True) / count, TINY)


def pair_features(observation: Observation) -> NDArray[np.float32]:
    """(..., n, P, F) float32: the F numbers of :data:`FEATURES` for every pair.

    Rewards are measured in units of their spread over the pool, policy quantities in standard deviations of the pool.
    All are symmetric in the two candidates.

    Args:
        observation: one, or a batch with leading axes.
    """
    entry = {name: np.asarray(value, dtype=np.float64) for name, value in observation.items()}
    mask = entry["mask"].astype(bool)
    legal = pair_mask(mask)
    shape = legal.shape
    columns = (
        *_reward_columns(entry, mask),
        *_policy_columns(entry, mask),
        _embedding_distance(entry["embedding"], mask),
        np.broadcast_to(_standardised_entropy(entry["entropy"])[..., None], shape),
        np.broadcast_to(entry["budget"][..., None], shape),
        legal,
    )
    features = np.clip(np.stack(columns, axis=-1), -CLIP, CLIP) * legal[..., None]
    return features.astype(np.float32)


def _gap(values: FloatArray) -> FloatArray:
    """(..., P) difference of the two candidates, from (..., m)."""
    first, second = pair_table(values.shape[-1])
    return values[..., first] - values[..., second]


def _sum(values: FloatArray) -> FloatArray:
    """(..., P) sum over the two candidates, from (..., m)."""
    first, second = pair_table(values.shape[-1])
    return values[..., first] + values[..., second]


def _reward_columns(entry: Mapping[str, FloatArray], mask: NDArray[np.bool_]) -> tuple[FloatArray, ...]:
    """The first eight features, from the belief about the reward."""
    square = _masked(entry["reward_mean"] ** 2 + entry["reward_std"] ** 2, mask).sum(axis=(-2, -1), keepdims=True)
    unit = np.maximum(np.sqrt(square / mask.sum(axis=(-2, -1), keepdims=True)), TINY)
    mean, std, samples = entry["reward_mean"] / unit, entry["reward_std"] / unit, entry["reward_samples"]
    centred = mean - _masked(mean, mask).sum(axis=-1, keepdims=True) / mask.sum(axis=-1, keepdims=True)
    first, second = pair_table(mask.shape[-1])
    return (
        np.abs(_gap(mean)),
        _gap(samples).std(axis=-3) / unit,
        np.maximum(centred[..., first], centred[..., second]),
        np.minimum(centred[..., first], centred[..., second]),
        _sum(std),
        np.abs(_gap(std)),
        _sum(_chance_of_extreme(samples, mask, 1.0)),
        _sum(_chance_of_extreme(samples, mask, -1.0)),
    )


def _policy_columns(entry: Mapping[str, FloatArray], mask: NDArray[np.bool_]) -> tuple[FloatArray, ...]:
    """The next five features, from what the policy and the texts are."""
    logprob = _standardised(entry["logprob"], mask)
    length = _standardised(np.log(np.maximum(entry["length"], 1.0)), mask)
    return (
        np.abs(_gap(_standardised(entry["implicit_reward"], mask))),
        np.abs(_gap(logprob)),
        _sum(logprob) / 2,
        np.sign(_gap(entry["reward_mean"])) * _gap(logprob),
        np.abs(_gap(length)),
    )


def _standardised_entropy(entropy: FloatArray) -> FloatArray:
    """(..., n) in standard deviations from the mean over the prompts."""
    centred = entropy - entropy.mean(axis=-1, keepdims=True)
    return centred / np.maximum(centred.std(axis=-1, keepdims=True), TINY)


def _masked(values: FloatArray, mask: NDArray[np.bool_]) -> FloatArray:
    return np.where(mask, values, 0.0)


def feature_space(observation_space: gym.Space) -> gym.spaces.Box:
    """Of the (n, P, F) pair features of one observation."""
    shape = pair_features(_zeros(observation_space)).shape
    return gym.spaces.Box(-CLIP, CLIP, shape=shape, dtype=np.float32)


def _zeros(space: gym.Space) -> dict[str, NDArray[np.generic]]:
    assert isinstance(space, gym.spaces.Dict)
    zeros = {name: np.zeros(entry.shape or (), dtype=entry.dtype) for name, entry in space.items()}
    return zeros | {"mask": np.ones_like(zeros["mask"])}
