"""The log-linear policy, and its DPO step by exact gradients.

``pi(y | x) ∝ reference(y | x) exp(theta · f(x, y))``. The log-ratio of two responses of one prompt to the reference is
``theta · (f_chosen - f_rejected)``, since the normaliser cancels; so the DPO loss (Rafailov et al. 2023, arXiv
2305.18290, eq. 7) is a logistic loss in theta and its gradient is exact.
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from prefenv.protocols import State
from prefenv.synthetic.settings import SyntheticSettings
from prefenv.synthetic.story import Responses, log_softmax
from prefenv.types import FloatArray, Pool, Preferences


def dpo_loss(theta: FloatArray, delta: FloatArray, beta: float) -> float:
    """Mean of ``-log sig(beta theta · delta_k)``, delta (k, d) = features of the chosen less the rejected.

    >>> round(dpo_loss(np.zeros(2), np.ones((3, 2)), beta=0.1), 6)  # log 2
    0.693147
    """
    return float(np.logaddexp(0.0, -beta * (delta @ theta)).mean())


def dpo_gradient(theta: FloatArray, delta: FloatArray, beta: float) -> FloatArray:
    """(d,) gradient of :func:`dpo_loss` in theta.

    >>> dpo_gradient(np.zeros(2), np.array([[1.0, -2.0]]), beta=0.1)
    array([-0.05,  0.1 ])
    """
    return np.asarray(-beta * (expit(-beta * (delta @ theta)) @ delta) / len(delta))


class LogLinearPolicy:
    """The policy and its learner.

    Attributes:
        theta: (d,) float64; zero is the reference.
    """

    def __init__(self, settings: SyntheticSettings) -> None:
        self._settings = settings
        self.theta = np.zeros(settings.embedding_size)

    def reset(self, rng: np.random.Generator) -> None:
        """Back to the reference; nothing here is random."""
        self.theta = np.zeros(self._settings.embedding_size)

    def logprob(self, responses: Responses) -> FloatArray:
        """(E, G) log-probability of every response."""
        return log_softmax(responses.reference_logprob + responses.features @ self.theta)

    def step(self, pool: Pool, preferences: Preferences) -> None:
        """Gradient steps on the labels of this round."""
        if len(preferences) == 0:
            return
        features = pool.features  # type: ignore[attr-defined]  # a SyntheticPool
        rows = preferences.prompt
        delta = features[rows, preferences.chosen] - features[rows, preferences.rejected]
        for _ in range(self._settings.gradient_steps):
            gradient = dpo_gradient(self.theta, delta, self._settings.beta)
            self.theta = self.theta - self._settings.learning_rate * gradient

    def state_dict(self) -> State:
        """The parameters."""
        return {"theta": self.theta.copy()}

    def load_state_dict(self, state: State) -> None:
        """Restore."""
        self.theta = state["theta"].copy()
