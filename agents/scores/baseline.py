"""What every comparison is held against: chance from below, the oracle's own scores from above."""

from __future__ import annotations

import numpy as np

from agents.scores import FloatArray, Observation
from prefenv.spaces import n_pairs, pair_table


def random(observation: Observation, rng: np.random.Generator) -> FloatArray:
    """Uniform over the pairs: every score is its own draw from [0, 1), so never i = j and no pair is favoured."""
    *lead, n, m = observation["mask"].shape
    return rng.random((*lead, n, n_pairs(m)))


def maxmin(observation: Observation, rng: np.random.Generator) -> FloatArray:
    """Best against worst by the oracle's own score: ``|o_i - o_j|`` [AUF, arXiv 2603.09692].

    Privileged: it needs ``oracle_score``, the oracle's judgement of all m candidates, so it is a ceiling and no
    competitor.

    Raises:
        ValueError: the observation has no ``oracle_score``.

    >>> maxmin({"oracle_score": np.array([[2.0, -1.0, 0.5]])}, np.random.default_rng(0))
    array([[3. , 1.5, 1.5]])
    """
    if "oracle_score" not in observation:
        raise ValueError("maxmin sees the oracle's scores: make the environment with privileged=True")
    score = np.asarray(observation["oracle_score"], dtype=np.float64)
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
