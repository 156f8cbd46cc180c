"""An ensemble of small networks as belief: each head starts as a draw from the prior and has a bootstrap of its own."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
from numpy.random.bit_generator import BitGenerator
from scipy.special import expit

from prefenv.noise import Words, normals
from prefenv.posteriors.single import SinglePosterior
from prefenv.protocols import State
from prefenv.types import FloatArray, whole_number

HIDDEN = 16  # units of a head
MEMORY = 256  # labels that heads learn from, the latest; older ones have left their mark on the weights
STEPS = 20  # gradient steps for each update
PRIOR_GAIN = 1.6  # one over the root of E tanh(z)², so that a random head has prior_std over embeddings of unit scale


class _Heads:
    """K heads ``h(x) = scale / sqrt(H) · v · tanh(U x / sqrt(d))``, anchored at where they started.

    Each minimises ``sum_i w_i (-log sig(h(chosen) - h(rejected))) + |u - u_0|² / 2 + |v - v_0|² / 2`` with weights w of
    its own, exponential with mean 1 (the Bayesian bootstrap, Rubin 1981): randomised anchors and data make the heads'
    spread an approximate posterior (Pearce et al. 2020, arXiv 1810.05546).
    """

    def __init__(self, embedding_size: int, n_heads: int, prior_std: float, rng: np.random.Generator) -> None:
        self.rng, self.size = rng, embedding_size
        self.scale = np.float32(PRIOR_GAIN * prior_std / np.sqrt(HIDDEN))
        noise = normals(Words([rng.bit_generator]), n_heads * HIDDEN * (embedding_size + 1))[0]
        cut = n_heads * HIDDEN * embedding_size
        self.inner = noise[:cut].reshape(n_heads, embedding_size, HIDDEN).copy()
        self.outer = noise[cut:].reshape(n_heads, HIDDEN, 1).copy()
        self.anchors = self.inner.copy(), self.outer.copy()
        self.memory = np.zeros((2, 0, embedding_size), dtype=np.float32)
        self.weights = np.zeros((n_heads, 0), dtype=np.float32)

    def hidden(self, embedding: FloatArray) -> FloatArray:
        """(K, N, H) for (N, d) embeddings."""
        scaled = embedding.astype(np.float32, copy=False) * np.float32(1 / np.sqrt(self.size))
        return np.tanh(scaled @ self.inner)

    def output(self, embedding: FloatArray) -> FloatArray:
        """(K, N) rewards for (N, d) embeddings."""
        return (self.hidden(embedding) @ self.outer)[..., 0] * self.scale

    def learn(self, chosen: FloatArray, rejected: FloatArray) -> None:
        """Remember (k, d) labels, forget the oldest beyond MEMORY, and take gradient steps on what is remembered."""
        new = np.stack([chosen, rejected]).astype(np.float32)
        draws = self.rng.standard_exponential((new.shape[1], len(self.weights)), dtype=np.float32)
        self.memory = np.concatenate([self.memory, new], axis=1)[:, -MEMORY:]
        self.weights = np.concatenate([self.weights, draws.T], axis=1)[:, -MEMORY:]
        count = self.weights.shape[1]
        both = self.memory.reshape(2 * count, self.size)
        step = np.float32(1 / (1 + count * self.scale**2 * HIDDEN / 4))  # about the inverse of the largest curvature
        scaled = both * np.float32(1 / np.sqrt(self.size))
        for _ in range(STEPS):
            hidden = self.hidden(both)
            value = (hidden @ self.outer)[..., 0] * self.scale
            slope = -self.weights * expit(value[:, count:] - value[:, :count])
            slope = np.concatenate([slope, -slope], axis=1)[..., None] * self.scale  # (K, 2 count, 1)
            outer_slope = hidden.swapaxes(1, 2) @ slope
            inner_slope = scaled.T @ (slope * (1 - hidden**2) * self.outer.swapaxes(1, 2))
            self.outer = self.outer - step * (outer_slope + self.outer - self.anchors[1])
            self.inner = self.inner - step * (inner_slope + self.inner - self.anchors[0])


class EnsembleBeliefs:
    """B ensembles side by side; a joint draw is a head, so there are as many draws as heads and they stay the same."""

    def __init__(self, n_worlds: int, embedding_size: int, n_samples: int, prior_std: float, ahead: int = 1) -> None:
        if not 0 < prior_std < np.inf:
            raise ValueError(f"prior_std={prior_std} must be positive and finite")
        self.embedding_size = whole_number("embedding_size", embedding_size)
        self.n_samples = whole_number("n_samples", n_samples, minimum=2)
        self.prior_std = prior_std
        self.reset([np.random.PCG64() for _ in range(n_worlds)])

    def reset(self, sources: Sequence[BitGenerator]) -> None:
        """New heads, drawn from the prior."""
        self._heads = [
            _Heads(self.embedding_size, self.n_samples, self.prior_std, np.random.Generator(s)) for s in sources
        ]

    def mean(self, embedding: FloatArray) -> FloatArray:
        """(B, ...) mean over the heads for (B, ..., d) embeddings."""
        return self._outputs(embedding).mean(axis=1).reshape(embedding.shape[:-1])

    def predict(self, embedding: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Mean and standard deviation (B, n, m) over the heads, and the heads (B, S, n, m), float32."""
        samples = self._outputs(embedding).reshape(len(embedding), self.n_samples, *embedding.shape[1:-1])
        return samples.mean(axis=1), samples.std(axis=1, ddof=1), samples

    def _outputs(self, embedding: FloatArray) -> FloatArray:
        flat = embedding.reshape(len(embedding), -1, self.embedding_size)
        return np.stack([heads.output(rows) for heads, rows in zip(self._heads, flat, strict=True)])

    def absorb(self, chosen: FloatArray, rejected: FloatArray) -> None:
        """Learn from (B, k, d) embeddings; a row where both are the same is no label."""
        for heads, better, worse in zip(self._heads, chosen, rejected, strict=True):
            told = np.any(better != worse, axis=-1)
            if told.any():
                heads.learn(better[told], worse[told])

    def state_dict(self) -> State:
        """Weights, anchors, what is remembered, generators."""
        names = ("inner", "outer", "anchors", "memory", "weights")
        return {
            "heads": [{name: copy.deepcopy(getattr(heads, name)) for name in names} for heads in self._heads],
            "rngs": [heads.rng.bit_generator.state for heads in self._heads],
        }

    def load_state_dict(self, state: State) -> None:
        """Restore."""
        for heads, saved, rng in zip(self._heads, state["heads"], state["rngs"], strict=True):
            for name, value in saved.items():
                setattr(heads, name, copy.deepcopy(value))
            heads.rng.bit_generator.state = rng


class EnsemblePosterior(SinglePosterior):
    """One ensemble of small networks as the posterior of a world.

    Args:
        embedding_size: d.
        n_samples: S heads, at least 2.
        prior_std: about the standard deviation of a reward before labels, in log-odds.

    Example:
        >>> import numpy as np
        >>> posterior = EnsemblePosterior(embedding_size=2, n_samples=5)
        >>> posterior.reset(np.random.default_rng(0))
        >>> posterior.predict(np.ones((3, 4, 2), dtype=np.float32)).samples.shape
        (5, 3, 4)
    """

    def __init__(self, embedding_size: int, n_samples: int, prior_std: float = 1.0) -> None:
        self.beliefs = EnsembleBeliefs(1, embedding_size, n_samples, prior_std)
