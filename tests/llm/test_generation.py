"""Sampling and scoring: every text belongs to its prompt, and padding counts nowhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from prefenv.llm.generation import GumbelNoise, Sampling, sample_responses, score_tokens
from prefenv.llm.models import LanguageModel, wrap_model
from prefenv.llm.prompts import Prompt
from prefenv.llm.settings import MIN_NEW_TOKENS
from prefenv.protocols import World
from tests.llm.helpers import play, widest_pairs

SAMPLING = Sampling(max_new_tokens=12, temperature=1.0, batch_size=5)
PROMPTS = [
    Prompt(40, "In the end this long walk home felt"),
    Prompt(7, "My tent"),
    Prompt(12, "We saw the film and it"),
    Prompt(3, "The small red lamp was"),
    Prompt(99, "My book"),
    Prompt(8, "The cafe was"),
]


def rescore(language_model: LanguageModel, prompt: Prompt, token_ids: tuple[int, ...]) -> float:
    """Log-probability of a response, alone and without padding, by the model's own logits."""
    context = language_model.prompt_ids(prompt)
    with torch.no_grad():
        logits = language_model.model(torch.tensor([context + list(token_ids)])).logits[0].double()
    logprobs = logits.log_softmax(-1)[len(context) - 1 : -1]
    return float(logprobs.gather(-1, torch.tensor(token_ids)[:, None]).sum())


def test_every_text_belongs_to_its_prompt_over_ragged_batches(language_model: LanguageModel) -> None:
    """Defect 1: 6 prompts × 3 in batches of 5, the last one of 3, sorted by length inside."""
    written = sample_responses(language_model, PROMPTS, 3, SAMPLING, seed=0)
    assert [[response.prompt_id for response in row] for row in written] == [[prompt.id] * 3 for prompt in PROMPTS]
    for prompt, row in zip(PROMPTS, written, strict=True):
        for response in row:
            assert response.logprob == pytest.approx(rescore(language_model, prompt, response.token_ids), abs=1e-3)
            others = [rescore(language_model, other, response.token_ids) for other in PROMPTS if other is not prompt]
            assert min(abs(response.logprob - value) for value in others) > 1e-3  # so a wrong pairing would show


def test_every_candidate_of_a_pool_belongs_to_its_prompt(world: World) -> None:
    """Defect 1 once more, through the source: 7 prompts × 3 in batches of 5, after a step and before."""
    language_model = world.source._policy.language_model
    for _ in range(2):
        pool = world.source.draw()
        for row, prompt in enumerate(pool.prompts):
            for column in range(3):
                candidate = pool.candidate(row, column)
                assert candidate.prompt_id == prompt.id == pool.prompt_id[row]
                again = rescore(language_model, prompt, candidate.token_ids)
                assert candidate.logprob == pytest.approx(again, abs=1e-3)
                assert pool.logprob[row, column] == pytest.approx(again, abs=1e-3)
                with world.source._policy.as_reference():
                    by_reference = rescore(language_model, prompt, candidate.token_ids)
                assert candidate.reference_logprob == pytest.approx(by_reference, abs=1e-3)
        world.learner.step(pool, world.oracle.compare(pool, widest_pairs(world, pool)))


def test_same_seed_same_texts_and_no_global_generator(language_model: LanguageModel) -> None:
    one = sample_responses(language_model, PROMPTS, 3, SAMPLING, seed=0)
    torch.manual_seed(99)
    assert one == sample_responses(language_model, PROMPTS, 3, SAMPLING, seed=0)
    assert one != sample_responses(language_model, PROMPTS, 3, SAMPLING, seed=1)


def test_noise_of_a_batch_does_not_depend_on_the_batches_before(language_model: LanguageModel) -> None:
    """Common random numbers hold in every batch, however many steps the ones before it took."""
    long = sample_responses(language_model, PROMPTS, 3, SAMPLING, seed=0)
    short = sample_responses(language_model, PROMPTS, 3, replace(SAMPLING, max_new_tokens=6), seed=0)
    for row, cut_row in zip(long, short, strict=True):
        assert [response.token_ids[:6] for response in row] == [response.token_ids for response in cut_row]


def test_batches_do_not_repeat_each_other(language_model: LanguageModel) -> None:
    """One prompt spread over two batches: with the same noise in both, its responses would come twice."""
    (row,) = sample_responses(language_model, PROMPTS[:1], 4, replace(SAMPLING, batch_size=2), seed=0)
    assert [response.token_ids for response in row[:2]] != [response.token_ids for response in row[2:]]


def test_gumbel_noise_samples_the_softmax() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.0, -3.0]]).repeat(4000, 1)
    noise = GumbelNoise(torch.Generator().manual_seed(0), temperature=0.5, end_ids=[])
    drawn = noise(torch.zeros(4000, 0), logits).argmax(-1)
    share = torch.bincount(drawn, minlength=4) / 4000
    torch.testing.assert_close(share, (logits[0] / 0.5).softmax(-1), atol=0.02, rtol=0)
    torch.testing.assert_close(noise.logprobs[0], logits.log_softmax(-1)[torch.arange(4000), drawn])


def test_no_response_is_empty_and_padding_is_never_counted(language_model: LanguageModel) -> None:
    """The padding token of this model is its end token: a response ends at the first of them, and holds it once."""
    rows = sample_responses(language_model, PROMPTS, 8, SAMPLING, seed=0)
    responses = [response for row in rows for response in row]
    assert language_model.pad_id in language_model.end_ids
    assert any(len(response.token_ids) < 12 for response in responses)
    for response in responses:
        assert MIN_NEW_TOKENS < len(response.token_ids) <= 12
        assert response.token_ids.count(2) == (1 if response.token_ids[-1] == 2 else 0)
        assert "<end>" not in response.text


def test_scores_do_not_depend_on_the_batch(language_model: LanguageModel) -> None:
    rows = sample_responses(language_model, PROMPTS, 3, SAMPLING, seed=0)
    contexts = [language_model.prompt_ids(prompt) for prompt in PROMPTS for _ in range(3)]
    tokens = [response.token_ids for row in rows for response in row]
    logprob, hidden = score_tokens(language_model, contexts, tokens, batch_size=5)
    for row, (context, continuation) in enumerate(zip(contexts, tokens, strict=True)):
        alone, state = score_tokens(language_model, [context], [continuation], batch_size=1)
        assert logprob[row] == pytest.approx(alone[0], abs=1e-3)
        np.testing.assert_allclose(hidden[row], state[0], atol=1e-4)
    with torch.no_grad():
        states = language_model.model(torch.tensor([contexts[0] + list(tokens[0])]), output_hidden_states=True)
    by_hand = states.hidden_states[-1][0, len(contexts[0]) :].mean(0)
    np.testing.assert_allclose(hidden[0], by_hand.numpy(), atol=1e-4)


def test_padding_does_not_move_the_positions_of_a_model_that_counts_them(tiny_folder: str) -> None:
    """GPT-2 has absolute positions: a prompt that is padded on the left must score as it does alone."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=128, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2,
        initializer_range=0.3,
    )  # fmt: skip
    language_model = wrap_model("gpt2", GPT2LMHeadModel(config).eval(), tokenizer)
    rows = sample_responses(language_model, PROMPTS, 2, SAMPLING, seed=0)
    contexts = [language_model.prompt_ids(prompt) for prompt in PROMPTS for _ in range(2)]
    assert len({len(context) for context in contexts}) > 1
    responses = [response for row in rows for response in row]
    logprob, _ = score_tokens(language_model, contexts, [response.token_ids for response in responses], batch_size=5)
    for row, (context, response) in enumerate(zip(contexts, responses, strict=True)):
        alone, _ = score_tokens(language_model, [context], [response.token_ids], batch_size=1)
        assert logprob[row] == pytest.approx(alone[0], abs=1e-3)
        assert response.logprob == pytest.approx(alone[0], abs=1e-3)


def test_pool_numbers_by_hand(world: World) -> None:
    play(world)
    pool = world.source.draw()
    for row in range(7):
        candidates = pool.candidates[row]
        per_token = [candidate.logprob / len(candidate.token_ids) for candidate in candidates]
        assert pool.entropy[row] == pytest.approx(-np.mean(per_token), rel=1e-5)
        for column, candidate in enumerate(candidates):
            assert pool.length[row, column] == len(candidate.token_ids)
            gap = candidate.logprob - candidate.reference_logprob
            assert pool.implicit_reward[row, column] == pytest.approx(0.1 * gap, rel=1e-5, abs=1e-7)
    assert pool.mask.all()
    assert not pool.generator.any()


def test_embedding_of_a_text_does_not_move_with_the_policy(world: World) -> None:
    pool = world.source.draw()
    play(world)
    responses = [list(row) for row in pool.candidates]
    _, again = world.source._reader.read(list(pool.prompts), responses, by_reference=True)
    np.testing.assert_array_equal(again.reshape(pool.embedding.shape), pool.embedding)
