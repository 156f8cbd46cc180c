"""Bayesian linear reward: Bradley-Terry labels, Gaussian prior, Laplace approximation updated label by label."""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from prefenv.protocols import State
from prefenv.types import Belief, FloatArray, Pool, Preferences

MAX_NEWTON_STEPS = 50
MAX_HALVINGS = 30
GRADIENT_TOLERANCE = 1e-8  # of the largest entry, in units of the precision's diagonal


def laplace_update(mean: FloatArray, precision: FloatArray, delta: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean and precision of the Gaussian that matches the new posterior at its mode.

    Minimises ``(w - mean)' precision (w - mean) / 2 - sum_k log sig(delta_k · w)`` by Newton steps with a halving line
    search, so separable labels leave it finite: the prior always pulls back. The new precision is the Hessian there.

    Args:
        mean: (d,) of the belief before the labels.
        precision: (d, d) of the belief before the labels, positive definite.
        delta: (k, d), embedding of the chosen less embedding of the rejected.

    Returns:
        mean (d,) float64, precision (d, d) float64.

    >>> mean, precision = laplace_update(np.zeros(1), np.eye(1), np.array([[1.0]]))
    >>> mean.round(3), precision.round(3)  # w = sig(-w); 1 + w (1 - w)
    (array([0.401]), array([[1.24]]))
    """

    def loss(w: FloatArray) -> float:
        step = w - mean
        return float(0.5 * step @ precision @ step + np.logaddexp(0.0, -delta @ w).sum())

    def hessian(w: FloatArray) -> FloatArray:
        p = expit(delta @ w)
        return precision + (delta * (p * (1 - p))[:, None]).T @ delta

    w, value = mean.copy(), loss(mean)
    scale = float(np.diag(precision).max())
    for _ in range(MAX_NEWTON_STEPS):
        gradient = precision @ (w - mean) - delta.T @ expit(-delta @ w)
        if np.abs(gradient).max() < GRADIENT_TOLERANCE * scale:
            break
        direction = np.linalg.solve(hessian(w), gradient)
        for halving in range(MAX_HALVINGS):
            trial = w - direction * 0.5**halving
            trial_value = loss(trial)
            if trial_value <= value:
                break
        else:
            break  # no step improves on rounding error: this is the mode
        w, value = trial, trial_value
    return w, hessian(w)


class BayesianLinearPosterior:
    """r(candidate) = w · embedding, w ~ N(0, prior_std² / d · I) before the first label.

    With embeddings of about unit scale a coordinate, a reward has standard deviation ``prior_std`` at the start. New
    labels update the belief; old ones are not seen again.

    Args:
        embedding_size: d.
        n_samples: S, joint draws in a belief.
        prior_std: standard deviation of a reward before labels, in log-odds.

    Example:
        >>> import numpy as np
        >>> posterior = BayesianLinearPosterior(embedding_size=2, n_samples=5)
        >>> posterior.reset(np.random.default_rng(0))
        >>> posterior.predict(np.ones((3, 4, 2), dtype=np.float32)).samples.shape
        (5, 3, 4)
    """

    def __init__(self, embedding_size: int, n_samples: int, prior_std: float = 1.0) -> None:
        if embedding_size < 1 or n_samples < 1:
            raise ValueError(f"embedding_size={embedding_size} and n_samples={n_samples} must be at least 1")
        if not prior_std > 0:
            raise ValueError(f"prior_std={prior_std} must be positive")
        self.embedding_size, self.n_samples, self.prior_std = embedding_size, n_samples, prior_std
        self.reset(np.random.default_rng())

    def reset(self, rng: np.random.Generator) -> None:
        """Back to the prior."""
        self._rng = rng
        self.weight_mean: FloatArray = np.zeros(self.embedding_size)
        self.precision: FloatArray = np.eye(self.embedding_size) * (self.embedding_size / self.prior_std**2)

    def mean(self, embedding: FloatArray) -> FloatArray:
        """(...,) float64 posterior mean of the reward for (..., d) embeddings."""
        return np.asarray(embedding @ self.weight_mean)

    def predict(self, embedding: FloatArray) -> Belief:
        """Belief about (n, m, d) embeddings; S new joint draws."""
        n, m, d = embedding.shape
        flat = embedding.reshape(n * m, d).astype(np.float64)
        factor = np.linalg.cholesky(self.precision)  # precision = factor factor'
        whitened = np.linalg.solve(factor, flat.T)  # (d, n·m); its columns' norms are the standard deviations
        noise = self._rng.standard_normal((self.n_samples, d))
        samples = self.mean(flat) + noise @ whitened
        return Belief(
            mean=self.mean(flat).reshape(n, m).astype(np.float32),
            std=np.linalg.norm(whitened, axis=0).reshape(n, m).astype(np.float32),
            samples=samples.reshape(self.n_samples, n, m).astype(np.float32),
        )

    def update(self, pool: Pool, preferences: Preferences) -> None:
        """Learn from the labels."""
        if len(preferences) == 0:
            return
        chosen = pool.embedding[preferences.prompt, preferences.chosen].astype(np.float64)
        rejected = pool.embedding[preferences.prompt, preferences.rejected].astype(np.float64)
        self.weight_mean, self.precision = laplace_update(self.weight_mean, self.precision, chosen - rejected)

    def state_dict(self) -> State:
        """Weights, precision, generator."""
        return {
            "weight_mean": self.weight_mean.copy(),
            "precision": self.precision.copy(),
            "rng": self._rng.bit_generator.state,
        }

    def load_state_dict(self, state: State) -> None:
        """Restore."""
        self.weight_mean = state["weight_mean"].copy()
        self.precision = state["precision"].copy()
        self._rng.bit_generator.state = state["rng"]
