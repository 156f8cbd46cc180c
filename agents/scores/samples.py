"""Scores from joint posterior draws of the reward: what the draws disagree about, or agree is good.

One draw is one reward function, so these know which rewards rise and fall together, where intervals do not.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

from agents.scores import FloatArray, Observation, ScoreArray
from agents.scores.picks import best, one_hot
from agents.scores.thompson import best_of_a_draw, posterior_draws
from prefenv.spaces import n_pairs, pair_table

BLOCK = 1 << 15  # numbers: 256 KB of float64, so that the few arrays of a block of prompts stay in a core's cache
ROUNDING = 1e-12  # nats: float64 errors of an information are some 1e-15, so what is smaller than this is none
FACTORS = 1000  # factors of at most 2 each, whose product is below the largest float64, 2^1024


def bald(observation: Observation, rng: np.random.Generator) -> FloatArray:
    """Information between the label and the draw: ``H(mean_s p_s) - mean_s H(p_s)`` [BALD, arXiv 1112.5745].

    ``p_s = sig(R_si - R_sj)`` and H is the entropy of a coin in nats. It is large where each draw is sure of the
    winner and the draws disagree.

    It assumes that labels follow Bradley-Terry, and that few draws stand for the posterior: with S of them no score
    exceeds ``log S``. It asks what teaches the reward, not what improves the policy, so it also asks about bad
    candidates. Draws that agree give exactly 0, and the pair is left to chance. A budget goes to the pairs with most
    information wherever they are; two pairs of one prompt often tell much the same, and that is not seen.

    Args:
        observation: with ``reward_samples`` (..., S, n, m) and ``mask``.
        rng: not used.

    Returns:
        (..., n, P) in [0, log 2], nats.

    Raises:
        ValueError: fewer than two draws.

    >>> draws = np.array([[[0.0, 2.0, 2.0]], [[2.0, 0.0, 2.0]]])
    >>> bald({"reward_samples": draws, "mask": np.ones((1, 3))}, np.random.default_rng(0)).round(3)
    array([[0.328, 0.09 , 0.09 ]])
    """
    return _of_pairs(joint_samples(observation, "bald"), _information)


def eubo(observation: Observation, rng: np.random.Generator) -> FloatArray:
    """Expected utility of the better of the two: ``mean_s max(R_si, R_sj)`` [EUBO, arXiv 2203.11382].

    It looks for one good candidate by comparing two that may be it, and both are good. The label then says little about
    what is bad.

    It assumes that finding the best is the aim. Where the posterior is sure it is the pair of the best two. A budget
    goes to the prompts with the highest rewards: the score has the level of the rewards, which comparisons within
    prompts do not tell.

    Args:
        observation: with ``reward_samples`` (..., S, n, m) and ``mask``.
        rng: not used.

    Returns:
        (..., n, P), in units of the reward.

    >>> draws = np.array([[[0.0, 2.0, 1.0]], [[2.0, 0.0, 1.0]]])
    >>> eubo({"reward_samples": draws, "mask": np.ones((1, 3))}, np.random.default_rng(0))
    array([[2. , 1.5, 1.5]])
    """
    return _of_pairs(joint_samples(observation, "eubo", minimum=1), _mean_of_larger)


def variance(observation: Observation, rng: np.random.Generator) -> FloatArray:
    """Standard deviation over the draws of ``R_i - R_j``: where the gap of the rewards is least known.

    ``std_s(R_si - R_sj)``, of all S draws as the population. For a linear reward it is what one more label would
    measure, as in optimal designs. Rewards that rise and fall together cancel, which ``s_i + s_j`` does not see.

    It assumes that a label is worth more the less the gap is known. It does not see that a large gap makes the label
    sure however uncertain its size is: :func:`bald` does. Draws that agree give exactly 0. A budget goes to the pairs
    with the largest score wherever they are, often to outlying candidates and to pairs that tell much the same.

    Args:
        observation: with ``reward_samples`` (..., S, n, m) and ``mask``.
        rng: not used.

    Returns:
        (..., n, P), in units of the reward.

    Raises:
        ValueError: fewer than two draws.

    >>> draws = np.array([[[0.0, 1.0, 1.0]], [[2.0, 3.0, 1.0]]])
    >>> variance({"reward_samples": draws, "mask": np.ones((1, 3))}, np.random.default_rng(0))
    array([[0., 1., 1.]])
    """
    return _of_pairs(joint_samples(observation, "variance"), _std_of_difference)


def sea(observation: Observation, rng: np.random.Generator) -> ScoreArray:
    """Best of one draw against the opponent whose gap to it is least known [SEA, arXiv 2411.01493].

    ``first = argmax_i R_si`` for one uniform draw s of each prompt, ``second = argmax_{j != first} std_s(R_first -
    R_j)``. Equal candidates are equally likely. It is the choice only; labels that the method gives itself are made by
    the environment's recipe.

    It assumes that the draws stand for the posterior. The first is good, and the second may be anything that is little
    known, so the label often is a sure one. All pairs but the chosen score alike, so a budget beyond one pair a prompt
    is filled at random, and a smaller one is spread over the chosen pairs at random. The public code (oat, and that of
    arXiv 2604.02766) takes the same draw for all prompts of a batch, the first index of equals, and the first candidate
    as its own opponent where no gap varies.

    Args:
        observation: with ``reward_samples`` (..., S, n, m) and ``mask``.
        rng: one uniform array is drawn.

    Returns:
        (..., n, P) bool: True for the pair.

    Raises:
        ValueError: fewer than two draws.

    >>> draws = np.array([[[0.0, 8.0, 5.0]], [[2.0, 9.0, 1.0]]])  # 1 is best, and the gap to 2 is 3 or 8
    >>> sea({"reward_samples": draws, "mask": np.ones((1, 3))}, np.random.default_rng(0))
    array([[False, False,  True]])
    """
    samples = joint_samples(observation, "sea")
    mask = np.asarray(observation["mask"], dtype=bool)
    m = mask.shape[-1]
    draws, tie_noise = posterior_draws(observation, rng, "joint", width=1.0, count=1)
    first = best_of_a_draw(draws, mask, tie_noise)  # (..., n)
    others = mask & (np.arange(m) != first[..., None])
    second = best(std_against(samples, first), others, tie_noise[..., 1, :])
    return one_hot(first, second, m)


def joint_samples(observation: Observation, method: str, minimum: int = 2) -> FloatArray:
    """(..., S, n, m) float64 joint draws, 0 for candidates that do not exist.

    Raises:
        ValueError: fewer draws than ``minimum``, with the method's name.
    """
    samples = np.asarray(observation["reward_samples"])
    if samples.shape[-3] < minimum:
        raise ValueError(
            f"{method} compares joint draws, but the observation has S={samples.shape[-3]}: "
            f"make the environment with n_samples={minimum} or more"
        )
    mask = np.asarray(observation["mask"], dtype=bool)
    if not mask.all():
        samples = np.where(mask[..., None, :, :], samples, 0.0)
    return samples.astype(np.float64, copy=False)


def std_against(samples: FloatArray, first: NDArray[np.int64]) -> FloatArray:
    """(..., n, m): standard deviation over the draws of ``R_first - R_j``; exactly 0 where no draw differs.

    Args:
        samples: (..., S, n, m) float64.
        first: (..., n), a candidate of each prompt.

    >>> std_against(np.array([[[0.0, 1.0, 1.0]], [[2.0, 3.0, 1.0]]]), np.array([0]))
    array([[0., 0., 1.]])
    """
    gap = np.take_along_axis(samples, first[..., None, :, None], axis=-1) - samples
    # Less the first draw's, the gaps are of the size of their spread, and all 0 where they are all the same.
    gap -= gap[..., :1, :, :].copy()
    mean_square = np.einsum("...snm,...snm->...nm", gap, gap) / gap.shape[-3]
    return np.sqrt(np.maximum(mean_square - gap.mean(axis=-3) ** 2, 0.0))


def _of_pairs(samples: FloatArray, statistic: Callable[[FloatArray, FloatArray], FloatArray]) -> FloatArray:
    """(..., n, P): a statistic of both candidates' rewards, from (..., S, n, m) draws.

    Pairs are many more numbers than draws, so they are made for a block of prompts at a time.

    Args:
        samples: (..., S, n, m) float64.
        statistic: two (S, block, P) arrays, which it may overwrite → (block, P).
    """
    *lead, n_samples, n, m = samples.shape
    first, second = pair_table(m)
    pairs = n_pairs(m)
    draws = np.moveaxis(samples, -3, 0).reshape(n_samples, -1, m)
    score = np.empty((draws.shape[1], pairs))
    step = max(1, BLOCK // (n_samples * pairs))
    for start in range(0, len(score), step):
        block = np.ascontiguousarray(draws[:, start : start + step])
        score[start : start + step] = statistic(block.take(first, axis=-1), block.take(second, axis=-1))
    return score.reshape(*lead, n, pairs)


def _information(one: FloatArray, other: FloatArray) -> FloatArray:
    """Entropy of the mean chance minus mean entropy, over the first axis, without overflow or cancellation.

    With ``t = exp(-|x|)`` the less likely winner has the chance ``u = t / (1 + t)``, and a coin's entropy is
    ``log(1 + t) + |x| u``. The logarithms are summed as that of a product, one for many draws.
    """
    n_samples = len(one)
    log_odds = np.subtract(one, other, out=one)
    size = np.abs(log_odds)
    odds = np.exp(np.negative(size, out=other), out=other)
    normaliser = 1 + odds
    less_likely = np.divide(odds, normaliser, out=odds)
    products = np.multiply.reduceat(normaliser, np.arange(0, n_samples, FACTORS), axis=0)
    entropy = np.log(products).sum(axis=0) + np.multiply(size, less_likely, out=size).sum(axis=0)
    above_half = np.copysign(np.subtract(0.5, less_likely, out=less_likely), log_odds, out=less_likely).mean(axis=0)
    information = entr(0.5 + above_half) + entr(0.5 - above_half) - entropy / n_samples
    return np.where(information <= ROUNDING, 0.0, information)


def _mean_of_larger(one: FloatArray, other: FloatArray) -> FloatArray:
    return np.maximum(one, other, out=one).mean(axis=0)


def _std_of_difference(one: FloatArray, other: FloatArray) -> FloatArray:
    gap = np.subtract(one, other, out=one)
    gap -= gap[:1].copy()  # as in std_against
    return gap.std(axis=0)
