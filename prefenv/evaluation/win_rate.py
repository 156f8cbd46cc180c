"""Win rates with intervals."""

from __future__ import annotations

import numpy as np
from scipy import stats
from scipy.special import expit

from prefenv.types import FloatArray, WinRate

Z_95 = 1.959964  # normal quantile of a two-sided 95 % interval


def win_rate(wins: FloatArray) -> WinRate:
    """Mean of one value in [0, 1] for each prompt, with its normal 95 % interval over prompts.

    Args:
        wins: (E,), chance (or share, ties one half) of winning at each evaluation prompt.

    Returns:
        the interval is clipped to [0, 1].

    Raises:
        ValueError: nothing to average.

    >>> win_rate(np.array([0.5, 0.5])).high
    0.5
    """
    if wins.size == 0:
        raise ValueError("a win rate needs at least one evaluation prompt")
    mean = float(np.clip(wins.mean(), 0.0, 1.0))
    half = Z_95 * float(wins.std(ddof=1)) / np.sqrt(wins.size) if wins.size > 1 else 0.0
    return WinRate(mean, float(max(0.0, mean - half)), float(min(1.0, mean + half)), wins.size)


def sampled_win_rate(wins: FloatArray) -> WinRate:
    """Mean of one win (1), tie (1/2) or loss (0) for each prompt, with a 95 % interval that holds near 0 and 1 too.

    The interval is Student's after one win and one loss are added: without them it would have no width when all
    responses win. The mean is of the given values alone.

    Args:
        wins: (E,), each 0, 1/2 or 1.

    >>> rate = sampled_win_rate(np.ones(8))
    >>> rate.mean, round(rate.low, 2), rate.high
    (1.0, 0.67, 1.0)
    """
    mean = win_rate(wins).mean
    padded = np.append(wins, (0.0, 1.0))
    half = stats.t.ppf(0.975, padded.size - 1) * padded.std(ddof=1) / np.sqrt(padded.size)
    low, high = float(max(0.0, padded.mean() - half)), float(min(1.0, padded.mean() + half))
    return WinRate(mean, min(low, mean), max(high, mean), wins.size)


def preference_prob(gap: FloatArray, temperature: float) -> FloatArray:
    """sig(gap / temperature), element by element: the chance to be preferred by so much more reward.

    Temperature 0 is the limit: 1 for more reward, 0 for less, one half for the same.

    >>> preference_prob(np.array([-1.0, 0.0, 1.0]), 0.0)
    array([0. , 0.5, 1. ])
    """
    if temperature == 0:
        return np.asarray(0.5 + 0.5 * np.sign(gap))
    with np.errstate(over="ignore"):  # an infinite ratio is a sure win
        return np.asarray(expit(gap / temperature))


def chance_to_beat(reward: FloatArray, reference_prob: FloatArray, temperature: float, axis: int = -1) -> FloatArray:
    """b(y) = sum_y' reference(y') sig((r(y) - r(y')) / temperature): a constant of the episode.

    Args:
        reward: (..., K, ...) of the K responses to a prompt.
        reference_prob: (..., K, ...), sums to one over the responses.
        temperature: of the judge; 0 is the larger reward wins, ties one half.
        axis: of the responses.

    Returns:
        of the shape and dtype of ``reward``, in [0, 1]. The win rate of a policy p is the sum of ``p * b`` over the
        responses, with both responses drawn independently.

    >>> chance_to_beat(np.array([0.0, 1.0]), np.array([0.5, 0.5]), temperature=0.0)
    array([0.25, 0.75])
    """
    r = np.ascontiguousarray(np.moveaxis(reward, axis, 0))
    p = np.ascontiguousarray(np.broadcast_to(np.moveaxis(reference_prob, axis, 0), r.shape))
    lead = np.zeros_like(r)  # sum_y' reference(y') (2 sig(gap) - 1), and 2 sig(x) - 1 = tanh(x / 2) is odd
    for i in range(len(r) - 1):
        odd = r[i] - r[i + 1 :]
        if temperature < 1e-30:  # 0 but for rounding in float32
            np.sign(odd, out=odd)
        else:
            with np.errstate(over="ignore"):
                odd *= 0.5 / temperature
            np.tanh(odd, out=odd)
        lead[i + 1 :] -= p[i] * odd
        odd *= p[i + 1 :]
        lead[i] += odd.sum(axis=0)
    lead *= 0.5
    lead += 0.5
    return np.moveaxis(lead.clip(0.0, 1.0), 0, axis)
