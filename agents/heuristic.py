"""A score plus a selection is an agent."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from agents.scores import Design, FloatArray, Observation, Plan, Score
from agents.select import choose, chosen_pairs, form_of, legal_pairs
from prefenv.spaces import pair_table

Memory = tuple[FloatArray, NDArray[np.bool_]]
"""``Plan.labelled`` and ``Plan.known``."""


class ScoreAgent:
    """Chooses the pairs that a score ranks highest.

    Has Stable-Baselines3's ``predict``, so ``evaluate_policy`` runs it. A batch of observations gets the actions that
    its members would get one after the other.

    Args:
        score: observation, generator → (..., n, P).
        action_space: of one environment; None is one pair for each prompt (or, where the observation says what is
            selected, one pair).
        seed: of the agent's own draws; None takes fresh entropy.
    """

    def __init__(self, score: Score, action_space: spaces.Space | None = None, seed: int | None = None) -> None:
        self.score, self.action_space = score, action_space
        # two streams, so that a batch draws from each in the order in which single calls would
        self._score_rng, self._tie_rng = np.random.default_rng(seed).spawn(2)

    def predict(
        self,
        observation: Observation,
        state: tuple[Any, ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[np.int64], tuple[Any, ...] | None]:
        """Action for one observation or a batch, and the state handed in.

        Args:
            observation: entries as the environment shows them, or with one leading axis.
            state: memory of the episode; score agents have none.
            episode_start: not used.
            deterministic: not used: a method's draws are part of the method.

        Returns:
            int64 action, or a batch of them; and ``state``.
        """
        score = self.score(observation, self._score_rng)
        return choose(score, observation, self.action_space, self._tie_rng), state


class DesignAgent:
    """Chooses pairs together, and remembers those of the episode.

    The memory is the state of ``predict``: hand back what the last call gave, with ``episode_start`` True where the
    observation is the first of an episode. (Gymnasium's vectors reset in the step after the last one, whose action they
    ignore: there it is True one step after ``terminated``.) Called without a state it knows of no earlier labels.

    Args:
        design: observation, generator, plan → (..., n, P).
        action_space: as in :class:`ScoreAgent`.
        seed: likewise.
    """

    def __init__(self, design: Design, action_space: spaces.Space | None = None, seed: int | None = None) -> None:
        self.score, self.action_space = design, action_space
        self._score_rng, self._tie_rng, self._pair_rng = np.random.default_rng(seed).spawn(3)

    def predict(
        self,
        observation: Observation,
        state: tuple[Any, ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[np.int64], tuple[Any, ...] | None]:
        """Action for one observation or a batch, and the memory for the next call.

        Args:
            observation: entries as the environment shows them, or with one leading axis.
            state: what the last call returned; None where there was none.
            episode_start: bool, one for each observation: the memory of these is dropped. None drops nothing.
            deterministic: not used: a method's draws are part of the method.

        Returns:
            int64 action, or a batch of them; and ``((..., L, 2, d) float32 embeddings, (..., L) bool)`` of the pairs
            chosen so far in the episode.

        Raises:
            ValueError: the state is of another number of environments or another embedding.
        """
        labelled, known = _recall(observation, state, episode_start)
        labels, each_prompt = form_of(observation, self.action_space)
        plan = Plan(labels, each_prompt, labelled, known, self._pair_rng)
        score = self.score(observation, self._score_rng, plan)
        action = choose(score, observation, self.action_space, self._tie_rng)
        return action, _remember(observation, action, each_prompt, labelled, known)


def _recall(observation: Observation, state: tuple[Any, ...] | None, episode_start: NDArray[np.bool_] | None) -> Memory:
    *lead, _, _, d = observation["embedding"].shape
    if state is None:
        return np.zeros((*lead, 0, 2, d), dtype=np.float32), np.zeros((*lead, 0), dtype=bool)
    labelled, known = state
    if labelled.shape[:-3] != tuple(lead) or labelled.shape[-1] != d:
        raise ValueError(
            f"the state remembers embeddings of shape {labelled.shape}, but the observation has {(*lead, '…', d)}: "
            "pass state=None when the environments change"
        )
    if episode_start is not None:
        known = known & ~np.asarray(episode_start, dtype=bool).reshape((*lead, 1))
    kept = known.any(axis=tuple(range(len(lead))))  # a pair that no episode has any more is dropped
    return labelled[..., kept, :, :], known[..., kept]


def _remember(
    observation: Observation,
    action: NDArray[np.int64],
    each_prompt: bool,
    labelled: FloatArray,
    known: NDArray[np.bool_],
) -> Memory:
    legal = legal_pairs(observation)
    prompt, pair = chosen_pairs(action, legal, each_prompt)
    embedding = np.asarray(observation["embedding"], dtype=np.float32)
    *lead, n, m, d = embedding.shape
    rows = prompt[..., None] * m + np.stack([side[pair] for side in pair_table(m)], axis=-1)  # (..., k, 2)
    k = rows.shape[-2]
    flat = embedding.reshape(*lead, n * m, d)
    new = np.take_along_axis(flat, rows.reshape(*lead, 2 * k)[..., None], axis=-2).reshape(*lead, k, 2, d)
    slots = (prompt * legal.shape[-1] + pair).reshape(*lead, k)
    exists = np.take_along_axis(legal.reshape(*lead, -1), slots, axis=-1)
    return np.concatenate([labelled, new], axis=-3), np.concatenate([known, exists], axis=-1)
