"""From the policy itself: its implicit reward ``h = beta log(policy / reference)`` and its entropy H.

:func:`margin` scores pairs. The others choose prompts by the entropy, in forms that leave a choice; where every prompt
gets a pair, only their pair score matters.
"""

from __future__ import annotations

import math

import numpy as np

from agents.scores import FloatArray, Observation, Plan, Score, baseline, duels, intervals, samples, thompson
from agents.scores.prompts import Firsts, first_pairs, highest, kept_then_margin, unit_range
from prefenv.spaces import pair_table
from prefenv.types import unknown_name

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


PAIR_SCORES: dict[str, Score] = {
    "random": baseline.random,
    "margin": margin,
    "drts": thompson.drts,
    "deltaucb": intervals.deltaucb,
    "deltaquantile": intervals.deltaquantile,
    "dts": thompson.dts,
    "maxminlcb": intervals.maxminlcb,
    "infogain": duels.infogain,
    "sea": samples.sea,
    "ids": duels.ids,
    "rucb": duels.rucb,
    "eubo": samples.eubo,
    "infomax": intervals.infomax,
    "bald": samples.bald,
    "variance": samples.variance,
    "least-confidence": intervals.least_confidence,
}
"""What can choose the pair inside the prompts of a rule that chooses prompts, by key."""


def pair_score(key: str) -> Score:
    """The pair score of a key.

    Raises:
        ValueError: there is none; the closest is named.
    """
    if not isinstance(key, str) or key not in PAIR_SCORES:
        raise unknown_name("pair score", key, PAIR_SCORES)
    return PAIR_SCORES[key]


def entropy(observation: Observation, rng: np.random.Generator, plan: Plan, *, pair: str = "random") -> FloatArray:
    """Prompts of high entropy H first [Random Is Hard to Beat, arXiv 2604.02766].

    The pair of the prompt with the t-th highest entropy comes t-th, and all other pairs come after these. It assumes
    that the policy is unsure where it has something to learn. It fails where many answers are as good, for a high
    entropy is right there.

    The public code sums log-probabilities over the tokens of two drawn responses, so that long ones win, and averages
    along the wrong axis, so that a number is of two prompts of the batch; our H is a mean over tokens of one prompt.

    Args:
        observation: with ``entropy`` (..., n), ``mask``, what the pair score needs, and in the sequential form
            ``selected``: a prompt with a selected pair has had its first.
        rng: one uniform array is drawn, for ties.
        plan: in the per-prompt form there is nothing to choose but pairs.
        pair: what chooses the pair inside a prompt, a key of :data:`PAIR_SCORES`.

    Returns:
        (..., n, P): the first pairs of prompts score 1 to 2, the others less than 1.

    Raises:
        ValueError: ``pair`` is no pair score.

    >>> shown = {"entropy": np.array([0.2, 0.9, 0.7]), "mask": np.ones((3, 2))}
    >>> entropy(shown, np.random.default_rng(0), Plan.at_start(2, d=1)).ravel().round(2)
    array([1.  , 2.  , 1.71])
    """
    return _by_entropy(observation, rng, plan, pair, 1.0)


def entropy_neg(observation: Observation, rng: np.random.Generator, plan: Plan, *, pair: str = "random") -> FloatArray:
    """Prompts of low entropy first: :func:`entropy` with the other sign [Random Is Hard to Beat, arXiv 2604.02766].

    It assumes that the policy is wrong where it is sure. With the public code's sum over tokens short responses win;
    our mean does not see length. Arguments, result and errors as in :func:`entropy`.
    """
    return _by_entropy(observation, rng, plan, pair, -1.0)


def _by_entropy(observation: Observation, rng: np.random.Generator, plan: Plan, pair: str, sign: float) -> FloatArray:
    firsts = first_pairs(observation, rng, plan, pair_score(pair))
    if plan.each_prompt:
        return firsts.score()
    return firsts.score(unit_range(sign * _entropy_of(observation, firsts)))


def _entropy_of(observation: Observation, firsts: Firsts) -> FloatArray:
    return np.asarray(observation["entropy"], dtype=np.float64).reshape(firsts.pair.shape)


def apl(
    observation: Observation, rng: np.random.Generator, plan: Plan, *, keep: float = 0.5, pair: str = "margin"
) -> FloatArray:
    """Prompts of high entropy first, then the largest margin ``|h_i - h_j|`` [APL, arXiv 2402.08114; 2604.02766].

    The ``ceil(keep n)`` prompts with the highest entropy are kept. First come the pairs of the kept prompts, one each,
    by margin; then those of the other prompts; then all other pairs, by the pair score. The score of the first pairs is
    ``2 + 2 kept + margin / (largest margin of these)``, so only its order means anything. Equal entropies and equal
    margins within a prompt are spread.

    It chooses prompts: with one pair for each prompt it is its pair score. It assumes that entropy tells where the
    policy has something to learn, and not just where many answers are as good; and what :func:`margin` assumes. The
    public code draws two responses for a kept prompt, which ``pair="random"`` does; by default it is the pair of the
    largest margin. Its entropy differs as :func:`entropy` says.

    Args:
        observation: with ``implicit_reward`` (..., n, m), ``entropy`` (..., n), ``mask``, what the pair score needs,
            and in the sequential form ``selected``: a prompt with a selected pair has had its first.
        rng: one uniform array is drawn, for ties.
        plan: in the per-prompt form there is nothing to choose but pairs.
        keep: share of the prompts that come first, in (0, 1].
        pair: what chooses the pair inside a prompt, a key of :data:`PAIR_SCORES`.

    Returns:
        (..., n, P) in [0, 5].

    Raises:
        ValueError: ``keep`` is no share above 0; ``pair`` is no pair score.

    >>> policy = {"implicit_reward": np.array([[0.0, 4.0], [0.0, 1.0], [0.0, 2.0]]), "entropy": np.array([1.0, 3, 2])}
    >>> apl(policy | {"mask": np.ones((3, 2))}, np.random.default_rng(0), Plan.at_start(2, d=1)).ravel()
    array([3.  , 4.25, 4.5 ])
    """
    return _apl(observation, rng, plan, keep, pair, top=1.0)


def apl_neg(
    observation: Observation, rng: np.random.Generator, plan: Plan, *, keep: float = 0.5, pair: str = "margin"
) -> FloatArray:
    """As :func:`apl`, but the prompts with the lowest entropy are kept [Random Is Hard to Beat, arXiv 2604.02766].

    It differs from the public code as :func:`apl` does. Arguments, result and errors as there.
    """
    return _apl(observation, rng, plan, keep, pair, top=0.0)


def apl_both(
    observation: Observation, rng: np.random.Generator, plan: Plan, *, keep: float = 0.5, pair: str = "margin"
) -> FloatArray:
    """As :func:`apl`, but half of the kept prompts have the highest entropy and half the lowest [arXiv 2604.02766].

    An odd number gives one more to the highest. The public code ranks the kept by the margin, as here; it rounds each
    half down. Arguments, result and errors as in :func:`apl`.
    """
    return _apl(observation, rng, plan, keep, pair, top=0.5)


def _apl(
    observation: Observation, rng: np.random.Generator, plan: Plan, keep: float, pair: str, top: float
) -> FloatArray:
    """Of the kept prompts the share ``top`` has the highest entropy, the rest the lowest."""
    if not 0 < keep <= 1:
        raise ValueError(f"keep={keep} must be a share of the prompts, above 0 and at most 1")
    firsts = first_pairs(observation, rng, plan, pair_score(pair))
    if plan.each_prompt:
        return firsts.score()
    value = _entropy_of(observation, firsts)
    tie_noise = firsts.noise[..., 0] + ~firsts.is_open  # of equal prompts one that has had its first is kept
    count = max(1, math.ceil(keep * value.shape[-1] - ROUNDING))
    n_top = math.ceil(top * count)
    kept = highest(value, n_top, tie_noise)
    kept |= highest(np.where(kept, -np.inf, -value), count - n_top, tie_noise)
    return firsts.score(kept_then_margin(observation, firsts, kept))
