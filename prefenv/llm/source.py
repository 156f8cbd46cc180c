"""Where the pools of the language model world come from: the current policy."""

from __future__ import annotations

import numpy as np

from prefenv.llm.adapter import Policy, torch_seed
from prefenv.llm.features import Candidate, Reader
from prefenv.llm.generation import Sampling, sample_responses
from prefenv.llm.pool import TextPool
from prefenv.llm.prompts import Prompt, PromptDeck
from prefenv.protocols import State
from prefenv.types import FloatArray


def make_text_pool(prompts: list[Prompt], candidates: list[Candidate], embedding: FloatArray, beta: float) -> TextPool:
    """A pool of candidates given prompt by prompt in one list.

    The entropy of a prompt is minus the mean, over its own candidates, of log-probability per token.

    Args:
        prompts: n.
        candidates: n · m.
        embedding: (n · m, d).
        beta: of the implicit reward, beta · (logprob - reference_logprob).
    """
    n = len(prompts)
    m = len(candidates) // n
    logprob = np.array([candidate.logprob for candidate in candidates]).reshape(n, m)
    reference_logprob = np.array([candidate.reference_logprob for candidate in candidates]).reshape(n, m)
    length = np.array([len(candidate.token_ids) for candidate in candidates]).reshape(n, m)
    return TextPool(
        prompt_id=np.array([prompt.id for prompt in prompts], dtype=np.int64),
        embedding=embedding.reshape(n, m, -1),
        logprob=logprob.astype(np.float32),
        length=length.astype(np.float32),
        implicit_reward=(beta * (logprob - reference_logprob)).astype(np.float32),
        entropy=-(logprob / length).mean(axis=1).astype(np.float32),
        generator=np.zeros((n, m), dtype=np.int64),
        mask=np.ones((n, m), dtype=bool),
        prompts=tuple(prompts),
        candidates=tuple(tuple(candidates[row * m : (row + 1) * m]) for row in range(n)),
    )


class PolicySource:
    """Candidates sampled from the current policy. Deals the episode's prompts and keeps those held out.

    Args:
        policy: that writes.
        reader: that embeds.
        deck: of prompts; this part owns it.
        sampling: how candidates are sampled.
        n_candidates: m.
        beta: of the implicit reward.
    """

    def __init__(
        self, policy: Policy, reader: Reader, deck: PromptDeck, sampling: Sampling, n_candidates: int, beta: float
    ) -> None:
        self._policy, self._reader, self._deck = policy, reader, deck
        self._sampling, self._n_candidates, self._beta = sampling, n_candidates, beta
        self.reset(np.random.default_rng())

    def reset(self, rng: np.random.Generator) -> None:
        """Shuffle the prompts and hold some out."""
        self._rng = rng
        self._deck.reset(rng)

    def draw(self) -> TextPool:
        """The next prompts with m candidates each."""
        prompts = self._deck.deal()
        responses = sample_responses(
            self._policy.language_model, prompts, self._n_candidates, self._sampling, torch_seed(self._rng)
        )
        candidates, embedding = self._reader.read(prompts, responses, self._policy.is_reference)
        return make_text_pool(prompts, candidates, embedding, self._beta)

    def state_dict(self) -> State:
        """The deck and the generator."""
        return {"deck": self._deck.state_dict(), "rng": self._rng.bit_generator.state}

    def load_state_dict(self, state: State) -> None:
        """Restore."""
        self._deck.load_state_dict(state["deck"])
        self._rng.bit_generator.state = state["rng"]
