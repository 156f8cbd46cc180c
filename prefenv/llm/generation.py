"""Sampling responses from a language model, and scoring them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from prefenv.llm.models import LanguageModel, quiet
from prefenv.llm.prompts import Prompt
from prefenv.llm.settings import MIN_NEW_TOKENS
from prefenv.types import FloatArray


@dataclass(frozen=True)
class Response:
    """A sampled text and the prompt it was sampled for.

    Attributes:
        prompt_id: of the prompt it continues.
        text: without special tokens.
        token_ids: as sampled, with the end token where the model gave one; no padding.
        logprob: nats, sum over token_ids, at temperature 1 under the model that wrote it.
    """

    prompt_id: int
    text: str
    token_ids: tuple[int, ...]
    logprob: float


@dataclass(frozen=True)
class Sampling:
    """How responses are sampled.

    Attributes:
        max_new_tokens: longest response.
        temperature: of the sampling.
        batch_size: sequences side by side.
    """

    max_new_tokens: int
    temperature: float
    batch_size: int


class GumbelNoise(LogitsProcessor):
    """Makes greedy decoding a sample: argmax(logits / T + Gumbel noise) has the distribution softmax(logits / T).

    Equal logits and an equal seed give equal texts, and no global generator is touched. So that two policies which
    nearly agree write nearly the same text, the noise of a row and step does not depend on what was sampled before.

    Args:
        generator: of the noise, on the model's device.
        temperature: T.
        end_ids: tokens that are forbidden in the first ``MIN_NEW_TOKENS`` steps.
    """

    def __init__(self, generator: torch.Generator, temperature: float, end_ids: Sequence[int]) -> None:
        self._generator, self._temperature, self._end_ids = generator, temperature, list(end_ids)
        self.logprobs: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(B, V) perturbed logits; keeps the (B,) log-probability, before temperature, of the token they choose."""
        logprobs = scores.float().log_softmax(-1)
        perturbed = logprobs / self._temperature
        if len(self.logprobs) < MIN_NEW_TOKENS:
            perturbed[:, self._end_ids] = -torch.inf
        uniform = torch.rand(perturbed.shape, generator=self._generator, device=perturbed.device)
        perturbed -= uniform.log_().neg_().log_()  # Gumbel = -log(-log u)
        self.logprobs.append(logprobs.gather(-1, perturbed.argmax(-1, keepdim=True)).squeeze(-1))
        return perturbed


def sample_responses(
    language_model: LanguageModel, prompts: Sequence[Prompt], n_each: int, sampling: Sampling, seed: int
) -> list[list[Response]]:
    """``n_each`` responses to every prompt, in the order of the prompts.

    Prompts of like length share a batch; every response carries its prompt's number and is handed back by it, never by
    its place in a batch. The noise of a batch depends on ``seed`` and the batch's number alone.

    Args:
        language_model: as it is now, with its adapter on or off.
        prompts: no two alike.
        n_each: responses a prompt.
        sampling: how.
        seed: of the noise.
    """
    ids = {prompt.id: language_model.prompt_ids(prompt) for prompt in prompts}
    by_length = sorted(ids, key=lambda number: len(ids[number]))
    requests = [number for number in by_length for _ in range(n_each)]
    written: dict[int, list[Response]] = {number: [] for number in ids}
    for batch, start in enumerate(range(0, len(requests), sampling.batch_size)):
        rows = requests[start : start + sampling.batch_size]
        for response in _sample_batch(language_model, rows, [ids[number] for number in rows], sampling, (seed, batch)):
            written[response.prompt_id].append(response)
    return [written[prompt.id] for prompt in prompts]


def _sample_batch(
    language_model: LanguageModel,
    prompt_numbers: Sequence[int],
    prompt_ids: Sequence[Sequence[int]],
    sampling: Sampling,
    seed: tuple[int, int],
) -> list[Response]:
    noise_seed = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1)
    generator = torch.Generator(language_model.device).manual_seed(noise_seed)
    noise = GumbelNoise(generator, sampling.temperature, language_model.end_ids)
    input_ids, attention_mask = pad_prompts(prompt_ids, language_model.pad_id)
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=False,
        pad_token_id=language_model.pad_id,
        eos_token_id=list(language_model.end_ids) or None,
    )
    with torch.inference_mode(), quiet():
        sequences = language_model.model.generate(  # type: ignore[operator]
            input_ids=input_ids.to(language_model.device),
            attention_mask=attention_mask.to(language_model.device),
            generation_config=config,
            logits_processor=LogitsProcessorList([noise]),
        )
    sampled = sequences[:, input_ids.shape[1] :].cpu().numpy()
    logprobs = torch.stack(noise.logprobs, dim=1).double().cpu().numpy()
    return [
        _response(language_model, number, row, row_logprobs)
        for number, row, row_logprobs in zip(prompt_numbers, sampled, logprobs, strict=True)
    ]


def _response(language_model: LanguageModel, prompt_id: int, row: np.ndarray, logprobs: np.ndarray) -> Response:
    """Cut after the first end token: what follows is padding, which is counted nowhere."""
    ends = np.flatnonzero(np.isin(row, language_model.end_ids))
    length = int(ends[0]) + 1 if len(ends) else len(row)
    token_ids = tuple(int(token) for token in row[:length])
    return Response(prompt_id, language_model.text(token_ids), token_ids, float(logprobs[:length].sum()))


def pad_prompts(prompt_ids: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (B, L) int64 filled on the left, and their attention mask.

    >>> pad_prompts([[5, 6], [7]], pad_id=0)[0].tolist()
    [[5, 6], [0, 7]]
    """
    longest = max(len(row) for row in prompt_ids)
    ids = [[pad_id] * (longest - len(row)) + list(row) for row in prompt_ids]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in prompt_ids]
    return torch.tensor(ids), torch.tensor(mask)


def score_tokens(
    language_model: LanguageModel, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]],
    batch_size: int,
) -> tuple[FloatArray, FloatArray]:  # fmt: skip
    """Log-probability of each continuation after its context, and its mean hidden state, in one forward pass.

    Args:
        language_model: as it is now, with its adapter on or off.
        contexts: N lists of token ids, none empty.
        continuations: N lists of token ids, none empty.
        batch_size: sequences side by side.

    Returns:
        logprob (N,) float64, nats, summed over the continuation's tokens and over nothing else; hidden (N, d) float32,
        the last layer averaged over the same tokens.
    """
    order = sorted(range(len(contexts)), key=lambda row: (len(continuations[row]), len(contexts[row])))
    logprob = np.zeros(len(contexts))
    hidden: list[FloatArray] = [np.empty(0)] * len(contexts)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        values, pooled = _score_batch(
            language_model, [contexts[row] for row in rows], [continuations[row] for row in rows]
        )
        logprob[rows] = values
        for row, state in zip(rows, pooled, strict=True):
            hidden[row] = state
    return logprob, np.stack(hidden)


def _score_batch(
    language_model: LanguageModel, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
) -> tuple[FloatArray, FloatArray]:
    context_ids, context_mask = pad_prompts(contexts, language_model.pad_id)
    longest = max(len(row) for row in continuations)
    ids = torch.tensor([list(row) + [language_model.pad_id] * (longest - len(row)) for row in continuations])
    present = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in continuations])
    mask = torch.cat([context_mask, present], dim=1).to(language_model.device)
    ids, present = ids.to(language_model.device), present.to(language_model.device)
    with torch.inference_mode():
        output = language_model.model(
            input_ids=torch.cat([context_ids.to(language_model.device), ids], dim=1),
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp_min(0),
            output_hidden_states=True,
            use_cache=False,
            logits_to_keep=longest + 1,
        )
        logits = output.logits[:, -longest - 1 : -1].float()
        token_logprob = logits.gather(-1, ids[..., None]).squeeze(-1) - logits.logsumexp(-1)
        weight = present[..., None].float()
        pooled = (output.hidden_states[-1][:, -longest:].float() * weight).sum(1) / weight.sum(1)
    return (token_logprob * present).double().sum(1).cpu().numpy(), pooled.cpu().numpy()
