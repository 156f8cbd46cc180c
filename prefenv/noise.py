"""Random numbers for many worlds at once, each world from a generator of its own.

The simulator needs more than a thousand numbers a step, and they would be most of its cost: a uniform of
``Generator.random`` takes 2 ns and a normal 9 ns, where 16 random bits of the same generator take half a nanosecond.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.random.bit_generator import BitGenerator, ISeedSequence
from numpy.typing import DTypeLike, NDArray

from prefenv.types import FloatArray

SEED_WORDS = 4  # of 64 bits: what PCG64 is seeded with
MOST_AHEAD = 4096  # words a world that are drawn ahead, 32 KiB


class _Seed(ISeedSequence):
    """Hands out random words as they are: hashing them once more would take longer than all else in a reset."""

    def __init__(self, words: NDArray[np.uint64]) -> None:
        self._words = words

    def generate_state(self, n_words: int, dtype: DTypeLike = np.uint32) -> NDArray[np.uint64]:  # type: ignore[override]
        return self._words


def seeds(rng: np.random.Generator, n: int) -> NDArray[np.uint64]:
    """(n, 4) words for :func:`bit_generator`, drawn from ``rng``."""
    return rng.bit_generator.random_raw(n * SEED_WORDS).reshape(n, SEED_WORDS)


def bit_generator(seed: NDArray[np.uint64]) -> BitGenerator:
    """A new PCG64."""
    return np.random.PCG64(_Seed(seed))  # type: ignore[arg-type]  # it is a seed sequence


class Words:
    """The random 64-bit words of B worlds, in order; how many are drawn at a time makes no difference to them.

    Args:
        sources: B bit generators of 64-bit words, such as PCG64; nothing else may draw from them.
        ahead: how many takes of the same size to draw for at once; saves time where that many are coming.

    Raises:
        ValueError: a bit generator of 32-bit words.
    """

    def __init__(self, sources: Sequence[BitGenerator], ahead: int = 1) -> None:
        if any(isinstance(source, np.random.MT19937) for source in sources):
            raise ValueError("MT19937 has words of 32 bits: use np.random.default_rng")
        self.sources, self._ahead = list(sources), ahead
        self._buffer, self._used = np.empty((len(self.sources), 0), dtype=np.uint64), 0

    def take(self, n: int) -> NDArray[np.uint64]:
        """(B, n) the next words of every world."""
        if self._buffer.shape[1] - self._used < n:
            self._refill(n)
        words = self._buffer[:, self._used : self._used + n]
        self._used += n
        return words

    def _refill(self, n: int) -> None:
        rest = self._buffer[:, self._used :]
        size = n * max(1, min(self._ahead, MOST_AHEAD // max(n, 1)))
        buffer = np.empty((len(self.sources), size), dtype=np.uint64)
        buffer[:, : rest.shape[1]] = rest
        for row, source in zip(buffer, self.sources, strict=True):
            row[rest.shape[1] :] = source.random_raw(size - rest.shape[1])
        self._buffer, self._used = buffer, 0

    def state_dict(self) -> dict[str, Any]:
        """Generators, and the words that were drawn ahead."""
        states = [copy.deepcopy(source.state) for source in self.sources]
        return {"sources": states, "rest": self._buffer[:, self._used :].copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore."""
        for source, saved in zip(self.sources, state["sources"], strict=True):
            source.state = copy.deepcopy(saved)
        self._buffer, self._used = state["rest"].copy(), 0


def uniforms(words: Words, size: int) -> FloatArray:
    """(B, size) float64 in [0, 1): what ``Generator.random`` makes of the same words."""
    return (words.take(size) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def unit_noise(words: Words, size: int) -> FloatArray:
    """(B, size) float32 of mean 0 and variance 1, uniform on 65,536 equally spaced values.

    >>> unit_noise(Words([np.random.PCG64(0)]), 3).shape
    (1, 3)
    """
    noise = _sixteen_bits(words, size)
    noise -= np.float32(2**15 - 0.5)
    noise *= np.float32(np.sqrt(12) / 2**16)
    return noise


def normals(words: Words, size: int) -> FloatArray:
    """(B, size) float32 standard normals (Box and Muller 1958).

    Radius and angle take 65,536 values each, so no normal is beyond 4.9.

    >>> normals(Words([np.random.PCG64(0)]), 3).shape
    (1, 3)
    """
    half = -(-size // 2)
    share = _sixteen_bits(words, 2 * half)
    share += np.float32(0.5)
    share *= np.float32(2.0**-16)
    radius, angle = share[:, :half], share[:, half:]
    np.log(radius, out=radius)
    radius *= np.float32(-2.0)
    np.sqrt(radius, out=radius)
    angle *= np.float32(2 * np.pi)
    out = np.empty_like(share)
    np.multiply(radius, np.cos(angle, out=out[:, :half]), out=out[:, :half])
    np.multiply(radius, np.sin(angle, out=out[:, half:]), out=out[:, half:])
    return out[:, :size]


def _sixteen_bits(words: Words, size: int) -> FloatArray:
    """(B, size) float32 whole numbers in 0 … 65535, four of a word."""
    return words.take(-(-size // 4)).view(np.uint16)[:, :size].astype(np.float32)
