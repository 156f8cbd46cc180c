"""The log-linear policies of B worlds, and their steps on the losses of DPO, IPO and SimPO by exact gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.special import expit

from prefenv.protocols import State
from prefenv.synthetic.settings import Loss
from prefenv.synthetic.story import log_softmax, project
from prefenv.types import BoolArray, FloatArray, IntArray


def preference_loss(loss: Loss, margin: FloatArray, beta: float, simpo_margin: float = 0.0) -> FloatArray:
    """Loss of each label, element by element.

    Args:
        loss: "dpo", "ipo" or "simpo".
        margin: chosen less rejected: of the log-ratios to the reference (DPO, IPO), or of the length-normalised
            log-probabilities (SimPO).
        beta: as in the papers that :mod:`prefenv.synthetic.story` names.
        simpo_margin: SimPO's gamma, not divided by beta.

    >>> float(preference_loss("dpo", np.zeros(1), beta=0.1)[0].round(6))  # log 2
    0.693147
    """
    if loss == "ipo":
        return np.asarray((margin - 1 / (2 * beta)) ** 2)
    return np.asarray(np.logaddexp(0.0, (simpo_margin if loss == "simpo" else 0.0) - beta * margin))


def preference_slope(loss: Loss, margin: FloatArray, beta: float, simpo_margin: float = 0.0) -> FloatArray:
    """Derivative of :func:`preference_loss` in the margin.

    >>> preference_slope("ipo", np.array([0.0]), beta=0.5)
    array([-2.])
    """
    if loss == "ipo":
        return np.asarray(2 * (margin - 1 / (2 * beta)))
    return np.asarray(-beta * expit((simpo_margin if loss == "simpo" else 0.0) - beta * margin))


@dataclass(frozen=True, eq=False)
class Labels:
    """k labels in each of B worlds.

    Attributes:
        prompt: (B, k) int64, row of the pool.
        chosen: (B, k) int64, candidate.
        rejected: (B, k) int64, candidate; the chosen one again where there is no label.
        valid: (B, k) bool; False is no label (a tie), and those come last in a row.
    """

    prompt: IntArray
    chosen: IntArray
    rejected: IntArray
    valid: BoolArray

    def take(self, array: FloatArray, candidate: IntArray) -> FloatArray:
        """(B, k, ...) entries of (B, n, m, ...) at the labels' prompts and these (B, k) candidates."""
        b, n, m = array.shape[:3]
        row = (np.arange(b)[:, None] * n + self.prompt) * m + candidate
        return array.reshape(b * n * m, *array.shape[3:])[row]

    def and_also(self, more: Labels) -> Labels:
        """Both, those that are no labels last."""
        columns = [
            np.concatenate([getattr(self, name), getattr(more, name)], axis=1)
            for name in ("prompt", "chosen", "rejected", "valid")
        ]
        order = np.argsort(~columns[-1], axis=1, kind="stable")
        return Labels(*(np.take_along_axis(column, order, axis=1) for column in columns))

    def difference(self, array: FloatArray) -> FloatArray:
        """(B, k, ...) entry of the chosen less that of the rejected; zero where there is no label."""
        return np.asarray(self.take(array, self.chosen) - self.take(array, self.rejected))


@dataclass(frozen=True, eq=False)
class PromptResponses:
    """What SimPO and XPO need of the prompts of a pool besides the candidates.

    Attributes:
        features: (B, n, G, D) of all responses.
        logit: (B, n, G) of the reference.
        generator: (B, n, m) which of the G each candidate is.
        length: (B, n, m) of the candidates, in units of the median.
    """

    features: FloatArray
    logit: FloatArray
    generator: IntArray
    length: FloatArray


class LearnerSettings(Protocol):
    """What a step needs to know."""

    @property
    def loss(self) -> Loss:
        """The loss: dpo, ipo or simpo."""

    @property
    def beta(self) -> float:
        """Of the loss."""

    @property
    def simpo_margin(self) -> float:
        """SimPO's gamma."""

    @property
    def learning_rate(self) -> float:
        """Size of a gradient step."""

    @property
    def gradient_steps(self) -> int:
        """Of each round."""


class Policies:
    """B policies and their learner.

    Args:
        settings: of the step.
        n_worlds: B.
        n_features: D.

    Attributes:
        theta: (B, D) float64; zero is the reference.
    """

    def __init__(self, settings: LearnerSettings, n_worlds: int, n_features: int) -> None:
        self._settings, self.n_worlds = settings, n_worlds
        self._zero = np.zeros((n_worlds, n_features))
        self.reset()

    def reset(self) -> None:
        """Back to the reference; nothing here is random."""
        self.theta = self._zero.copy()

    def log_ratio(self, features: FloatArray) -> FloatArray:
        """(B, ...) θ·f of (B, ..., D) features: log-ratio to the reference but for a constant of the prompt."""
        return project(features, self.theta.astype(features.dtype))

    def step(
        self, features: FloatArray, labels: Labels, responses: PromptResponses, exploration_bonus: float = 0.0
    ) -> None:
        """Gradient steps on the labels of this round; where a world has none, nothing changes.

        Args:
            features: (B, n, m, D) of the candidates.
            labels: k of each world.
            responses: read by SimPO, and for the bonus.
            exploration_bonus: alpha of XPO, as in :class:`prefenv.types.Recipe`; the expectation over the reference's
                responses is exact.
        """
        settings = self._settings
        count = labels.valid.sum(axis=1)
        weight = labels.valid / np.maximum(count, 1)[:, None]
        delta: FloatArray = labels.difference(features).astype(np.float64)
        rate: FloatArray | float = settings.learning_rate
        if settings.loss == "ipo":  # a longer step than 1 / curvature would lead away from the minimum
            curvature = 2 * np.einsum("bk,bkd,bkd->b", weight, delta, delta)
            rate = np.minimum(rate * settings.beta**2, 1 / np.maximum(curvature, 1e-300))[:, None]
        for _ in range(settings.gradient_steps):
            if settings.loss == "simpo":
                margin, direction = self._simpo(features, labels, responses)
            else:
                margin, direction = np.einsum("bkd,bd->bk", delta, self.theta), delta
            slope = preference_slope(settings.loss, margin, settings.beta, settings.simpo_margin) * weight
            gradient = np.einsum("bk,bkd->bd", slope, direction)
            if exploration_bonus:
                away = np.take_along_axis(self._reference_slope(responses), labels.prompt[..., None], axis=1)
                gradient += exploration_bonus * np.einsum("bk,bkd->bd", weight, away)
            self.theta = self.theta - rate * gradient

    def _reference_slope(self, responses: PromptResponses) -> FloatArray:
        """(B, n, D): gradient in theta of the reference's expected log-probability under the policy, at each prompt."""
        reference = responses.logit.astype(np.float64)
        logit = reference + np.einsum("bngd,bd->bng", responses.features, self.theta)
        surplus = np.exp(log_softmax(reference)[0]) - np.exp(log_softmax(logit)[0])
        return np.einsum("bng,bngd->bnd", surplus, responses.features)

    def _simpo(self, features: FloatArray, labels: Labels, responses: PromptResponses) -> tuple[FloatArray, FloatArray]:
        """Margin (B, k) of the length-normalised log-probabilities, and its gradient (B, k, D) in theta."""
        theta = self.theta
        logit = responses.logit + np.einsum("bngd,bd->bng", responses.features, theta)
        logprob, normaliser = log_softmax(logit)
        mean = (np.exp(logprob)[..., None] * responses.features).sum(axis=2, keepdims=True)  # (B, n, 1, D)
        logit = np.take_along_axis(responses.logit, responses.generator, axis=2)
        own = logit + np.einsum("bnmd,bd->bnm", features, theta) - normaliser
        length = responses.length
        direction = (features - mean) / length[..., None]
        return labels.difference(own / length), labels.difference(direction)

    def state_dict(self) -> State:
        """The parameters."""
        return {"theta": self.theta.copy()}

    def load_state_dict(self, state: State) -> None:
        """Restore."""
        self.theta = state["theta"].copy()
