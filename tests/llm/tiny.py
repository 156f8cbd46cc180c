"""A tiny random causal LM and a tiny tokenizer with a chat template, made from scratch: no hub, no download."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prefenv.llm.models import LanguageModel, load_language_model
from prefenv.llm.settings import LLMSettings
from prefenv.llm.world import make_llm_world
from prefenv.protocols import World

TEMPLATE = (
    "{% for message in messages %}<start>{{ message['role'] }} {{ message['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<start>assistant {% endif %}"
)
SUBJECTS = ["film", "book", "cafe", "small red lamp", "long walk home", "tent"]
OPENINGS = ["The {} was", "We saw the {} and it", "My {}", "In the end this {} felt"]
MOODS = ["good", "great", "lovely", "superb", "happy", "bad", "awful", "terrible", "sad", "boring"]
PLAIN = ["and", "very", "not", "so", "the"]


def make_tokenizer(template: str | None = TEMPLATE, pad: str | None = "<end>") -> PreTrainedTokenizerFast:
    """Words with the space before them, so that decoding gives the text back. ``<end>`` is the padding as well."""
    openings = " ".join(opening.format(subject) for opening, subject in itertools.product(OPENINGS, SUBJECTS))
    words = list(dict.fromkeys(openings.split()))
    pieces = ["<unk>", "<start>", "<end>", *words, *(" " + word for word in dict.fromkeys(words + MOODS + PLAIN))]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(Regex(r" ?[^ ]+"), behavior="isolated")
    tokenizer.decoder = Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<start>", eos_token="<end>", pad_token=pad
    )
    fast.chat_template = template
    return fast


def make_model(vocabulary_size: int) -> LlamaForCausalLM:
    """Random weights, large enough that its next words depend on the words before."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
        pad_token_id=2, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """The tiny model is too small to be worth a second thread, which only waits where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of the tiny model, as save_pretrained writes it."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = make_tokenizer()
    make_model(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def prompt_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 openings of different lengths."""
    file = tmp_path_factory.mktemp("prompts") / "openings.txt"
    file.write_text("\n".join(opening.format(subject) for opening, subject in itertools.product(OPENINGS, SUBJECTS)))
    return file


@pytest.fixture(scope="session")
def tiny_settings(tiny_folder: str, prompt_file: Path) -> LLMSettings:
    """Small in everything; batches of 5, so that pools of 7 × 3 and 6 held-out prompts have ragged last ones."""
    return LLMSettings(
        model=tiny_folder, prompt_file=str(prompt_file), n_prompts=7, n_candidates=3, n_samples=4, n_eval_prompts=6,
        max_new_tokens=12, generation_batch_size=5, lora_rank=4, epochs=2, batch_size=4, learning_rate=5e-3,
        device="cpu",
    )  # fmt: skip


@pytest.fixture(scope="session")
def make_tiny(tiny_settings: LLMSettings) -> Callable[[], World]:
    """Makes a new world of the tiny model."""
    return lambda: make_llm_world(tiny_settings)


@pytest.fixture
def language_model(tiny_folder: str) -> LanguageModel:
    """The tiny model without an adapter."""
    return load_language_model(tiny_folder, "cpu")


@pytest.fixture(scope="module")
def shared_world(make_tiny: Callable[[], World]) -> World:
    """One world for a file of tests."""
    return make_tiny()


@pytest.fixture
def world(shared_world: World) -> World:
    """The file's world at the beginning of the episode with seed 0."""
    shared_world.reset(np.random.default_rng(0))
    return shared_world
