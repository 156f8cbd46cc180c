"""B beliefs side by side, and one of them as the posterior of a world."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.random.bit_generator import BitGenerator

from prefenv.protocols import State
from prefenv.types import Belief, FloatArray, Pool, Preferences


class Beliefs(Protocol):
    """Beliefs about the rewards of B worlds, from the labels so far."""

    def reset(self, sources: Sequence[BitGenerator]) -> None:
        """Back to the prior."""

    def mean(self, embedding: FloatArray) -> FloatArray:
        """(B, ...) for (B, ..., d) embeddings; draws nothing."""

    def predict(self, embedding: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Mean and standard deviation (B, n, m) and joint draws (B, S, n, m), float32, of (B, n, m, d) embeddings."""

    def absorb(self, chosen: FloatArray, rejected: FloatArray) -> None:
        """Learn from (B, k, d) embeddings; a row where both are the same is no label."""

    def state_dict(self) -> State:
        """All that the rest of the episode depends on."""

    def load_state_dict(self, state: State) -> None:
        """Go on from a saved state."""


class SinglePosterior:
    """The posterior of one world, with the beliefs of B = 1 behind it.

    Attributes:
        beliefs: of one world.
    """

    beliefs: Beliefs

    def reset(self, rng: np.random.Generator) -> None:
        """Back to the prior."""
        self.beliefs.reset([rng.bit_generator])

    def mean(self, embedding: FloatArray) -> FloatArray:
        """(...,) posterior mean of the reward for (..., d) embeddings, of their dtype."""
        return np.asarray(self.beliefs.mean(embedding[None])[0])

    def predict(self, embedding: FloatArray) -> Belief:
        """Belief about (n, m, d) embeddings; S joint draws."""
        mean, std, samples = self.beliefs.predict(embedding[None])
        return Belief(mean[0], std[0], samples[0])

    def update(self, pool: Pool, preferences: Preferences) -> None:
        """Learn from the labels, in their order."""
        if len(preferences):
            rows = preferences.prompt
            chosen, rejected = pool.embedding[rows, preferences.chosen], pool.embedding[rows, preferences.rejected]
            self.beliefs.absorb(chosen[None], rejected[None])

    def state_dict(self) -> State:
        """The belief and its generator."""
        return self.beliefs.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Restore."""
        self.beliefs.load_state_dict(state)
