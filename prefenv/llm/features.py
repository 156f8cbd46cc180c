"""What the posterior sees of a response, and the candidate that carries it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prefenv.llm.adapter import Policy
from prefenv.llm.generation import Response, Sampling, sample_responses, score_tokens
from prefenv.llm.prompts import Prompt
from prefenv.types import FloatArray

N_STATISTICS_PROMPTS = 16  # prompts whose reference responses set the scale of the embedding
N_STATISTICS_EACH = 2  # responses to each
STATISTICS_SEED = 0
MIN_STD = 1e-6  # a coordinate that varies less is left in its own unit


@dataclass(frozen=True)
class Candidate:
    """A response with what the models say of it.

    Attributes:
        prompt_id: of the prompt it was written for.
        text: the continuation of the opening.
        token_ids: as sampled, without padding.
        logprob: nats, of the whole response under the policy that wrote it, at temperature 1.
        reference_logprob: nats, the same under the reference.
    """

    prompt_id: int
    text: str
    token_ids: tuple[int, ...]
    logprob: float
    reference_logprob: float


class Reader:
    """Reads responses with the frozen reference: their log-probability under it, and their embedding.

    The embedding is the reference's last hidden state averaged over the response's tokens, each coordinate standardised
    by statistics of reference responses taken once, when the world is made. The reference and not the policy reads, so
    that the embedding of one text is the same in every round: otherwise all that the posterior has learned would be
    about features that have moved since.

    Args:
        policy: its reference reads.
        prompts: some of them give the statistics.
        sampling: how the statistics' responses are sampled.
    """

    def __init__(self, policy: Policy, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        self._policy, self._batch_size = policy, sampling.batch_size
        some = prompts[:N_STATISTICS_PROMPTS]
        with policy.as_reference():
            responses = sample_responses(policy.language_model, some, N_STATISTICS_EACH, sampling, STATISTICS_SEED)
        _, hidden = self._read(some, responses)
        self._shift = hidden.mean(axis=0)
        std = hidden.std(axis=0)
        self._scale = np.where(std > MIN_STD, std, np.float32(1.0))

    @property
    def embedding_size(self) -> int:
        """D."""
        return int(self._shift.size)

    def read(
        self, prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]], by_reference: bool
    ) -> tuple[list[Candidate], FloatArray]:
        """The candidates, prompt by prompt in one list, and their (N, d) float32 embeddings.

        Args:
            prompts: n.
            responses: to each of them.
            by_reference: the responses are the reference's own, so that both log-probabilities are one number.

        Raises:
            ValueError: a response is not to the prompt in whose place it stands.
        """
        reference_logprob, hidden = self._read(prompts, responses)
        flat = [response for written in responses for response in written]
        candidates = [
            Candidate(
                response.prompt_id, response.text, response.token_ids, response.logprob,
                response.logprob if by_reference else float(value),
            )
            for response, value in zip(flat, reference_logprob, strict=True)
        ]  # fmt: skip
        return candidates, ((hidden - self._shift) / self._scale).astype(np.float32)

    def _read(
        self, prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]]
    ) -> tuple[FloatArray, FloatArray]:
        contexts, continuations = [], []
        for prompt, written in zip(prompts, responses, strict=True):
            prompt_ids = self._policy.language_model.prompt_ids(prompt)
            for response in written:
                if response.prompt_id != prompt.id:
                    raise ValueError(f"a response to prompt {response.prompt_id} stands under prompt {prompt.id}")
                contexts.append(prompt_ids)
                continuations.append(response.token_ids)
        with self._policy.as_reference():
            return score_tokens(self._policy.language_model, contexts, continuations, self._batch_size)
