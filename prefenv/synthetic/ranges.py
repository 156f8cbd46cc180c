"""Simulated worlds drawn at random, for agents that shall learn to acquire and not one world."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prefenv.synthetic.settings import Loss, SyntheticSettings
from prefenv.types import whole_number


@dataclass(frozen=True)
class Ranges:
    """What worlds are drawn from: each setting from its range, independently of the others but where it says so.

    A range is (low, high). Sizes, scales and rates are log-uniform in it, the rest uniform. What is not named here
    stays at its default: ensembles of heads as the posterior and generators of unequal consistency are never drawn, so
    that worlds with them are of a kind that no training has met.
    """

    n_prompts: tuple[int, int] = (2, 8)
    """Prompts in a pool."""
    n_candidates: tuple[int, int] = (2, 8)
    """Candidates for each prompt."""
    generators_each: tuple[float, float] = (1.0, 3.0)
    """Generators for each candidate; all of them write in a third of the worlds."""
    embedding_size: tuple[int, int] = (4, 64)
    """Size of the embedding."""
    misspecification: tuple[float, float] = (0.0, 0.5)
    """Share of the reward's variance that the embedding does not show."""
    reward_scale: tuple[float, float] = (0.7, 5.0)
    """Standard deviation of the reward among one generator's responses, log-odds."""
    skill_spread: tuple[float, float] = (0.2, 1.5)
    """Of the generators; 0 in a quarter of the worlds, and then style_spread is 0 too: samples of one model."""
    style_spread: tuple[float, float] = (0.0, 1.5)
    """Of the generators."""
    reference_strength: tuple[float, float] = (0.0, 1.5)
    """Nats for one standard deviation of the reward; 0 in half of the worlds."""
    reference_spread: tuple[float, float] = (0.3, 2.0)
    """Of the reference's logits, nats."""
    oracle_temperature: tuple[float, float] = (0.3, 2.0)
    """Of the labels."""
    oracle_tie: tuple[float, float] = (0.0, 1.0)
    """Lead that a label needs, log-odds; 0 in two thirds of the worlds."""
    oracle_flip: tuple[float, float] = (0.0, 0.25)
    """Chance that a label is turned round; 0 in two thirds of the worlds."""
    on_policy: float = 0.25
    """Share of the worlds whose candidates come from the current policy."""
    losses: tuple[Loss, ...] = ("dpo", "dpo", "dpo", "ipo", "simpo")
    """Losses, drawn alike."""
    beta: tuple[float, float] = (0.03, 0.3)
    """Of the loss; SimPO's is 20 times as large."""
    learning_rate: tuple[float, float] = (0.01, 3.0)
    """Size of a gradient step."""
    gradient_steps: tuple[int, int] = (1, 8)
    """Of each round."""
    prior_std: tuple[float, float] = (0.7, 5.0)
    """Of the reward under the posterior before any label."""
    warm_labels: tuple[int, int] = (10, 1000)
    """Labels that the posterior has seen before the episode; none in half of the worlds."""

    def __post_init__(self) -> None:
        for name, least in (("n_prompts", 1), ("n_candidates", 2), ("embedding_size", 1)):
            low, high = getattr(self, name)
            if whole_number(f"{name}, lowest", low, least) > whole_number(f"{name}, highest", high, least):
                raise ValueError(f"{name}={(low, high)}: the lowest comes first")
        for name in ("reward_scale", "beta", "learning_rate", "prior_std", "gradient_steps", "warm_labels"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}={(low, high)} is drawn by its logarithm: both above 0, the lowest first")
        if self.generators_each[0] < 1:
            raise ValueError(f"generators_each={self.generators_each}: each candidate has a generator, so at least 1")

    def draw(self, rng: np.random.Generator) -> SyntheticSettings:
        """Settings of one world.

        Example:
            >>> Ranges(n_candidates=(4, 4)).draw(np.random.default_rng(0)).n_candidates
            4
        """

        def scale(limits: tuple[float, float]) -> float:
            return float(np.exp(rng.uniform(*np.log(limits))))

        def size(limits: tuple[int, int]) -> int:
            low, high = limits
            return min(high, int(np.exp(rng.uniform(np.log(low), np.log(high + 1)))))

        def share(limits: tuple[float, float], none: float) -> float:
            value = rng.uniform(*limits)
            return 0.0 if rng.random() < none else float(value)

        m = size(self.n_candidates)
        g = round(m * scale(self.generators_each))
        one_model = rng.random() < 1 / 4
        loss = self.losses[rng.integers(len(self.losses))]
        beta = scale(self.beta)
        labels = size(self.warm_labels)
        return SyntheticSettings(
            n_prompts=size(self.n_prompts),
            n_candidates=m,
            n_generators=m if rng.random() < 1 / 3 else max(m, g),
            embedding_size=size(self.embedding_size),
            misspecification=share(self.misspecification, 0.0),
            reward_scale=scale(self.reward_scale),
            skill_spread=share(self.skill_spread, 1.0 if one_model else 0.0),
            style_spread=share(self.style_spread, 1.0 if one_model else 0.0),
            reference_strength=share(self.reference_strength, 1 / 2),
            reference_spread=share(self.reference_spread, 0.0),
            oracle_temperature=share(self.oracle_temperature, 0.0),
            oracle_tie=share(self.oracle_tie, 2 / 3),
            oracle_flip=share(self.oracle_flip, 2 / 3),
            on_policy=bool(rng.random() < self.on_policy),
            loss=loss,
            beta=20 * beta if loss == "simpo" else beta,
            learning_rate=scale(self.learning_rate),
            gradient_steps=size(self.gradient_steps),
            prior_std=scale(self.prior_std),
            warm_labels=0 if rng.random() < 1 / 2 else labels,
        )


POOLS_OF_MANY = Ranges(
    n_prompts=(4, 20),
    n_candidates=(9, 30),
    generators_each=(1.0, 1.5),
    embedding_size=(8, 96),
    warm_labels=(30, 2000),
)
"""Large pools, and posteriors that may know much: what a hub of many models has."""
