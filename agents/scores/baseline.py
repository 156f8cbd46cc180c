"""What every comparison is held against: chance and fixed recipes, and from above the oracle's own scores."""

from __future__ import annotations

import numpy as np

from agents.scores import FloatArray, Observation, ScoreArray
from agents.scores.picks import best, one_hot
from prefenv.spaces import n_pairs, pair_table
from prefenv.types import whole_number


def random(observation: Observation, rng: np.random.Generator) -> FloatArray:
    """Uniform over the pairs: every score is its own draw from [0, 1), so never i = j and no pair is favoured.

    It assumes nothing. It wastes labels where most pairs teach next to nothing. It is also what ``xpo`` chooses, whose
    recipe changes the learner: to the loss of each label comes ``alpha E_{y ~ reference} log policy(y)`` [XPO, arXiv
    2405.21046], so that a step leads away from what the reference says. That assumes that the reference has not found
    the good responses; where it has, it leads away from them. With the public codes' alpha of 1e-5 nothing is seen.

    Args:
        observation: with ``mask`` (..., n, m).
        rng: one uniform array is drawn.

    Returns:
        (..., n, P) in [0, 1).
    """
    *lead, n, m = observation["mask"].shape
    return rng.random((*lead, n, n_pairs(m)))


def deltaqwen(observation: Observation, rng: np.random.Generator) -> FloatArray:
    """Strongest generator against weakest: ``|g_i - g_j|`` [Delta, arXiv 2507.06187; AUF, arXiv 2603.09692].

    Needs no judge: with its recipe, ``Recipe(labels="generator")``, the environment takes the stronger generator's
    response for the chosen one, right or wrong. Without, the oracle labels the pair like any other.

    It assumes that the pool numbers its generators in the order of their public strength, and that strength shows in
    the responses. Where one model wrote all of them, all pairs are equal and it is ``random``.

    Args:
        observation: with ``generator`` (..., n, m), 0 for the weakest.
        rng: not used.

    Returns:
        (..., n, P), steps in the order of strength.

    >>> deltaqwen({"generator": np.array([[5.0, 0.0, 2.0]])}, np.random.default_rng(0))
    array([[5., 3., 2.]])
    """
    strength = np.asarray(observation["generator"], dtype=np.float64)
    first, second = pair_table(strength.shape[-1])
    return np.abs(strength[..., first] - strength[..., second])


def ultrafeedback(observation: Observation, rng: np.random.Generator, *, candidates: int = 4) -> ScoreArray:
    """Best of a few by the oracle's score against another of them [UltraFeedback, arXiv 2310.01377; AUF].

    ``candidates`` of a prompt's candidates are drawn uniformly, the oracle scores these, and the best meets a uniform
    one of the others. A prompt with fewer candidates has all of them scored.

    Privileged: it reads ``oracle_score``, of the drawn candidates only. The opponent is left to chance, so the gap is
    smaller than that of :func:`maxmin`. All pairs but the chosen score alike, so a budget beyond one pair a prompt is
    filled at random.

    Args:
        observation: with ``oracle_score`` (..., n, m) and ``mask``.
        rng: one uniform array is drawn.
        candidates: responses that the oracle scores for each prompt.

    Returns:
        (..., n, P) bool: True for the pair.

    Raises:
        ValueError: ``candidates`` is no whole number of at least 2; the observation has no ``oracle_score``.

    >>> shown = {"oracle_score": np.array([[2.0, -1.0, 0.5]]), "mask": np.array([[1, 0, 1]])}
    >>> ultrafeedback(shown, np.random.default_rng(0))
    array([[False,  True, False]])
    """
    count = whole_number("candidates", candidates, minimum=2)
    score = _oracle_score(observation, "ultrafeedback")
    mask = np.asarray(observation["mask"], dtype=bool)
    *lead, m = mask.shape
    noise = rng.random((*lead, m + 1))
    place = noise[..., :m] if mask.all() else np.where(mask, noise[..., :m], 2.0)  # those that do not exist come last
    drawn = np.argsort(place, axis=-1)[..., :count]  # (..., candidates)
    place, exists = (np.take_along_axis(values, drawn, axis=-1) for values in (place, mask))
    first = best(np.take_along_axis(score, drawn, axis=-1), exists, place)
    scored = exists.sum(axis=-1)
    second = (first + 1 + (noise[..., m] * (scored - 1)).astype(np.int64)) % scored  # any of the others
    first, second = (np.take_along_axis(drawn, side[..., None], axis=-1)[..., 0] for side in (first, second))
    return one_hot(first, second, m)


def maxmin(observation: Observation, rng: np.random.Generator) -> FloatArray:
    """Best against worst by the oracle's own score: ``|o_i - o_j|`` [AUF, arXiv 2603.09692].

    Privileged: it needs ``oracle_score``, the oracle's judgement of all m candidates, so it is a ceiling and no
    competitor.

    Raises:
        ValueError: the observation has no ``oracle_score``.

    >>> maxmin({"oracle_score": np.array([[2.0, -1.0, 0.5]])}, np.random.default_rng(0))
    array([[3. , 1.5, 1.5]])
    """
    score = _oracle_score(observation, "maxmin")
    first, second = pair_table(score.shape[-1])
    return np.abs(score[..., first] - score[..., second])


def oracle_greedy(observation: Observation, rng: np.random.Generator) -> FloatArray:
    """The expected one-step gain in win rate of each pair, by the world's own truth: how much room there is.

    Privileged: it needs ``oracle_gain``. To first order gains of several labels add up, so the best set is that of the
    best pairs; with large steps it may fall short of the best set.

    Raises:
        ValueError: the observation has no ``oracle_gain``.

    >>> oracle_greedy({"oracle_gain": np.array([[0.1, -0.2, 0.3]])}, np.random.default_rng(0))
    array([[ 0.1, -0.2,  0.3]])
    """
    if "oracle_gain" not in observation:
        raise ValueError("oracle-greedy sees the world's truth: make a synthetic environment with privileged=True")
    return np.asarray(observation["oracle_gain"], dtype=np.float64)


def _oracle_score(observation: Observation, method: str) -> FloatArray:
    """(..., n, m) float64, or an error that says how to see it."""
    if "oracle_score" not in observation:
        raise ValueError(f"{method} sees the oracle's scores: make the environment with privileged=True")
    return np.asarray(observation["oracle_score"], dtype=np.float64)
