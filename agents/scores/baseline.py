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
