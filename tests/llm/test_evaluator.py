"""Win rate on held-out prompts with common random numbers, and the numbers beside it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from prefenv.llm import capability
from prefenv.llm.capability_items import ITEMS
from prefenv.llm.evaluator import ranking_accuracy, share_of_wins
from prefenv.llm.features import Candidate
from prefenv.llm.generation import score_tokens
from prefenv.llm.models import LanguageModel
from prefenv.llm.settings import LLMSettings
from prefenv.llm.world import make_llm_world
from prefenv.protocols import World
from tests.llm.helpers import play


def scripted(texts: list[str]) -> list[Candidate]:
    return [Candidate(0, text, (5, 6), -3.0, -4.0) for text in texts]


def test_policy_and_reference_share_their_noise(world: World) -> None:
    """The policy at the reference writes the very texts that it is compared with; after a step it does so in part."""
    evaluator = world.evaluator
    assert evaluator._policy.is_reference
    written = evaluator._sample(evaluator._seed)
    assert [row[0].token_ids for row in written] == [candidate.token_ids for candidate in evaluator._reference[0]]
    assert evaluator._seed != evaluator._other_seed


def test_a_policy_that_hardly_moved_writes_the_texts_of_the_reference(tiny_settings: LLMSettings) -> None:
    world = make_llm_world(replace(tiny_settings, learning_rate=1e-7))
    world.reset(np.random.default_rng(0))
    _, _, found = play(world)
    assert not world.learner._policy.is_reference
    candidates, _ = world.evaluator._policy_responses()
    assert [c.token_ids for c in candidates] == [c.token_ids for c in world.evaluator._reference[0]]
    assert [c.token_ids for c in candidates] != [c.token_ids for c in world.evaluator._reference[1]]
    assert found.win_rate.mean == 0.5


def test_capability_is_the_policys(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    play(world)
    language_model = world.learner._policy.language_model

    def probe() -> float:
        return float(score_tokens(language_model, [[5, 6, 7]], [[8, 9]], 1)[0][0])

    with world.learner._policy.as_reference():
        reference = probe()
    monkeypatch.setattr(world.evaluator, "_cloze", probe)
    assert world.evaluator.evaluate(world.posterior).capability == probe() != reference


def test_accuracy_is_of_the_right_texts(world: World) -> None:
    play(world)
    evaluator = world.evaluator
    candidates, embedding = evaluator._policy_responses()
    columns = [candidates, *evaluator._reference]
    believed = np.stack(
        [
            world.posterior.mean(embedding),
            world.posterior.mean(evaluator._reference_embedding[:, 0]),
            world.posterior.mean(evaluator._reference_embedding[:, 1]),
        ],
        axis=1,
    )
    reward = np.stack([evaluator._reward([c.text for c in column]) for column in columns], axis=1)
    assert evaluator.evaluate(world.posterior).posterior_accuracy == ranking_accuracy(believed, reward)
    for column, number in zip(columns[1:], range(2), strict=True):  # each embedding is that of its text
        prompts = evaluator._prompts
        context = [world.learner._policy.language_model.prompt_ids(prompt) for prompt in prompts]
        with world.learner._policy.as_reference():
            _, hidden = score_tokens(world.learner._policy.language_model, context, [c.token_ids for c in column], 5)
        reader = evaluator._reader
        expected = (hidden - reader._shift) / reader._scale
        np.testing.assert_allclose(evaluator._reference_embedding[:, number], expected, atol=1e-3)


def test_evaluating_draws_nothing_and_changes_nothing(world: World) -> None:
    play(world)
    before = world.state_dict()
    one, other = (world.evaluator.evaluate(world.posterior) for _ in range(2))
    assert one == other
    np.testing.assert_equal(world.state_dict(), before)


def test_win_rates_by_hand(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = world.evaluator
    ours = scripted(["good", "good", "awful", "good good good good", "the", "great"])
    theirs = scripted(["bad", "good", "great", "good good", "sad", "so"])
    embedding = np.zeros((6, world.embedding_size), dtype=np.float32)
    monkeypatch.setattr(evaluator, "_policy_responses", lambda: (ours, embedding))
    evaluator._reference = [theirs, theirs]
    found = evaluator.evaluate(world.posterior)
    assert found.win_rate.mean == pytest.approx((1 + 0.5 + 0 + 1 + 1 + 1) / 6)
    assert found.second == pytest.approx((1 + 0.5 + 0 + 0.5 + 1 + 1) / 6)  # repeated praise is a tie
    assert found.kl == pytest.approx(1.0)
    assert found.posterior_accuracy == 0.5  # the posterior knows nothing yet
    padded = np.array([1, 0.5, 0, 1, 1, 1, 0, 1])  # a win and a loss are added for the interval
    half = 2.364624 * padded.std(ddof=1) / np.sqrt(8)  # t quantile, 7 degrees of freedom
    assert found.win_rate.low == pytest.approx(padded.mean() - half)
    assert found.win_rate.high == 1.0


def test_share_of_wins_counts_a_tie_as_half() -> None:
    assert share_of_wins(np.array([0.3, 0.3, 0.3]), np.array([0.2, 0.3, 0.4])).tolist() == [1.0, 0.5, 0.0]


def test_ranking_accuracy_by_hand() -> None:
    reward = np.array([[1.0, 0.0, 0.0], [2.0, 1.0, 0.0]])
    belief = np.array([[5.0, 1.0, 9.0], [3.0, 2.0, 2.0]])
    # row 0: right, wrong, (equal rewards: left out); row 1: right, right, undecided
    assert ranking_accuracy(belief, reward) == pytest.approx((1 + 0 + 1 + 1 + 0.5) / 5)
    assert ranking_accuracy(-belief, reward) == pytest.approx(1 - (1 + 0 + 1 + 1 + 0.5) / 5)
    assert ranking_accuracy(belief, np.zeros((2, 3))) == 0.5


def test_capability_by_hand(language_model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    items = (("The film was", ("good", "very sad")), ("My tent", ("and", "lovely", "so")))
    monkeypatch.setattr(capability, "ITEMS", items)
    expected = []
    for beginning, endings in items:
        context = language_model.tokenizer(beginning)["input_ids"]
        per_token = []
        for ending in endings:
            tokens = language_model.tokenizer(f" {ending}.")["input_ids"]
            with torch.no_grad():
                logprobs = language_model.model(torch.tensor([context + tokens])).logits[0].log_softmax(-1)
            chosen = [float(logprobs[len(context) - 1 + place, token]) for place, token in enumerate(tokens)]
            per_token.append(np.mean(chosen))
        weight = np.exp(per_token)
        expected.append(weight[0] / weight.sum())
    assert capability.Cloze(language_model, batch_size=2)() == pytest.approx(np.mean(expected), abs=1e-5)


def test_capability_items_are_well_formed() -> None:
    assert all(2 <= len(endings) <= 4 and len(set(endings)) == len(endings) for _, endings in ITEMS)
    assert len({beginning for beginning, _ in ITEMS}) == len(ITEMS) == 40
