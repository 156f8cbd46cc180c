"""Bayesian linear reward: Bradley-Terry labels, Gaussian belief, each label absorbed in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.random.bit_generator import BitGenerator
from scipy.special import erfcx

from prefenv.noise import Words, normals
from prefenv.posteriors.single import SinglePosterior
from prefenv.protocols import State
from prefenv.types import FloatArray, whole_number

PROBIT_SCALE = 1.702  # sig(t) and Phi(t / 1.702) differ by less than 0.01 everywhere
CACHE_BYTES = 2**21  # of roots that are worked on together: they stay in the cache from block to block
BLOCK = 8  # labels that share two products with the root of the covariance


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
    pull, narrowing = _moments((mean * delta).sum(axis=-1), (phi * phi).sum(axis=-1))
    gain = np.einsum("...ij,...j->...i", root, phi)
    mean = mean + gain * pull[..., None]
    return mean, root - (gain * narrowing[..., None])[..., :, None] * phi[..., None, :]


def _moments(c: FloatArray, s: FloatArray) -> tuple[FloatArray, FloatArray]:
    """How far a label of a comparison with belief N(c, s) pulls the mean, and narrows the root of the covariance."""
    shrink = 1 / (PROBIT_SCALE**2 + s)
    root_shrink = np.sqrt(shrink)
    z = c * root_shrink
    hazard = np.sqrt(2 / np.pi) / erfcx(z * -np.sqrt(0.5))  # density over distribution function of the normal, at z
    curvature = np.clip(hazard * (hazard + z), 0.0, 1.0)
    lost = shrink * curvature  # the variance along delta falls by lost * s², and lost * s < 1
    return root_shrink * hazard, lost / (1 + np.sqrt(1 - lost * s))


def absorb_labels(mean: FloatArray, root: FloatArray, delta: FloatArray) -> tuple[FloatArray, FloatArray]:
    """What :func:`absorb_label` makes of k labels one after the other, but for rounding, in a third of the time.

    With ``V = Δ root`` all that changes lies in the span of V's rows: the root becomes ``root (I - V' N V)`` and the
    mean grows by ``root V' y``. N (k, k) and y (k) follow from ``V V'`` and ``Δ mean`` alone, so the d × d matrices are
    touched once for each :data:`BLOCK` labels.

    Args:
        mean: (..., d).
        root: (..., d, d).
        delta: (..., k, d); a row of zeros changes nothing.

    Returns:
        mean (..., d), root (..., d, d).
    """
    short = -delta.shape[-2] % BLOCK
    if short:  # whole blocks: the same labels then give the same bits, however many rows of zeros follow them
        delta = np.concatenate([delta, np.zeros((*delta.shape[:-2], short, delta.shape[-1]))], axis=-2)
    for start in range(0, delta.shape[-2], BLOCK):
        mean, root = _absorb_block(mean, root, delta[..., start : start + BLOCK, :])
    return mean, root


def _absorb_block(mean: FloatArray, root: FloatArray, delta: FloatArray) -> tuple[FloatArray, FloatArray]:
    v = delta @ root
    gram = v @ v.swapaxes(-1, -2)
    prior = delta @ mean[..., None]
    n, y = np.zeros_like(gram), np.zeros_like(prior)
    unit = np.eye(delta.shape[-2])[..., None]
    for j in range(delta.shape[-2]):  # in units of the rows of v: phi = v' g, root phi = root v' t
        row = gram[..., j : j + 1, :]
        g = unit[j] - (row @ n).swapaxes(-1, -2)
        gram_g = gram @ g
        s = np.maximum(g.swapaxes(-1, -2) @ gram_g, 0.0)
        pull, narrowing = _moments(prior[..., j : j + 1, :] + row @ y, s)
        t = g - n @ gram_g
        y += pull * t
        n += (narrowing * t) @ g.swapaxes(-1, -2)
    gain = root @ v.swapaxes(-1, -2)  # (..., d, k)
    return mean + (gain @ y)[..., 0], root - (gain @ n) @ v


class LinearBeliefs:
    """B beliefs side by side about r(candidate) = w · embedding, w ~ N(0, prior_std² / d · I) before the first label.

    Attributes:
        weight_mean: (B, d) float64.
        root: (B, d, d) float64, square roots of the covariances.
    """

    def __init__(self, n_worlds: int, embedding_size: int, n_samples: int, prior_std: float, ahead: int = 1) -> None:
        if not 0 < prior_std < np.inf:
            raise ValueError(f"prior_std={prior_std} must be positive and finite")
        d = whole_number("embedding_size", embedding_size)
        self.n_samples, self._ahead = whole_number("n_samples", n_samples), ahead
        root = np.eye(d) * (prior_std / np.sqrt(d))
        self._prior = np.zeros((n_worlds, d)), np.broadcast_to(root, (n_worlds, d, d))
        self.reset([np.random.PCG64() for _ in range(n_worlds)])

    def reset(self, sources: Sequence[BitGenerator]) -> None:
        """Back to the prior."""
        self.words = Words(sources, self._ahead)
        mean, root = self._prior
        self.weight_mean: FloatArray = mean.copy()
        self.root: FloatArray = root.copy()

    def mean(self, embedding: FloatArray) -> FloatArray:
        """(B, ...) for (B, ..., d) embeddings, of their dtype (float64 for whole numbers)."""
        dtype = np.result_type(embedding.dtype, np.float32)
        flat = embedding.reshape(len(embedding), -1, embedding.shape[-1]).astype(dtype, copy=False)
        return np.matmul(flat, self.weight_mean.astype(dtype)[..., None]).reshape(embedding.shape[:-1])

    def predict(self, embedding: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Mean (B, n, m), standard deviation (B, n, m) and S new joint draws (B, S, n, m), float32."""
        b, n, m, d = embedding.shape
        flat = embedding.reshape(b, n * m, d).astype(np.float32, copy=False)
        scaled = flat @ self.root.astype(np.float32)  # the norms are the standard deviations
        mean = np.matmul(flat, self.weight_mean.astype(np.float32)[..., None])[..., 0]
        std = np.sqrt(np.einsum("bkd,bkd->bk", scaled, scaled))
        noise = normals(self.words, self.n_samples * d).reshape(b, self.n_samples, d)
        samples = noise @ scaled.swapaxes(1, 2)
        samples += mean[:, None]
        return mean.reshape(b, n, m), std.reshape(b, n, m), samples.reshape(b, self.n_samples, n, m)

    def absorb(self, chosen: FloatArray, rejected: FloatArray) -> None:
        """Learn from (B, k, d) embeddings; a row where both are the same is no label."""
        delta = np.subtract(chosen, rejected, dtype=np.float64)
        worlds = max(1, CACHE_BYTES // self.root[0].nbytes)
        parts = [slice(start, start + worlds) for start in range(0, len(self.root), worlds)]
        done = [absorb_labels(self.weight_mean[part], self.root[part], delta[part]) for part in parts]
        mean, root = zip(*done, strict=True)
        self.weight_mean, self.root = (
            (mean[0], root[0]) if len(done) == 1 else (np.concatenate(mean), np.concatenate(root))
        )

    def state_dict(self) -> State:
        """Weights, roots of the covariances, generators."""
        return {
            "weight_mean": self.weight_mean.copy(),
            "root": self.root.copy(),
            "words": self.words.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Restore."""
        self.weight_mean = state["weight_mean"].copy()
        self.root = state["root"].copy()
        self.words.load_state_dict(state["words"])


class BayesianLinearPosterior(SinglePosterior):
    """One :class:`LinearBeliefs` belief as the posterior of a world.

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
        self.beliefs: LinearBeliefs = LinearBeliefs(1, embedding_size, n_samples, prior_std)

    @property
    def root(self) -> FloatArray:
        """(d, d) square root of the covariance of w."""
        return np.asarray(self.beliefs.root[0])

    @property
    def weight_mean(self) -> FloatArray:
        """(d,) mean of w."""
        return np.asarray(self.beliefs.weight_mean[0])
