"""Who labels in B simulated worlds: the oracles, or whoever the recipe says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.random.bit_generator import BitGenerator

from prefenv import spaces
from prefenv.noise import Words, uniforms
from prefenv.oracles.bradley_terry import label_sign
from prefenv.oracles.unjudged import own_labels
from prefenv.protocols import State
from prefenv.synthetic.policy import Labels
from prefenv.synthetic.settings import SyntheticSettings
from prefenv.synthetic.simulator import Pools
from prefenv.types import BoolArray, FloatArray, IntArray, Recipe


class Labellers:
    """Labels of chosen pairs, and those that the posterior adds by the recipe.

    Args:
        settings: of the simulator; the oracle's are read.
        recipe: who labels.
        anywhere: whether an action names pairs anywhere in the pool, prompt · P + pair; else one pair of each prompt.
        ahead: rounds to draw random words for at once.
    """

    def __init__(self, settings: SyntheticSettings, recipe: Recipe, anywhere: bool, ahead: int) -> None:
        self._settings, self._recipe, self._anywhere, self._ahead = settings, recipe, anywhere, ahead
        self._n_pairs = spaces.n_pairs(settings.n_candidates)

    def reset(self, oracle: Sequence[BitGenerator], own: Sequence[BitGenerator]) -> None:
        """Begin episodes.

        Args:
            oracle: a generator for each world.
            own: likewise, for the posterior's own labels; empty where the recipe has none.
        """
        # A world that asks twice for a pair draws less, so where that can be each world has words of its own.
        groups = [[source] for source in oracle] if self._anywhere else [list(oracle)]
        self._oracle = [Words(group, self._ahead) for group in groups]
        self._own = Words(list(own), self._ahead)
        self._rounds = 0

    def label(self, pools: Pools, action: IntArray) -> tuple[Labels, dict[str, Any]]:
        """The answers to (B, k) choices, and what ``info`` says of them."""
        settings, (b, k) = self._settings, action.shape
        world = np.arange(b)[:, None]
        if self._anywhere:
            (prompt, pair), once = np.divmod(action, self._n_pairs), _first_of_each(action)
        else:
            prompt, pair, once = np.tile(np.arange(k), (b, 1)), action, np.ones((b, k), dtype=np.bool_)
        first, second = (side[pair] for side in spaces.pair_table(settings.n_candidates))
        gap = pools.reward[world, prompt, first].astype(np.float64) - pools.reward[world, prompt, second]
        if self._recipe.labels == "generator":
            sign = np.sign(pools.generator[world, prompt, first] - pools.generator[world, prompt, second])
        else:
            share = self._oracle_shares(once)
            sign = label_sign(gap, share, settings.oracle_temperature, settings.oracle_tie, settings.oracle_flip)
        told, wins = (sign != 0) & once, sign > 0
        counts, repeated = told.sum(axis=1), k - once.sum(axis=1)
        agreement = (told * (0.5 + 0.5 * sign * np.sign(gap))).sum(axis=1) / np.maximum(counts, 1)
        rejected = np.where(wins, second, first)
        columns = [prompt, np.where(told, np.where(wins, first, second), rejected), rejected]
        if not told.all():  # the labels first, in their order
            order = np.argsort(~told, axis=1, kind="stable")
            columns, told = [column[world, order] for column in columns], told[world, order]
        preferences = np.where(told[..., None], np.stack(columns, axis=-1), -1)
        info = {"preferences": preferences, "abstained": k - counts - repeated, "repeated": repeated}
        if counts.any():
            info |= {"label_agreement": agreement, "_label_agreement": counts > 0}
        return Labels(columns[0], columns[1], columns[2], told), info

    def _oracle_shares(self, once: BoolArray) -> FloatArray:
        """(B, k) uniform random numbers; a world's come in order where ``once`` is True, and elsewhere it has none."""
        if not self._anywhere:
            return uniforms(self._oracle[0], once.shape[1])
        share = np.zeros(once.shape)
        for row, asked, words in zip(share, once, self._oracle, strict=True):
            row[asked] = uniforms(words, int(asked.sum()))[0]
        return share

    def with_own(self, labels: Labels, samples: FloatArray, asked: int) -> tuple[Labels, IntArray]:
        """The labels with those that the posterior adds in this round, and (B,) how many these are.

        Args:
            labels: of the round.
            samples: (B, S, n, m) joint draws of the posterior.
            asked: k, pairs that the round has paid for.
        """
        b, _, n, m = samples.shape
        self._rounds += 1
        if not self._recipe.self_labelled or self._rounds <= self._recipe.burn_in:
            return labels, np.zeros(b, dtype=np.int64)
        share = uniforms(self._own, 2 * n + n * m)
        own = own_labels(samples, np.ones((b, n, m), dtype=np.bool_), share, self._recipe.self_labels(asked))
        return labels.and_also(Labels(*own)), own[3].sum(axis=1)

    def state_dict(self) -> State:
        """The generators and the round."""
        words = [part.state_dict() for part in (*self._oracle, self._own)]
        return {"words": words, "rounds": self._rounds}

    def load_state_dict(self, state: State) -> None:
        """Restore."""
        for part, saved in zip((*self._oracle, self._own), state["words"], strict=True):
            part.load_state_dict(saved)
        self._rounds = state["rounds"]


def _first_of_each(slots: IntArray) -> BoolArray:
    """(B, k) bool: the first time that a world asks for this pair."""
    order = np.argsort(slots, axis=1, kind="stable")
    ordered = np.take_along_axis(slots, order, axis=1)
    first = np.ones(slots.shape, dtype=np.bool_)
    np.put_along_axis(first, order[:, 1:], ordered[:, 1:] != ordered[:, :-1], axis=1)
    return first
