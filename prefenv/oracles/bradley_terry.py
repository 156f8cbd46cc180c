"""Labels by the Bradley-Terry model of a known reward."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from prefenv.protocols import State
from prefenv.types import FloatArray, Pairs, Pool, Preferences


def label_chances(
    gap: FloatArray, temperature: float, tie: float = 0.0, flip: float = 0.0
) -> tuple[FloatArray, FloatArray]:
    """Chances that the first and that the second of a pair is labelled as preferred; what is left is a tie.

    ``sig(x - tie)`` and ``sig(-x - tie)`` with ``x = gap / temperature`` (Rao and Kupper 1967), then turned round with
    chance ``flip``.

    >>> label_chances(np.array([0.0]), temperature=1.0, flip=0.2)
    (array([0.5]), array([0.5]))
    """
    if temperature == 0:
        even = np.where(gap == 0, expit(-tie), 0.0)
        first, second = np.where(gap > 0, 1.0, even), np.where(gap < 0, 1.0, even)
    else:
        with np.errstate(over="ignore"):  # an infinite ratio is a sure win
            x = gap / temperature
        first, second = expit(x - tie), expit(-x - tie)
    if flip:
        first, second = (1 - flip) * first + flip * second, (1 - flip) * second + flip * first
    return first, second


def label_sign(
    gap: FloatArray, share: FloatArray, temperature: float, tie: float = 0.0, flip: float = 0.0
) -> NDArray[np.int8]:
    """1 where the first is preferred, -1 where the second is, 0 for a tie.

    Args:
        gap: reward of the first less reward of the second.
        share: uniform random numbers in [0, 1), of the same shape.
        temperature: as in :class:`BradleyTerryOracle`.
        tie: likewise.
        flip: likewise.
    """
    first, second = label_chances(gap, temperature, tie, flip)
    if tie == 0:
        return np.where(share < first, 1, -1).astype(np.int8)
    return (share < first).astype(np.int8) - (share >= 1 - second).astype(np.int8)


def preferences_of(pairs: Pairs, sign: NDArray[np.integer]) -> Preferences:
    """Labels for pairs: the first is chosen where the sign is above 0, the second where below; at 0 there is no label.

    Args:
        pairs: k.
        sign: (k,).
    """
    told = sign != 0
    prompt, first, second, first_wins = pairs.prompt[told], pairs.first[told], pairs.second[told], sign[told] > 0
    return Preferences(
        prompt=prompt,
        chosen=np.where(first_wins, first, second),
        rejected=np.where(first_wins, second, first),
        abstained=int((~told).sum()),
    )


class BradleyTerryOracle:
    """P(i is preferred to j) = sig((r_i - r_j) / temperature), with ties and mistakes where asked for.

    Args:
        score: pool → (n, m) reward r; NaN or infinite is an error, never a label.
        temperature: 0 gives the label to the larger reward always; exact ties are then a fair coin.
        tie: log-odds by which a response has to be ahead to be preferred half the time. What neither gets is a tie, no
            label and counted as an abstention.
        flip: chance that a label is turned round.

    Raises:
        ValueError: a number outside its range.
    """

    def __init__(
        self, score: Callable[[Pool], FloatArray], temperature: float = 1.0, tie: float = 0.0, flip: float = 0.0
    ) -> None:
        for name, value, high in (("temperature", temperature, np.inf), ("tie", tie, np.inf), ("flip", flip, 1.0)):
            if not 0 <= value <= high:
                raise ValueError(f"oracle {name}={value} must lie in [0, {high}]")
        self._score, self.temperature, self.tie, self.flip = score, temperature, tie, flip
        self.reset(np.random.default_rng())

    def reset(self, rng: np.random.Generator) -> None:
        """Begin an episode."""
        self._rng = rng

    def score(self, pool: Pool) -> FloatArray:
        """(n, m) float32 reward; 0 where there is no candidate."""
        reward = np.where(pool.mask, np.asarray(self._score(pool), dtype=np.float32), np.float32(0.0))
        if not np.all(np.isfinite(reward)):
            raise ValueError("the oracle's reward is NaN or infinite for a candidate: no label can be given")
        return reward

    def compare(self, pool: Pool, pairs: Pairs) -> Preferences:
        """One label for each pair that is no tie."""
        reward = self.score(pool).astype(np.float64)
        gap = reward[pairs.prompt, pairs.first] - reward[pairs.prompt, pairs.second]
        return preferences_of(pairs, self.signs(gap, self._rng))

    def signs(self, gap: FloatArray, rng: np.random.Generator) -> NDArray[np.int8]:
        """Answers to comparisons with these (k,) gaps of the reward, as in :func:`label_sign`."""
        return label_sign(gap, rng.random(len(gap)), self.temperature, self.tie, self.flip)

    def state_dict(self) -> State:
        """The generator."""
        return {"rng": self._rng.bit_generator.state}

    def load_state_dict(self, state: State) -> None:
        """Restore."""
        self._rng.bit_generator.state = state["rng"]
