"""Stub worlds that any test may need."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from prefenv.oracles.bradley_terry import BradleyTerryOracle
from prefenv.posteriors.bayesian_linear import BayesianLinearPosterior
from prefenv.protocols import RewardPosterior, State, World
from prefenv.types import Evaluation, FloatArray, Pool, Preferences, WinRate


def make_pool(mask: np.ndarray, rng: np.random.Generator, d: int = 3) -> Pool:
    """A pool of noise with this mask; the first embedding coordinate is the reward."""
    n, m = mask.shape
    normal = rng.standard_normal((4, n, m)).astype(np.float32)
    return Pool(
        prompt_id=rng.permutation(1000)[:n],
        embedding=rng.standard_normal((n, m, d)).astype(np.float32),
        logprob=-np.abs(normal[0]),
        length=np.exp(normal[1]),
        implicit_reward=normal[2],
        entropy=np.abs(normal[3, :, 0]),
        generator=np.tile(np.arange(m), (n, 1)),
        mask=mask,
    )


def first_coordinate(pool: Pool) -> FloatArray:
    return pool.embedding[..., 0]


class RaggedSource:
    """Pools in which the last candidate of every second prompt is missing."""

    def __init__(self, n: int, m: int) -> None:
        self.mask = np.ones((n, m), dtype=bool)
        self.mask[::2, -1] = False
        self.reset(np.random.default_rng(0))

    def reset(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def draw(self) -> Pool:
        return make_pool(self.mask.copy(), self._rng)

    def state_dict(self) -> State:
        return {"rng": self._rng.bit_generator.state}

    def load_state_dict(self, state: State) -> None:
        self._rng.bit_generator.state = state["rng"]


class CountingLearner:
    """A policy whose win rate is one half plus a hundredth of the labels it saw; its evaluator too."""

    def __init__(self) -> None:
        self.seen: list[Preferences] = []

    def reset(self, rng: np.random.Generator) -> None:
        self.seen = []

    def step(self, pool: Pool, preferences: Preferences, exploration_bonus: float = 0.0) -> None:
        self.seen.append(preferences)

    def evaluate(self, posterior: RewardPosterior) -> Evaluation:
        value = min(1.0, 0.5 + 0.01 * sum(len(labels) for labels in self.seen))
        rate = WinRate(value, value, value, 1)
        return Evaluation(rate, value, 0.0, 0.0, 0.5)

    def state_dict(self) -> State:
        return {"seen": list(self.seen)}

    def load_state_dict(self, state: State) -> None:
        self.seen = list(state["seen"])


@pytest.fixture
def ragged_world() -> World:
    """3 prompts × 4 candidates, the last candidate missing for prompts 0 and 2."""
    n, m, d = 3, 4, 3
    learner = CountingLearner()
    return World(
        name="ragged",
        source=RaggedSource(n, m),
        oracle=BradleyTerryOracle(first_coordinate, temperature=0.0),
        posterior=BayesianLinearPosterior(d, n_samples=8),
        learner=learner,
        evaluator=learner,
        n_prompts=n,
        n_candidates=m,
        embedding_size=d,
        n_samples=8,
        gain=lambda _: np.zeros((n, m * (m - 1) // 2)),
    )


def make_observation(
    rng: np.random.Generator, *, batch: tuple[int, ...] = (), n: int = 3, m: int = 4, d: int = 5, samples: int = 16
) -> dict[str, Any]:
    """An observation of noise, as the environment would show it."""
    std = rng.random((*batch, n, m)) + 0.1
    mean = rng.standard_normal((*batch, n, m))
    draws = mean[..., None, :, :] + std[..., None, :, :] * rng.standard_normal((*batch, samples, n, m))
    entries = {
        "embedding": rng.standard_normal((*batch, n, m, d)),
        "reward_mean": mean,
        "reward_std": std,
        "reward_samples": draws,
        "logprob": -rng.random((*batch, n, m)),
        "length": 100 * rng.random((*batch, n, m)) + 1,
        "implicit_reward": rng.standard_normal((*batch, n, m)),
        "entropy": rng.random((*batch, n)),
        "generator": np.broadcast_to(np.arange(m), (*batch, n, m)),
        "budget": rng.random((*batch, 1)),
        "oracle_score": rng.standard_normal((*batch, n, m)),
        "oracle_gain": rng.standard_normal((*batch, n, m * (m - 1) // 2)),
    }
    observation: dict[str, Any] = {name: np.asarray(value, dtype=np.float32) for name, value in entries.items()}
    observation["mask"] = np.ones((*batch, n, m), dtype=np.int8)
    return observation
