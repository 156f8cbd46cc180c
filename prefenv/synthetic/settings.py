"""What can be set in the simulator."""

from __future__ import annotations

import math
from dataclasses import dataclass

from prefenv.types import whole_number


@dataclass(frozen=True)
class SyntheticSettings:
    """A simulated world: a hidden reward, generators of different skill, a log-linear policy."""

    n_prompts: int = 8
    """Prompts in a pool (n)."""
    n_candidates: int = 4
    """Candidates for each prompt (m)."""
    n_samples: int = 32
    """Joint posterior draws in an observation (S)."""
    n_generators: int = 8
    """Generators; each writes one response to every prompt."""
    n_eval_prompts: int = 128
    """Held-out prompts that the win rate is computed on."""
    embedding_size: int = 16
    """Size of the embedding that agents see, and of the hidden features behind it (d)."""
    misspecification: float = 0.3
    """Share of the embedding's variance that is noise, in [0, 1): 0 shows the reward in full."""
    reward_scale: float = 2.0
    """Standard deviation of the hidden reward among one generator's responses, log-odds."""
    skill_spread: float = 0.7
    """Standard deviation of skill among generators, in units of reward_scale."""
    style_spread: float = 0.7
    """Standard deviation of each hidden feature's mean among generators."""
    reference_spread: float = 1.0
    """Standard deviation of the reference policy's logits over responses, nats."""
    oracle_temperature: float = 1.0
    """Temperature of the Bradley-Terry labels; 0 labels without noise."""
    length_bias: float = 1.0
    """What the second judge adds to the reward for one standard deviation of log-length, log-odds."""
    capability_conflict: float = 0.5
    """Part of the capability that opposes the reward, in [0, 1]."""
    on_policy: bool = False
    """Draw candidates from the current policy instead of from all generators alike."""
    beta: float = 0.1
    """Strength of the pull to the reference in DPO."""
    learning_rate: float = 1.0
    """Size of a gradient step on the DPO loss; at 1 ten rounds of the defaults stop short of saturation."""
    gradient_steps: int = 4
    """Gradient steps of each DPO step, each on all labels of the round."""
    prior_std: float = 2.0
    """Standard deviation of a reward under the posterior before any label, log-odds."""

    def __post_init__(self) -> None:
        whole_number("n_candidates", self.n_candidates, minimum=2)
        for name in ("n_prompts", "n_samples", "n_generators", "n_eval_prompts", "embedding_size", "gradient_steps"):
            whole_number(name, getattr(self, name))
        if self.n_candidates > self.n_generators:
            raise ValueError(
                f"n_candidates={self.n_candidates} of n_generators={self.n_generators}: each generator writes one "
                "response to a prompt, so ask for fewer candidates or more generators"
            )
        for name in ("reward_scale", "beta", "learning_rate", "prior_std"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be positive and finite")
        for name in ("skill_spread", "style_spread", "reference_spread", "oracle_temperature"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be 0 or larger, and finite")
        if not math.isfinite(self.length_bias):
            raise ValueError(f"length_bias={self.length_bias} must be finite")
        if not 0 <= self.misspecification < 1:
            raise ValueError(f"misspecification={self.misspecification} must lie in [0, 1)")
        if not 0 <= self.capability_conflict <= 1:
            raise ValueError(f"capability_conflict={self.capability_conflict} must lie in [0, 1]")
        if not isinstance(self.on_policy, bool):
            raise ValueError(f"on_policy={self.on_policy!r} must be True or False")
