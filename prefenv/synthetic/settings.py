"""What can be set in the simulator, and its presets. :mod:`prefenv.synthetic.story` says what each number means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from prefenv.types import unknown_name, whole_number

LARGEST = 1e6  # of a setting: products of several still fit into float32
Loss = Literal["dpo", "ipo", "simpo"]
Posterior = Literal["linear", "ensemble"]


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
    """Generators (G), numbered from the weakest to the strongest; each writes one response to every prompt."""
    n_eval_prompts: int = 64
    """Held-out prompts that the win rate is computed on (E)."""
    embedding_size: int = 16
    """Size of the embedding that agents see (d); responses have one feature more, which it does not show."""
    misspecification: float = 0.3
    """Share of the reward's variance that lies in the feature that the embedding does not show, in [0, 1)."""
    reward_scale: float = 2.0
    """Standard deviation of the hidden reward among one generator's responses, log-odds."""
    skill_spread: float = 0.7
    """Standard deviation of skill among generators, in units of reward_scale."""
    style_spread: float = 0.7
    """Standard deviation of each feature's mean among generators, apart from skill."""
    consistency_spread: float = 0.0
    """Standard deviation, among generators, of the log of how much one generator's responses differ."""
    reference_strength: float = 0.0
    """How much the reference prefers good responses: nats for one standard deviation of the reward."""
    reference_spread: float = 1.0
    """Standard deviation of the reference policy's logits apart from that, nats."""
    oracle_temperature: float = 1.0
    """Temperature of the Bradley-Terry labels; 0 labels without noise."""
    oracle_tie: float = 0.0
    """Log-odds that a response must be ahead to be preferred half the time; what neither gets is a tie, no label."""
    oracle_flip: float = 0.0
    """Chance that a label is turned round, in [0, 1]."""
    length_bias: float = 1.0
    """What the second judge adds to the reward for one standard deviation of log-length, log-odds."""
    style_bias: float = 0.0
    """What the second judge adds for one standard deviation of a style of its own taste, log-odds."""
    capability_conflict: float = 0.5
    """Part of the capability that opposes the reward, in [0, 1]."""
    on_policy: bool = False
    """Draw candidates from the current policy instead of from all generators alike."""
    loss: Loss = "dpo"
    """Loss of the policy step: dpo, ipo or simpo."""
    beta: float = 0.1
    """Strength of the pull to the reference in DPO and IPO; in SimPO the scale of the log-probabilities."""
    simpo_margin: float = 0.0
    """SimPO's target margin (gamma), in log-odds."""
    learning_rate: float = 1.0
    """Size of a gradient step; at 1 ten rounds of the defaults stop short of saturation."""
    gradient_steps: int = 4
    """Gradient steps of each round, each on all labels of the round."""
    posterior: Posterior = "linear"
    """Belief about the reward: Bayesian linear, or an ensemble of n_samples heads."""
    prior_std: float = 2.0
    """Standard deviation of a reward under the posterior before any label, log-odds."""
    warm_labels: int = 0
    """Labels of random pairs, the oracle's own, that the posterior has learned from before the episode begins."""

    def __post_init__(self) -> None:
        whole_number("n_candidates", self.n_candidates, minimum=2)
        for name in ("n_prompts", "n_samples", "n_generators", "n_eval_prompts", "embedding_size", "gradient_steps"):
            whole_number(name, getattr(self, name))
        whole_number("warm_labels", self.warm_labels, minimum=0)
        if self.n_candidates > self.n_generators:
            raise ValueError(
                f"n_candidates={self.n_candidates} of n_generators={self.n_generators}: each generator writes one "
                "response to a prompt, so ask for fewer candidates or more generators"
            )
        for name in ("reward_scale", "beta", "learning_rate", "prior_std"):
            self._require(name, 0.0, LARGEST, "positive and at most", strict=True)
        for name in ("skill_spread", "style_spread", "reference_spread", "oracle_temperature", "oracle_tie"):
            self._require(name, 0.0, LARGEST, "0 or larger, and at most")
        self._require("consistency_spread", 0.0, 3.0, "0 or larger, and at most")
        for name in ("length_bias", "style_bias", "reference_strength", "simpo_margin"):
            self._require(name, -LARGEST, LARGEST, "finite, of size at most")
        self._require("misspecification", 0.0, 1.0, "0 or larger, and below")
        if self.misspecification == 1:
            raise ValueError("misspecification=1 must lie in [0, 1)")
        for name in ("capability_conflict", "oracle_flip"):
            self._require(name, 0.0, 1.0, "0 or larger, and at most")
        if not isinstance(self.on_policy, bool):
            raise ValueError(f"on_policy={self.on_policy!r} must be True or False")
        for name, known in (("loss", get_args(Loss)), ("posterior", get_args(Posterior))):
            if getattr(self, name) not in known:
                raise unknown_name(name, getattr(self, name), known)
        if self.posterior == "ensemble" and self.n_samples < 2:
            raise ValueError("n_samples=1: an ensemble needs at least 2 heads")

    def _require(self, name: str, low: float, high: float, what: str, strict: bool = False) -> None:
        value = getattr(self, name)
        number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
        if not (number and low <= value <= high) or (strict and value == low):  # NaN is in no range
            raise ValueError(f"{name}={value!r} must be a number, {what} {high:g}")


PRESETS: dict[str, SyntheticSettings] = {
    "synthetic": SyntheticSettings(),
    "active-ultrafeedback": SyntheticSettings(  # docs/calibration.md has the reasons and what else was tried
        n_prompts=20,  # 200 labels in ten rounds
        n_candidates=30,  # a response of each of 30 generators to every prompt
        n_generators=30,
        embedding_size=80,  # features of a reward model: many, for the labels there are
        style_spread=1.2,  # a generator's responses are more like one another than like those of others
        learning_rate=0.01,  # the policy stays far from what its labels would support
        warm_labels=2000,  # the posterior starts from a reward model that was trained already
    ),
    "on-policy": SyntheticSettings(
        n_prompts=64,  # for 16 labels a round: prompts have to be chosen
        n_candidates=2,
        n_generators=16,  # samples of one model, so without skill or style of their own
        skill_spread=0.0,
        style_spread=0.0,
        on_policy=True,
        reference_strength=1.0,  # the model prefers good responses before any label
        capability_conflict=0.8,  # what labels reward costs capability
    ),
}
"""World key → settings. ``synthetic`` is the default preset."""
