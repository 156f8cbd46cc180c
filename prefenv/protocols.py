"""The parts of a world, as protocols, and the world that holds one of each.

Every part has ``reset(rng)``, which begins an episode with a generator of the part's own, and ``state_dict`` /
``load_state_dict``: a part that loads a state goes on exactly as the one that saved it would. A state is a nested dict
of arrays, numbers, strings and the frozen dataclasses of ``prefenv.types``, and shares no memory with the part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from prefenv.noise import bit_generator, seeds
from prefenv.types import Belief, Evaluation, FloatArray, Pairs, Pool, Preferences

State = dict[str, Any]


class Part(Protocol):
    """What every part can do."""

    def reset(self, rng: np.random.Generator) -> None:
        """Begin an episode. The part owns ``rng`` from here on."""

    def state_dict(self) -> State:
        """All that the rest of the episode depends on."""

    def load_state_dict(self, state: State) -> None:
        """Go on from a saved state."""


@runtime_checkable
class CandidateSource(Part, Protocol):
    """Where pools come from."""

    def draw(self) -> Pool:
        """The next pool: n prompts, m candidates, seen under the current policy."""


@runtime_checkable
class Oracle(Part, Protocol):
    """Who labels."""

    def compare(self, pool: Pool, pairs: Pairs) -> Preferences:
        """One label for each pair, in order, less the abstentions."""

    def score(self, pool: Pool) -> FloatArray:
        """(n, m) float32: the reward behind the labels. Privileged: shown to agents only where asked for."""


@runtime_checkable
class RewardPosterior(Part, Protocol):
    """Belief about the reward, from the labels so far."""

    def predict(self, embedding: FloatArray) -> Belief:
        """Belief about candidates with these (n, m, d) embeddings. Draws are new at each call."""

    def mean(self, embedding: FloatArray) -> FloatArray:
        """(...,) posterior mean for (..., d) embeddings; draws nothing."""

    def update(self, pool: Pool, preferences: Preferences) -> None:
        """Learn from new labels."""


@runtime_checkable
class PolicyLearner(Part, Protocol):
    """The policy, and how labels change it."""

    def step(self, pool: Pool, preferences: Preferences, exploration_bonus: float = 0.0) -> None:
        """One step of preference optimisation on these labels. No labels, no change.

        Args:
            pool: whose candidates the labels are about.
            preferences: the labels.
            exploration_bonus: alpha, 0 or more: to the loss of each label comes alpha times the log-probability that
                the policy gives to the reference's responses to that prompt [XPO, arXiv 2405.21046].
        """


@runtime_checkable
class Evaluator(Part, Protocol):
    """How good the policy is now."""

    def evaluate(self, posterior: RewardPosterior) -> Evaluation:
        """Measure on this episode's held-out prompts, the same at every call of an episode."""


@runtime_checkable
class TextRows(Protocol):
    """A pool of texts can show its preferences as rows that a person, or TRL, can read."""

    def rows(self, preferences: Preferences) -> list[dict[str, Any]]:
        """One dict for each label with ``prompt_id``, ``prompt``, ``chosen``, ``rejected``."""


PART_NAMES = ("source", "oracle", "posterior", "learner", "evaluator")


@dataclass
class World:
    """One complete set of parts, and its sizes.

    Attributes:
        name: as in tables and folders.
        n_prompts: n, prompts in a pool.
        n_candidates: m, candidates a prompt.
        embedding_size: d.
        n_samples: S, joint posterior draws in an observation.
        settings: what it was made with, where states must agree in it.
        gain: pool → (n, P): to first order and up to a common factor, what the label of each pair is expected to add to
            the win rate, by the world's own truth. None where it cannot be known.
        digest: of data that the world was made from, where states must agree in it; None where there is none.
        episode: new at each reset and load, so that an environment notices when another one takes its world over.
    """

    name: str
    source: CandidateSource
    oracle: Oracle
    posterior: RewardPosterior
    learner: PolicyLearner
    evaluator: Evaluator
    n_prompts: int
    n_candidates: int
    embedding_size: int
    n_samples: int
    settings: Any = None
    gain: Callable[[Pool], FloatArray] | None = None
    digest: str | None = None
    episode: object = field(default_factory=object, repr=False, compare=False)

    def parts(self) -> Sequence[Part]:
        """In the order in which they are reset: the source first, since it makes the episode's prompts."""
        return [getattr(self, name) for name in PART_NAMES]

    def reset(self, rng: np.random.Generator) -> None:
        """Begin an episode: each part gets a generator of its own, seeded from ``rng``."""
        self.episode = object()
        for part, seed in zip(self.parts(), seeds(rng, len(PART_NAMES)), strict=True):
            part.reset(np.random.Generator(bit_generator(seed)))

    def state_dict(self) -> State:
        """The states of all parts."""
        return {name: part.state_dict() for name, part in zip(PART_NAMES, self.parts(), strict=True)}

    def load_state_dict(self, state: State) -> None:
        """Restore all parts."""
        self.episode = object()
        for name, part in zip(PART_NAMES, self.parts(), strict=True):
            part.load_state_dict(state[name])
