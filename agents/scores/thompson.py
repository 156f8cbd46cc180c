"""Thompson methods: both candidates come from draws of the reward posterior.

The pair that was drawn scores 1 and all others 0. ``draw="joint"`` uses the observation's joint draws, one reward
function at a time; ``draw="interval"`` draws each candidate by itself, uniform on ``[r - width s, r + width s]``, as
the public code of [AUF, arXiv 2603.09692] does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from agents.scores import FloatArray, Observation, ScoreArray
from agents.scores.picks import best, one_hot
from prefenv.types import whole_number

Draw = Literal["joint", "interval"]
Draws = Callable[[slice, NDArray[np.bool_]], FloatArray]


def dts(
    observation: Observation, rng: np.random.Generator, *, draw: Draw = "joint", width: float = 1.0, redraws: int = 30
) -> ScoreArray:
    """Double Thompson sampling: the best of one draw against the best of another.

    The second is drawn again while it equals the first, at most ``redraws`` draws in all (fewer if there are fewer
    joint draws), then taken uniformly from the others. Once the posterior is sure of one best candidate, that fallback
    is what chooses the opponent. All other pairs score alike, so a budget beyond one pair a prompt is filled at random.
    The public code of [AUF] falls back on any candidate, so the first may meet itself there.

    Args:
        observation: with ``reward_samples`` (..., S, n, m) for joint draws, else ``reward_mean`` and ``reward_std``.
        rng: one uniform array is drawn.
        draw: "joint" or "interval".
        width: half the interval in standard deviations; only with draw="interval".
        redraws: draws for the second candidate.

    Returns:
        (..., n, P) bool: True for the pair.

    Raises:
        ValueError: another ``draw``, ``redraws`` below 1, fewer than two joint draws.

    >>> draws = np.array([[[0.0, 1.0, 2.0]], [[0.0, 2.0, 1.0]]])  # 2 is best in one, 1 in the other
    >>> dts({"reward_samples": draws, "mask": np.ones((1, 3))}, np.random.default_rng(0))
    array([[False, False,  True]])
    """
    return _drawn_pair(observation, rng, draw, width, redraws, second_sign=1.0)


def drts(
    observation: Observation, rng: np.random.Generator, *, draw: Draw = "joint", width: float = 1.0, redraws: int = 30
) -> ScoreArray:
    """Double reverse Thompson sampling: the best of one draw against the worst of another [AUF].

    It assumes that DPO learns most from a sure pair, as :func:`~agents.scores.intervals.deltaucb` does, but spreads
    its pairs as the posterior is unsure. Where responses differ little, or the policy is near what its labels support,
    it pays no better than chance. The public code of [AUF] differs as for :func:`dts`: there the first may meet itself.

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
) -> ScoreArray:
    whole_number("redraws", redraws)
    mask = np.asarray(observation["mask"], dtype=bool)
    m = mask.shape[-1]
    draws, tie_noise = posterior_draws(observation, rng, draw, width, count=1 + redraws)
    first = best_of_a_draw(draws, mask, tie_noise)
    second = first.copy()
    for which in (slice(1, 2), slice(2, None)):  # further draws only where the second one names the first again
        rows = second == first
        again = draws(which, rows)
        if again.size:
            later = best(second_sign * again, mask[rows][:, None], tie_noise[rows][:, 1:2])
            differs = later != first[rows][:, None]
            second[rows] = np.take_along_axis(later, differs.argmax(axis=-1)[..., None], axis=-1)[..., 0]
    others = mask & (np.arange(m) != first[..., None])
    fallback = np.where(others, tie_noise[..., 2, :], -1.0).argmax(axis=-1)
    return one_hot(first, np.where(second != first, second, fallback), m)


def best_of_a_draw(draws: Draws, mask: NDArray[np.bool_], tie_noise: FloatArray) -> NDArray[np.int64]:
    """(..., n) int64: the best candidate of each prompt in the first of the draws of :func:`posterior_draws`."""
    every = draws(slice(0, 1), np.ones(mask.shape[:-1], dtype=bool))
    return best(every.reshape(mask.shape), mask, tie_noise[..., 0, :])


def posterior_draws(
    observation: Observation, rng: np.random.Generator, draw: Draw, width: float, count: int
) -> tuple[Draws, FloatArray]:
    """Draws of every candidate's reward, made when asked for, and noise for ties.

    Args:
        observation: as in :func:`dts`.
        rng: one uniform array is drawn.
        draw: "joint" or "interval".
        width: half the interval in standard deviations; only with draw="interval".
        count: draws for each prompt; of joint draws at most S.

    Returns:
        A function (which of the draws, which prompts: (..., n) bool) → (prompts asked for, draws asked for, m); and
        (..., n, 3, m) uniform noise.

    Raises:
        ValueError: another ``draw``, fewer than two joint draws, a negative width.

    >>> belief = {"reward_mean": np.array([[0.0, 1.0]]), "reward_std": np.array([[0.0, 0.0]])}
    >>> draws, noise = posterior_draws(belief, np.random.default_rng(0), "interval", width=1.0, count=2)
    >>> draws(slice(0, 2), np.array([True]))
    array([[[0., 1.],
            [0., 1.]]])
    """
    if not 0 <= width < np.inf:
        raise ValueError(f"width={width} standard deviations must be 0 or more, and finite")
    if draw == "joint":
        return _joint_draws(observation, rng, count)
    if draw == "interval":
        return _interval_draws(observation, rng, width, count)
    raise ValueError(f"draw={draw!r} must be 'joint' or 'interval'")


def _joint_draws(observation: Observation, rng: np.random.Generator, count: int) -> tuple[Draws, FloatArray]:
    """The draws of the observation in an order shuffled for each prompt."""
    samples = np.moveaxis(np.asarray(observation["reward_samples"]), -3, -2)  # (..., n, S, m)
    *lead, n, n_samples, m = samples.shape
    if n_samples < 2:
        raise ValueError("Thompson draws need n_samples of at least 2 in the observation")
    noise = rng.random((*lead, n, n_samples + 3 * m))
    order = noise[..., :n_samples].argsort(axis=-1)[..., :count]

    def draws(which: slice, rows: NDArray[np.bool_]) -> FloatArray:
        taken = np.nonzero(rows)
        return samples[(*(index[:, None] for index in taken), order[taken][:, which])].astype(np.float64)

    return draws, noise[..., n_samples:].reshape(*lead, n, 3, m)


def _interval_draws(
    observation: Observation, rng: np.random.Generator, width: float, count: int
) -> tuple[Draws, FloatArray]:
    """Draws that are uniform in each candidate's interval."""
    mean = np.asarray(observation["reward_mean"], dtype=np.float64)
    std = np.asarray(observation["reward_std"], dtype=np.float64)
    noise = rng.random((*mean.shape[:-1], count + 3, mean.shape[-1]))

    def draws(which: slice, rows: NDArray[np.bool_]) -> FloatArray:
        share = noise[..., :count, :][rows][:, which]
        return mean[rows][:, None] + width * std[rows][:, None] * (2 * share - 1)

    return draws, noise[..., count:, :]
