"""The whole language model path on a tiny random model."""

from __future__ import annotations

import copy
import random
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from prefenv.llm.settings import LLMSettings
from prefenv.llm.world import make_llm_world
from prefenv.protocols import CandidateSource, Evaluator, Oracle, PolicyLearner, RewardPosterior, TextRows, World
from tests.llm.helpers import assert_same_pool, play, widest_pairs


def test_parts_are_what_the_protocols_say(world: World) -> None:
    assert isinstance(world.source, CandidateSource)
    assert isinstance(world.oracle, Oracle)
    assert isinstance(world.posterior, RewardPosterior)
    assert isinstance(world.learner, PolicyLearner)
    assert isinstance(world.evaluator, Evaluator)
    pool = world.source.draw()
    assert isinstance(pool, TextRows)
    assert pool.embedding.shape == (7, 3, world.embedding_size)
    assert pool.embedding.dtype == pool.logprob.dtype == pool.entropy.dtype == np.float32


def test_a_round_changes_the_policy_and_a_reset_brings_the_reference_back(world: World) -> None:
    before = world.evaluator.evaluate(world.posterior)
    assert before.win_rate.low < before.win_rate.mean == 0.5 < before.win_rate.high
    assert before.kl == 0.0
    _, preferences, after = play(world)
    assert len(preferences) == 7
    assert after.kl != 0.0
    assert 0.0 <= after.posterior_accuracy <= 1.0
    world.reset(np.random.default_rng(0))
    assert world.evaluator.evaluate(world.posterior) == before


def test_first_pool_is_the_reference_and_later_pools_are_not(world: World) -> None:
    first, _, _ = play(world)
    assert np.all(first.implicit_reward == 0)
    assert np.any(world.source.draw().implicit_reward != 0)


def test_labels_raise_the_reward_and_the_win_rate(tiny_settings: LLMSettings) -> None:
    settings = replace(
        tiny_settings, n_prompts=12, n_candidates=6, n_eval_prompts=12, learning_rate=1e-2, oracle_temperature=0.0
    )  # fmt: skip
    world = make_llm_world(settings)
    world.reset(np.random.default_rng(0))
    pools, _, evaluations = zip(*[play(world) for _ in range(5)], strict=True)
    assert world.oracle.score(pools[-1]).mean() > world.oracle.score(pools[0]).mean() + 0.2
    assert evaluations[-1].win_rate.mean > 0.6


def test_same_seed_same_world_whatever_ran_before(world: World, make_tiny: Callable[[], World]) -> None:
    one = [play(world) for _ in range(2)]
    torch.manual_seed(123)
    np.random.seed(5)  # noqa: NPY002
    for other_world in (world, make_tiny()):
        other_world.reset(np.random.default_rng(0))
        for (pool, preferences, evaluation), (pool_2, preferences_2, evaluation_2) in zip(
            one, [play(other_world) for _ in range(2)], strict=True
        ):
            assert_same_pool(pool, pool_2)
            np.testing.assert_array_equal(preferences.chosen, preferences_2.chosen)
            assert evaluation == evaluation_2


def test_another_seed_is_another_world(world: World) -> None:
    one = world.source.draw()
    world.reset(np.random.default_rng(1))
    assert one.candidates != world.source.draw().candidates


def test_a_restored_world_goes_on_bit_for_bit(world: World, make_tiny: Callable[[], World]) -> None:
    play(world)
    state = copy.deepcopy(world.state_dict())
    kept = copy.deepcopy(state)
    expected = [play(world) for _ in range(2)]
    fresh = make_tiny()  # has never been reset
    for restored in (fresh, world):
        restored.load_state_dict(state)
        for pool, _, evaluation in expected:
            pool_2, _, evaluation_2 = play(restored)
            assert_same_pool(pool, pool_2)
            assert evaluation == evaluation_2
    np.testing.assert_equal(state, kept)  # nobody wrote into the saved state


def test_an_adapter_of_another_rank_is_refused(world: World, tiny_settings: LLMSettings) -> None:
    other = make_llm_world(replace(tiny_settings, lora_rank=2))
    with pytest.raises(ValueError, match="lora_rank"):
        other.load_state_dict(world.state_dict())


def test_global_generators_are_left_alone(world: World, make_tiny: Callable[[], World]) -> None:
    before = (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002
    play(world)
    make_tiny()
    after = (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002
    assert before == after


def test_a_round_is_silent(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    play(world)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "change", [{"temperature": 0.7}, {"oracle_temperature": 0.0}, {"prior_std": 1.0}, {"n_samples": 5}], ids=str
)
def test_each_setting_reaches_its_part(change: dict[str, float], world: World, tiny_settings: LLMSettings) -> None:
    def shown(of: World) -> list[str]:
        of.reset(np.random.default_rng(0))
        pool = of.source.draw()
        belief = of.posterior.predict(pool.embedding)
        pairs = widest_pairs(of, pool)
        labels = [of.oracle.compare(pool, pairs).chosen.tolist() for _ in range(20)]
        return [str(pool.logprob), str(belief.std), str(belief.samples.shape), str(labels)]

    assert shown(make_llm_world(replace(tiny_settings, **change))) != shown(world)


def test_embeddings_are_standardised(world: World) -> None:
    embedding = np.concatenate([world.source.draw().embedding.reshape(21, -1) for _ in range(5)])
    assert np.abs(embedding.mean(axis=0)).mean() < 0.5
    assert 0.5 < embedding.std(axis=0).mean() < 2.0


def test_a_step_that_breaks_the_policy_is_an_error(tiny_settings: LLMSettings) -> None:
    world = make_llm_world(replace(tiny_settings, learning_rate=1e30))
    world.reset(np.random.default_rng(0))
    with pytest.raises(ValueError, match="lower learning_rate"):
        play(world)


def test_a_round_leaves_no_files(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    play(world)
    assert list(tmp_path.rglob("*")) == []


def test_held_out_prompts_are_never_drawn(world: World) -> None:
    held_out = {int(number) for number in world.state_dict()["evaluator"]["prompt_id"]}
    assert len(held_out) == 6
    drawn = {int(number) for _ in range(4) for number in world.source.draw().prompt_id}
    assert len(drawn) == 18
    assert not drawn & held_out


def test_too_few_prompts_are_refused_with_both_numbers(tiny_settings: LLMSettings) -> None:
    with pytest.raises(ValueError, match=r"n_prompts=19 and n_eval_prompts=6 need 25 prompts, but there are 24"):
        make_llm_world(replace(tiny_settings, n_prompts=19))
