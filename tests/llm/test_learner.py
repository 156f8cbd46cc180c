"""One DPO step: what TRL is fed, what it changes, and what it leaves alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

from prefenv.llm.adapter import torch_seed
from prefenv.llm.generation import Response, Sampling, sample_responses, score_tokens
from prefenv.llm.learner import DPOLearner, token_rows
from prefenv.llm.models import LanguageModel, quiet, untouched_generators
from prefenv.llm.pool import TextPool
from prefenv.llm.prompts import Prompt
from prefenv.llm.settings import LLMSettings
from prefenv.protocols import World
from prefenv.types import Pool, Preferences
from tests.llm.helpers import widest_pairs

NOBODY = np.empty(0, dtype=np.int64)


def labelled(world: World) -> tuple[TextPool, Preferences]:
    pool = world.source.draw()
    return pool, world.oracle.compare(pool, widest_pairs(world, pool))


def margins(learner: DPOLearner, pool: TextPool, preferences: Preferences) -> np.ndarray:
    """(k,) beta · [log(policy / reference) of the chosen less that of the rejected], scored afresh."""
    rows = token_rows(learner._policy, pool, preferences)
    contexts = [row["prompt_ids"] for row in rows]
    gaps = []
    for key in ("chosen", "rejected"):
        tokens = [row[f"{key}_ids"] for row in rows]
        logprob, _ = score_tokens(learner._policy.language_model, contexts, tokens, batch_size=5)
        with learner._policy.as_reference():
            reference, _ = score_tokens(learner._policy.language_model, contexts, tokens, batch_size=5)
        gaps.append(logprob - reference)
    return learner._settings.beta * (gaps[0] - gaps[1])


def weights(learner: DPOLearner) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Copies of the base weights and of the adapter."""
    named = {name: value.detach().clone() for name, value in learner._policy.model.state_dict().items()}
    return (
        {name: value for name, value in named.items() if "lora" not in name},
        {name: value for name, value in named.items() if "lora" in name},
    )


def test_a_step_lowers_the_loss_and_widens_the_margin(world: World) -> None:
    pool, preferences = labelled(world)
    before = margins(world.learner, pool, preferences)
    np.testing.assert_allclose(before, 0.0, atol=1e-5)
    world.learner.step(pool, preferences)
    after = margins(world.learner, pool, preferences)
    assert after.mean() > 0.0
    assert np.logaddexp(0.0, -after).mean() < np.log(2.0)  # the DPO loss of these labels


def test_base_weights_are_untouched_and_the_adapter_is_not(world: World) -> None:
    base, adapter = weights(world.learner)
    world.learner.step(*labelled(world))
    base_after, adapter_after = weights(world.learner)
    assert base.keys() == base_after.keys()
    assert adapter.keys() == adapter_after.keys()  # no adapter of the trainer's is left behind
    assert all(torch.equal(base[name], base_after[name]) for name in base)
    assert all(not torch.equal(adapter[name], adapter_after[name]) for name in adapter if "lora_B" in name)


def test_the_reference_stays_the_first_model_over_rounds(world: World) -> None:
    """Not last round's policy: the margins of one and the same batch go on growing against the frozen reference."""
    pool, preferences = labelled(world)
    grown = []
    for _ in range(3):
        world.learner.step(pool, preferences)
        grown.append(margins(world.learner, pool, preferences).mean())
    assert 0 < grown[0] < grown[1] < grown[2]
    with world.learner._policy.as_reference():
        rows = token_rows(world.learner._policy, pool, preferences)
        logprob, _ = score_tokens(
            world.learner._policy.language_model,
            [row["prompt_ids"] for row in rows], [row["chosen_ids"] for row in rows], batch_size=5,
        )  # fmt: skip
    np.testing.assert_allclose(logprob, [row["ref_chosen_logps"] for row in rows], atol=1e-3)


def test_the_trainer_sees_the_sampled_tokens(world: World, tmp_path: Path) -> None:
    pool, preferences = labelled(world)
    learner = world.learner
    with learner._restored_model():
        trainer = learner._trainer(token_rows(learner._policy, pool, preferences), str(tmp_path), seed=0)
        batch = trainer.data_collator([trainer.train_dataset[row] for row in range(len(preferences))])
    for half, chosen in enumerate((preferences.chosen, preferences.rejected)):
        for row, (prompt, column) in enumerate(zip(preferences.prompt, chosen, strict=True)):
            place = half * len(preferences) + row
            candidate = pool.candidates[prompt][column]
            context = learner._policy.language_model.prompt_ids(pool.prompts[prompt])
            fed = batch["input_ids"][place][batch["attention_mask"][place] == 1].tolist()
            assert fed == context + list(candidate.token_ids)
            learned = batch["input_ids"][place][batch["completion_mask"][place] == 1].tolist()
            assert learned == list(candidate.token_ids)
            reference = batch["ref_chosen_logps" if half == 0 else "ref_rejected_logps"][row]
            assert float(reference) == pytest.approx(candidate.reference_logprob, rel=1e-6)


def test_the_trainer_starts_at_a_loss_of_log_two(world: World, tmp_path: Path) -> None:
    """So the reference log-probabilities it was handed are those of its own first forward pass."""
    pool, preferences = labelled(world)
    learner = world.learner
    with learner._restored_model(), torch.no_grad():
        trainer = learner._trainer(token_rows(learner._policy, pool, preferences), str(tmp_path), seed=0)
        batch = trainer.data_collator([trainer.train_dataset[row] for row in range(len(preferences))])
        assert float(trainer.compute_loss(trainer.model, batch)) == pytest.approx(np.log(2.0), abs=1e-5)


def test_away_from_the_reference_the_loss_is_that_of_dpo(world: World, tmp_path: Path) -> None:
    """The logistic loss of the whole responses' log-ratios, neither normalised by length nor anything else."""
    learner = world.learner
    learner.step(*labelled(world))
    pool, preferences = labelled(world)
    with learner._restored_model(), torch.no_grad():
        trainer = learner._trainer(token_rows(learner._policy, pool, preferences), str(tmp_path), seed=0)
        batch = trainer.data_collator([trainer.train_dataset[row] for row in range(len(preferences))])
        found = float(trainer.compute_loss(trainer.model, batch))
    gaps = margins(learner, pool, preferences)
    assert np.abs(gaps).max() > 1e-3
    assert found == pytest.approx(np.logaddexp(0.0, -gaps).mean(), abs=1e-5)
    assert trainer.args.lr_scheduler_type == "constant"
    assert (trainer.args.weight_decay, trainer.args.max_grad_norm) == (0.0, 1.0)


def test_each_round_shuffles_anew(world: World) -> None:
    learner, seeds = world.learner, []
    make = learner._trainer
    learner._trainer = lambda rows, folder, seed, bonus: seeds.append(seed) or make(rows, folder, seed, bonus)
    for _ in range(2):
        learner.step(*labelled(world))
    del learner._trainer
    assert len(set(seeds)) == 2


def test_no_labels_no_change(world: World) -> None:
    _, before = weights(world.learner)
    world.learner.step(world.source.draw(), Preferences(NOBODY, NOBODY, NOBODY))
    _, after = weights(world.learner)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_text_under_another_prompt_is_refused(world: World) -> None:
    """Defect 1: swap the texts of two prompts, and neither the trainer nor the rows take them."""
    pool, preferences = labelled(world)
    swapped = (pool.candidates[1], pool.candidates[0], *pool.candidates[2:])
    wrong = replace(pool, candidates=swapped)
    with pytest.raises(ValueError, match="was written for prompt"):
        world.learner.step(wrong, preferences)
    with pytest.raises(ValueError, match="was written for prompt"):
        wrong.rows(preferences)
    with pytest.raises(ValueError, match="was written for prompt"):
        world.oracle.score(wrong)


def test_rows_are_readable_preferences(world: World) -> None:
    pool, preferences = labelled(world)
    rows = pool.rows(preferences)
    assert [set(row) for row in rows] == [{"prompt_id", "prompt", "chosen", "rejected"}] * len(preferences)
    assert rows[3]["prompt"] == pool.prompts[3].text
    for number, row in enumerate(rows):
        assert row["prompt_id"] == pool.prompt_id[number]
        assert row["chosen"] == pool.candidates[number][preferences.chosen[number]].text
        assert row["rejected"] == pool.candidates[number][preferences.rejected[number]].text


def test_a_pool_without_texts_is_refused(world: World) -> None:
    pool, preferences = labelled(world)
    bare = Pool(**{name: getattr(pool, name) for name in Pool.__dataclass_fields__})
    with pytest.raises(TypeError, match="TextPool"):
        world.learner.step(bare, preferences)
    with pytest.raises(TypeError, match="TextPool"):
        world.oracle.score(bare)


@pytest.mark.parametrize(
    "change", [{"learning_rate": 1e-2}, {"epochs": 3}, {"beta": 0.5}, {"batch_size": 2}], ids=lambda change: str(change)
)
def test_each_setting_changes_the_step(world: World, change: dict[str, float], tiny_settings: LLMSettings) -> None:
    pool, preferences = labelled(world)
    results = []
    for settings in (tiny_settings, replace(tiny_settings, **change)):
        learner = DPOLearner(world.learner._policy, settings, world.learner._sampling)
        learner.reset(np.random.default_rng(0))
        learner.step(pool, preferences)
        results.append(weights(learner)[1])
    assert any(not torch.equal(results[0][name], results[1][name]) for name in results[0])


def step_rows(learner: DPOLearner, pool: TextPool, preferences: Preferences, alpha: float) -> list[dict[str, Any]]:
    """Takes a step; the rows that its trainer was given."""
    given, make = [], learner._trainer
    learner._trainer = lambda rows, *rest: given.append(rows) or make(rows, *rest)
    try:
        learner.step(pool, preferences, alpha)
    finally:
        del learner._trainer
    (rows,) = given
    return rows


def response_logprobs(learner: DPOLearner, rows: list[dict[str, Any]], key: str) -> torch.Tensor:
    """(k,) log-probabilities of whole responses, each in a forward pass of its own, so without any padding."""
    found = []
    for row in rows:
        logits = learner._policy.language_model.model(torch.tensor([row["prompt_ids"] + row[key]])).logits
        logprobs = logits[0, len(row["prompt_ids"]) - 1 : -1].log_softmax(-1)
        found.append(logprobs.gather(1, torch.tensor(row[key])[:, None]).sum())
    return torch.stack(found)


def test_the_loss_with_a_bonus_and_its_gradient_are_those_of_xpo(world: World, tmp_path: Path) -> None:
    """Away from the reference: the mean of DPO loss + alpha · log policy(reference's response), padding left out."""
    learner, alpha = world.learner, 0.02
    rows = step_rows(learner, *labelled(world), alpha)
    for number, row in enumerate(rows):
        row["bonus_ids"] = row["bonus_ids"][: 1 + number]  # ragged, whatever was sampled
    assert len({len(row["prompt_ids"]) + len(row["bonus_ids"]) for row in rows}) > 1
    with learner._restored_model():
        trainer = learner._trainer(rows, str(tmp_path), 0, alpha)
        loss = trainer.compute_loss(trainer.model, trainer.data_collator(list(trainer.train_dataset)))
        loss.backward()
        gradient = {name: value.grad.clone() for name, value in learner._policy._adapter()}

    with torch.no_grad(), learner._policy.as_reference():
        references = [response_logprobs(learner, rows, key) for key in ("chosen_ids", "rejected_ids")]
    chosen, rejected = (
        response_logprobs(learner, rows, key) - reference
        for key, reference in zip(("chosen_ids", "rejected_ids"), references, strict=True)
    )
    dpo = torch.log1p(torch.exp(-learner._settings.beta * (chosen - rejected)))
    bonus = response_logprobs(learner, rows, "bonus_ids")
    expected = (dpo + alpha * bonus).mean()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    for name, value in learner._policy._adapter():
        torch.testing.assert_close(gradient[name], value.grad, rtol=1e-3, atol=1e-5)
    learner._policy.model.zero_grad(set_to_none=True)


def test_without_a_bonus_the_step_is_trls_own(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit by bit, with one number drawn from the learner's generator and nothing sampled."""
    learner, (pool, preferences) = world.learner, labelled(world)
    state, rng = learner.state_dict(), copy.deepcopy(learner._rng)
    with untouched_generators(), quiet(), learner._restored_model():
        trainer = learner._trainer(token_rows(learner._policy, pool, preferences), str(tmp_path), torch_seed(rng))
        trainer.data_collator = DataCollatorForPreference(pad_token_id=learner._policy.language_model.pad_id)
        trainer.compute_loss = MethodType(DPOTrainer.compute_loss, trainer)
        trainer.train()
    expected = weights(learner)[1]
    monkeypatch.setattr("prefenv.llm.learner.sample_responses", None)
    for bonus in ((), (0.0,)):
        learner.load_state_dict(state)
        learner.step(pool, preferences, *bonus)
        found = weights(learner)[1]
        assert all(torch.equal(expected[name], found[name]) for name in expected)
        assert learner._rng.bit_generator.state == rng.bit_generator.state


def test_a_large_bonus_leads_away_from_what_the_reference_says(world: World) -> None:
    learner, (pool, preferences) = world.learner, labelled(world)
    state = learner.state_dict()
    rows = step_rows(learner, pool, preferences, 10.0)
    with_bonus = response_logprobs(learner, rows, "bonus_ids").mean().item()
    learner.load_state_dict(state)
    learner.step(pool, preferences)
    without = response_logprobs(learner, rows, "bonus_ids").mean().item()
    assert with_bonus < without - 1.0  # nats


def test_bonus_responses_are_the_references_own(
    world: World, language_model: LanguageModel, tiny_settings: LLMSettings
) -> None:
    """Those of a model that never had an adapter, sampled as the world samples, by the learner's generator."""
    learner = world.learner
    for _ in range(2):
        learner.step(*labelled(world))
    pool, preferences = labelled(world)
    policy, rng = learner.state_dict(), copy.deepcopy(learner._rng)
    found = [row["bonus_ids"] for row in step_rows(learner, pool, preferences, 0.1)]
    torch_seed(rng)  # the trainer's
    seed = torch_seed(rng)
    assert learner._rng.bit_generator.state == rng.bit_generator.state
    sampling = Sampling(
        tiny_settings.max_new_tokens, tiny_settings.temperature, tiny_settings.generation_batch_size
    )  # fmt: skip

    def written(by: LanguageModel) -> list[list[int]]:
        return [list(response.token_ids) for (response,) in sample_responses(by, pool.prompts, 1, sampling, seed)]

    assert found == written(language_model)
    learner.load_state_dict(policy)
    assert found != written(learner._policy.language_model)


def test_every_bonus_response_belongs_to_its_labels_prompt(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Defect 1, by numbers: each response spells the number of its prompt; labels in no order, one prompt twice."""
    learner, pool = world.learner, world.source.draw()
    preferences = Preferences(np.array([4, 1, 4, 6, 0]), np.array([0, 2, 1, 0, 1]), np.array([1, 0, 2, 2, 2]))

    def number(
        language_model: LanguageModel, prompts: Sequence[Prompt], n_each: int, sampling: Sampling, seed: int
    ) -> list[list[Response]]:
        assert len({prompt.id for prompt in prompts}) == len(prompts) == 4
        return [[Response(prompt.id, "", (prompt.id,) * (1 + prompt.id % 3), 0.0)] * n_each for prompt in prompts]

    monkeypatch.setattr("prefenv.llm.learner.sample_responses", number)
    rows = step_rows(learner, pool, preferences, 0.1)
    with learner._restored_model():
        trainer = learner._trainer(rows, str(tmp_path), 0, 0.1)
        fed = trainer.data_collator(list(trainer.train_dataset))["bonus"]
    for place, label in enumerate(preferences.prompt):
        prompt = pool.prompts[label]
        response = [prompt.id] * (1 + prompt.id % 3)
        ids, labels = fed["input_ids"][place], fed["labels"][place]
        assert rows[place]["bonus_ids"] == response
        assert ids[fed["attention_mask"][place] == 1].tolist() == (
            learner._policy.language_model.prompt_ids(prompt) + response
        )
        assert labels[labels != -100].tolist() == ids[labels != -100].tolist() == response


def test_a_restored_learner_goes_on_exactly_with_a_bonus(world: World, make_tiny: Callable[[], World]) -> None:
    learner, (pool, preferences) = world.learner, labelled(world)
    first = step_rows(learner, pool, preferences, 0.1)
    state = copy.deepcopy(learner.state_dict())
    second = step_rows(learner, pool, preferences, 0.1)
    expected = learner.state_dict()
    assert [row["bonus_ids"] for row in first] != [row["bonus_ids"] for row in second]  # each step samples anew
    for restored in (learner, make_tiny().learner):
        restored.load_state_dict(state)
        assert step_rows(restored, pool, preferences, 0.1) == second
        np.testing.assert_equal(restored.state_dict(), expected)


@pytest.mark.parametrize("alpha", [-1e-5, float("nan"), float("inf")])
def test_a_bonus_that_cannot_be_is_refused(world: World, alpha: float) -> None:
    pool, preferences = labelled(world)
    _, before = weights(world.learner)
    for labels in (preferences, Preferences(NOBODY, NOBODY, NOBODY)):
        with pytest.raises(ValueError, match=f"exploration_bonus={alpha} must be 0 or more, and finite"):
            world.learner.step(pool, labels, alpha)
    _, after = weights(world.learner)
    assert all(torch.equal(before[name], after[name]) for name in before)
