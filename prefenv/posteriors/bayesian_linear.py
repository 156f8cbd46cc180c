"""Bayesian linear reward: Bradley-Terry labels, Gaussian belief, each label absorbed in closed form."""

from __future__ import annotations

import numpy as np
from scipy.special import erfcx

from prefenv.protocols import State
from prefenv.types import Belief, FloatArray, Pool, Preferences, whole_number

PROBIT_SCALE = 1.702  # sig(t) and Phi(t / 1.702) differ by less than 0.01 everywhere


def absorb_label(mean: FloatArray, root: FloatArray, delta: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The Gaussian that has the moments of the belief after one label (assumed-density filtering, Minka 2001).

    Along ``delta`` the belief before is N(c, s) with ``c = mean · delta`` and ``s = |root' delta|²``; the label
    multiplies it by ``sig(t)``, taken as ``Phi(t / 1.702)``, for which mean and variance of the product are known. The
    covariance ``root root'`` shrinks along ``delta``, never to zero. The tests hold mean and covariance against exact
    moments under the logistic likelihood: within 0.2 posterior standard deviations and 15 % of the variance.

    Args:
        mean: (..., d).
        root: (..., d, d), any square root of the covariance.
        delta: (..., d), embedding of the chosen less embedding of the rejected.

    Returns:
        mean (..., d), root (..., d, d).

    >>> mean, root = absorb_label(np.zeros(1), np.eye(1), np.array([1.0]))
    >>> mean.round(2), (root[0, 0] ** 2).round(2)  # exact: 0.41 and 0.83
    (array([0.4]), np.float64(0.84))
    """
    phi = np.einsum("...ij,...i->...j", root, delta)
    s = (phi * phi).sum(axis=-1)
    c = (mean * delta).sum(axis=-1)
    shrink = 1 / (PROBIT_SCALE**2 + s)
    z = c * np.sqrt(shrink)
    hazard = np.sqrt(2 / np.pi) / erfcx(-z / np.sqrt(2))  # density over distribution function of the normal, at z
    curvature = np.clip(hazard * (hazard + z), 0.0, 1.0)
    lost = shrink * curvature  # the variance along delta falls by lost * s², and lost * s < 1
    gain = np.einsum("...ij,...j->...i", root, phi)
    mean = mean + gain * (np.sqrt(shrink) * hazard)[..., None]
    narrowing = lost / (1 + np.sqrt(1 - lost * s))
    return mean, root - (gain * narrowing[..., None])[..., :, None] * phi[..., None, :]


class BayesianLinearPosterior:
    """r(candidate) = w · embedding, w ~ N(0, prior_std² / d · I) before the first label.

    With embeddings of about unit scale a coordinate, a reward has standard deviation ``prior_std`` at the start. New
    labels update the belief one after the other; old ones are not seen again.

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
        if not 0 < prior_std < np.inf:
            raise ValueError(f"prior_std={prior_std} must be positive and finite")
        self.embedding_size = whole_number("embedding_size", embedding_size)
        self.n_samples = whole_number("n_samples", n_samples)
        self.prior_std = prior_std
        self.reset(np.random.default_rng())

    def reset(self, rng: np.random.Generator) -> None:
        """Back to the prior."""
        self._rng = rng
        self.weight_mean: FloatArray = np.zeros(self.embedding_size)
        self.root: FloatArray = np.eye(self.embedding_size) * (self.prior_std / np.sqrt(self.embedding_size))

    def mean(self, embedding: FloatArray) -> FloatArray:
        """(...,) float64 posterior mean of the reward for (..., d) embeddings."""
        return np.asarray(embedding @ self.weight_mean)

    def predict(self, embedding: FloatArray) -> Belief:
        """Belief about (n, m, d) embeddings; S new joint draws."""
        scaled = embedding.astype(np.float64) @ self.root  # (n, m, d); the norms are the standard deviations
        mean = self.mean(embedding.astype(np.float64))
        noise = self._rng.standard_normal((self.n_samples, self.embedding_size))
        return Belief(
            mean=mean.astype(np.float32),
            std=np.linalg.norm(scaled, axis=-1).astype(np.float32),
            samples=(mean + np.einsum("nmd,sd->snm", scaled, noise, optimize=True)).astype(np.float32),
        )

    def update(self, pool: Pool, preferences: Preferences) -> None:
        """Learn from the labels, in their order."""
        chosen = pool.embedding[preferences.prompt, preferences.chosen].astype(np.float64)
        rejected = pool.embedding[preferences.prompt, preferences.rejected].astype(np.float64)
        for delta in chosen - rejected:
            self.weight_mean, self.root = absorb_label(self.weight_mean, self.root, delta)

    def state_dict(self) -> State:
        """Weights, root of the covariance, generator."""
        return {
            "weight_mean": self.weight_mean.copy(),
            "root": self.root.copy(),
            "rng": self._rng.bit_generator.state,
        }

    def load_state_dict(self, state: State) -> None:
        """Restore."""
        self.weight_mean = state["weight_mean"].copy()
        self.root = state["root"].copy()
        self._rng.bit_generator.state = state["rng"]
