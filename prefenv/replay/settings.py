"""Sizes and choices of the replay world. Imports nothing heavy: the command line reads it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from prefenv.synthetic.settings import Loss
from prefenv.types import unknown_name, whole_number

Judge = Literal["bradley-terry", "argmax"]
PACKAGED_EMBEDDER = "all-minilm-l6-v2"  # what `prefenv pools embed` takes where no other is named
REFERENCES = ("uniform", "generator:NAME", "column:NAME", "logprob:NAME")


@dataclass(frozen=True)
class ReplaySettings:
    """Real prompts with their annotated candidates, read from a table.

    Example:
        >>> ReplaySettings(n_prompts=8).n_candidates is None
        True

    Raises:
        ValueError: a value makes no world; the message says what would.
    """

    pools: str | None = None
    """The table: a Parquet file, as `prefenv pools import` and `prefenv pools embed` leave it."""
    score: str | None = None
    """Column that the oracle judges by. None: `score`, or where there is none, the first column of numbers."""
    second_score: str | None = None
    """Column of a second judge, who does not label. Without, his win rate is not measured."""
    capability: str | None = None
    """Column of a capability. Without, none is measured."""
    n_prompts: int = 20
    """Prompts in a pool."""
    n_candidates: int | None = None
    """Candidates of a prompt in a pool, at most: a prompt that has more shows a random part of them. None: all."""
    n_samples: int = 32
    """Joint posterior draws of the reward in an observation."""
    n_eval_prompts: int = 100
    """Held-out prompts on which the win rate is measured; drawn anew for each episode, and never shown in its pools."""
    warm_share: float = 0.0
    """Share of the other prompts, one random label each, that the posterior has learned from before the episode
    begins. They are not shown in its pools either."""
    judge: Judge = "bradley-terry"
    """bradley-terry: the larger score is preferred with the chance of the logistic function of the difference over a
    scale; argmax: always."""
    scale: float | None = None
    """That scale, in units of the score. None: fitted, so that labels are as sure as `certainty`."""
    certainty: float = 0.8
    """Mean chance of the likelier label, over random pairs of a prompt whose scores differ; only read where a scale is
    fitted. That of the second judge's column always is."""
    oracle_tie: float = 0.0
    """Log-odds by which a response has to be ahead to be preferred half the time; else there is no label. With argmax
    only equal scores can tie."""
    oracle_flip: float = 0.0
    """Chance that a label is turned round."""
    reference: str = "uniform"
    """Policy before any step: uniform over a prompt's candidates; generator:NAME, for that generator's response is
    likelier; column:NAME, for responses with a larger number there are; logprob:NAME, whose numbers are
    log-probabilities in nats (those of a prompt need not sum to one)."""
    reference_strength: float = 3.0
    """By how many nats a generator's response is likelier, or those of one standard deviation more in the column. Not
    read for uniform and logprob."""
    prior_std: float = 2.0
    """Standard deviation of a reward under the posterior before any label, log-odds."""
    loss: Loss = "dpo"
    """Loss of the policy step: dpo, ipo or simpo."""
    beta: float = 0.1
    """Strength of the pull to the reference in DPO and IPO; in SimPO the scale of the log-probabilities."""
    simpo_margin: float = 0.0
    """SimPO's target margin (gamma), in log-odds."""
    learning_rate: float = 100.0
    """Size of a gradient step, on features whose squares sum to about one."""
    gradient_steps: int = 4
    """Gradient steps of each round, each on all labels of the round."""

    def __post_init__(self) -> None:
        for name in ("n_prompts", "n_samples", "n_eval_prompts", "gradient_steps"):
            whole_number(name, getattr(self, name))
        if self.n_candidates is not None:
            whole_number("n_candidates", self.n_candidates, minimum=2)
        for name, known in (("loss", get_args(Loss)), ("judge", get_args(Judge))):
            if getattr(self, name) not in known:
                raise unknown_name(name, getattr(self, name), known)
        for name in ("beta", "learning_rate", "prior_std"):
            self._require(name, 0.0, math.inf, "positive, and finite", strict=True)
        if self.scale is not None:
            self._require("scale", 0.0, math.inf, "positive, and finite", strict=True)
        for name in ("oracle_tie", "reference_strength"):
            self._require(name, 0.0, math.inf, "0 or larger, and finite")
        self._require("simpo_margin", -math.inf, math.inf, "finite")
        self._require("oracle_flip", 0.0, 1.0, "in [0, 1]")
        if not 0 <= self.warm_share < 1:
            raise ValueError(f"warm_share={self.warm_share} must be a share, in [0, 1)")
        if not 0.5 < self.certainty < 1:
            raise ValueError(f"certainty={self.certainty} must be a chance above one half and below 1")
        if self.reference != "uniform" and not self.reference.startswith(("generator:", "column:", "logprob:")):
            raise ValueError(f"reference={self.reference!r} must be one of {', '.join(REFERENCES)}")

    @property
    def oracle_temperature(self) -> float:
        """Noise of the labels, in log-odds: rewards are scores over their scale."""
        return 1.0 if self.judge == "bradley-terry" else 0.0

    def _require(self, name: str, low: float, high: float, what: str, strict: bool = False) -> None:
        value = getattr(self, name)
        if not (low <= value <= high and math.isfinite(value)) or (strict and value == low):  # NaN is in no range
            raise ValueError(f"{name}={value!r} must be a number, {what}")
