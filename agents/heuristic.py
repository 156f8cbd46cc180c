"""A score plus a selection is an agent."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from agents.scores import Observation, Score
from agents.select import choose


class ScoreAgent:
    """Chooses the pairs that a score ranks highest.

    Has Stable-Baselines3's ``predict``, so ``evaluate_policy`` runs it. A batch of observations gets the actions that
    its members would get one after the other.

    Args:
        score: observation, generator → (..., n, P).
        action_space: of one environment; None is one pair for each prompt (or, where the observation says what is
            selected, one pair).
        seed: of the agent's own draws; None takes fresh entropy.
    """

    def __init__(self, score: Score, action_space: spaces.Space | None = None, seed: int | None = None) -> None:
        self.score, self.action_space = score, action_space
        # two streams, so that a batch draws from each in the order in which single calls would
        self._score_rng, self._tie_rng = np.random.default_rng(seed).spawn(2)

    def predict(
        self,
        observation: Observation,
        state: tuple[Any, ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[np.int64], tuple[Any, ...] | None]:
        """Action for one observation or a batch, and the state handed in.

        Args:
            observation: entries as the environment shows them, or with one leading axis.
            state: memory of the episode; score agents have none.
            episode_start: not used.
            deterministic: not used: a method's draws are part of the method.

        Returns:
            int64 action, or a batch of them; and ``state``.
        """
        score = self.score(observation, self._score_rng)
        return choose(score, observation, self.action_space, self._tie_rng), state
