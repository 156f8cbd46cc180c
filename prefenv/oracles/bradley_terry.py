"""Labels by the Bradley-Terry model of a known reward."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from prefenv.evaluation.win_rate import preference_prob
from prefenv.protocols import State
from prefenv.types import FloatArray, Pairs, Pool, Preferences


class BradleyTerryOracle:
    """P(i is preferred to j) = sig((r_i - r_j) / temperature).

    Args:
        score: pool → (n, m) reward r; NaN or infinite is an error, never a label.
        temperature: 0 gives the label to the larger reward always; exact ties are then a fair coin.
    """

    def __init__(self, score: Callable[[Pool], FloatArray], temperature: float = 1.0) -> None:
        if not temperature >= 0:
            raise ValueError(f"oracle temperature={temperature} must be 0 or larger")
        self._score, self.temperature = score, temperature
        self.reset(np.random.default_rng())

    def reset(self, rng: np.random.Generator) -> None:
        """Begin an episode."""
        self._rng = rng

    def score(self, pool: Pool) -> FloatArray:
        """(n, m) float32 reward; 0 where there is no candidate."""
        reward = np.where(pool.mask, np.asarray(self._score(pool), dtype=np.float32), np.float32(0.0))
        if not np.all(np.isfinite(reward)):
            raise ValueError("the oracle's reward is NaN or infinite for a candidate: no label can be given")
        return reward

    def compare(self, pool: Pool, pairs: Pairs) -> Preferences:
        """One label for each pair."""
        reward = self.score(pool).astype(np.float64)
        gap = reward[pairs.prompt, pairs.first] - reward[pairs.prompt, pairs.second]
        first_wins = self._rng.random(len(pairs)) < preference_prob(gap, self.temperature)
        return Preferences(
            prompt=pairs.prompt.copy(),
            chosen=np.where(first_wins, pairs.first, pairs.second),
            rejected=np.where(first_wins, pairs.second, pairs.first),
        )

    def state_dict(self) -> State:
        """The generator."""
        return {"rng": self._rng.bit_generator.state}

    def load_state_dict(self, state: State) -> None:
        """Restore."""
        self._rng.bit_generator.state = state["rng"]
