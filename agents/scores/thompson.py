"""Thompson methods: both candidates come from draws of the reward posterior.

The pair that was drawn scores 1 and all others 0. ``draw="joint"`` uses the observation's joint draws, one reward
function at a time; ``draw="interval"`` draws each candidate by itself, uniform on ``[r - width s, r + width s]``, as
the public code of [AUF, arXiv 2603.09692] does.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from agents.scores import FloatArray, Observation
from agents.scores.picks import best, one_hot

Draw = Literal["joint", "interval"]


def dts(
    observation: Observation, rng: np.random.Generator, *, draw: Draw = "joint", width: float = 1.0, redraws: int = 30
) -> FloatArray:
    """Double Thompson sampling: the best of one draw against the best of another.

    The second is drawn again while it equals the first, at most ``redraws`` draws in all (fewer if there are fewer
    joint draws), then taken uniformly from the others. Once the posterior is sure of one best candidate, that fallback
    is what chooses the opponent. All other pairs score alike, so a budget beyond one pair a prompt is filled at random.

    Args:
        observation: with ``reward_samples`` (..., S, n, m) for joint draws, else ``reward_mean`` and ``reward_std``.
        rng: one uniform array is drawn.
        draw: "joint" or "interval".
        width: half the interval in standard deviations; only with draw="interval".
        redraws: draws for the second candidate.

    Returns:
        (..., n, P): 1 for the pair, 0 for the others.

    Raises:
        ValueError: another ``draw``, ``redraws`` below 1, fewer than two joint draws.

    >>> draws = np.array([[[0.0, 1.0, 2.0]], [[0.0, 2.0, 1.0]]])  # 2 is best in one, 1 in the other
    >>> dts({"reward_samples": draws, "mask": np.ones((1, 3))}, np.random.default_rng(0))
    array([[0., 0., 1.]])
    """
    return _drawn_pair(observation, rng, draw, width, redraws, second_sign=1.0)


def drts(
    observation: Observation, rng: np.random.Generator, *, draw: Draw = "joint", width: float = 1.0, redraws: int = 30
) -> FloatArray:
    """Double reverse Thompson sampling: the best of one draw against the worst of another [AUF].

    Arguments, result and errors as in :func:`dts`.
    """
    return _drawn_pair(observation, rng, draw, width, redraws, second_sign=-1.0)


def _drawn_pair(
    observation: Observation,
    rng: np.random.Generator,
    draw: Draw,
    width: float,
    redraws: int,
    second_sign: float,
) -> FloatArray:
    if redraws < 1:
        raise ValueError(f"redraws={redraws} must be at least 1")
    mask = np.asarray(observation["mask"], dtype=bool)
    if draw == "joint":
        draws, tie_noise = _joint_draws(observation, rng, redraws)
    elif draw == "interval":
        draws, tie_noise = _interval_draws(observation, rng, width, redraws)
    else:
        raise ValueError(f"draw={draw!r} must be 'joint' or 'interval'")
    first = best(draws[..., 0, :], mask, tie_noise[..., 0, :])  # (..., n)
    others = mask & (np.arange(mask.shape[-1]) != first[..., None])
    later = best(second_sign * draws[..., 1:, :], mask[..., None, :], tie_noise[..., 1:2, :])  # (..., n, redraws)
    differs = later != first[..., None]
    drawn = np.take_along_axis(later, differs.argmax(axis=-1)[..., None], axis=-1)[..., 0]
    fallback = np.where(others, tie_noise[..., 2, :], -1.0).argmax(axis=-1)
    second = np.where(differs.any(axis=-1), drawn, fallback)
    return one_hot(first, second, mask.shape[-1])


def _joint_draws(observation: Observation, rng: np.random.Generator, redraws: int) -> tuple[FloatArray, FloatArray]:
    """Draws (..., n, 1 + redraws or S, m) in an order shuffled for each prompt, and noise (..., n, 3, m)."""
    samples = np.moveaxis(np.asarray(observation["reward_samples"], dtype=np.float64), -3, -2)  # (..., n, S, m)
    *lead, n, n_samples, m = samples.shape
    if n_samples < 2:
        raise ValueError("two Thompson draws need n_samples of at least 2 in the observation")
    noise = rng.random((*lead, n, n_samples + 3 * m))
    order = noise[..., :n_samples].argsort(axis=-1)[..., : 1 + redraws]
    draws = np.take_along_axis(samples, order[..., None], axis=-2)
    return draws, noise[..., n_samples:].reshape(*lead, n, 3, m)


def _interval_draws(
    observation: Observation, rng: np.random.Generator, width: float, redraws: int
) -> tuple[FloatArray, FloatArray]:
    """Draws (..., n, 1 + redraws, m), each uniform in its candidate's interval, and noise (..., n, 3, m)."""
    if not 0 <= width < np.inf:
        raise ValueError(f"width={width} standard deviations must be 0 or more, and finite")
    mean = np.asarray(observation["reward_mean"], dtype=np.float64)
    std = np.asarray(observation["reward_std"], dtype=np.float64)
    noise = rng.random((*mean.shape[:-1], 1 + redraws + 3, mean.shape[-1]))
    draws = mean[..., None, :] + width * std[..., None, :] * (2 * noise[..., :-3, :] - 1)
    return draws, noise[..., -3:, :]
