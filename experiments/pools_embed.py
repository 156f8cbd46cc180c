"""``prefenv pools embed``: the features of a table, which the replay world reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import tyro
from numpy.typing import NDArray
from tqdm import tqdm

from prefenv.replay.settings import PACKAGED_EMBEDDER
from prefenv.types import FloatArray, whole_number

if TYPE_CHECKING:  # they need pyarrow, and the command line must not
    from prefenv.replay.features import EmbeddingSettings, FeatureWriter
    from prefenv.replay.table import PoolTable

Embed = Callable[[Sequence[str], Sequence[str], int], FloatArray]
"""Prompts and responses of k rows, and the number of the first → (k, d) vectors."""

MODEL_BLOCK = 256  # rows that a stopped command does again: 20 seconds of MiniLM on one core
VECTORS_BLOCK = 16_384  # the same where no model reads


@dataclass(frozen=True)
class PoolsEmbedConfig:
    """Embed the responses of a table and compute their surface features, for `prefenv compare --world replay`.

    Three files appear beside the table PATH.parquet: PATH.embedding.npy, PATH.surface.npy and PATH.features.json. A
    stopped command goes on where it was when it is started again.
    """

    pools: Annotated[Path, tyro.conf.Positional]
    """The table, as `prefenv pools import` writes it."""
    model: str = PACKAGED_EMBEDDER
    """all-minilm-l6-v2 (a package, needs no hub), a sentence-transformers or other encoder model, or a causal language
    model: a folder or a Hugging Face name."""
    text: Literal["response", "prompt-and-response"] = "response"
    """What the model reads. The vector is of the response's tokens in both cases."""
    max_tokens: int = 256
    """Longest text, in tokens: the rest is not read."""
    batch_size: int = 32
    """Texts side by side: less needs less memory."""
    vectors: Path | None = None
    """Array (.npy) with a row for each row of the table, to be taken instead of a model's."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto (the GPU if there is one), cpu, or cuda."""
    overwrite: bool = False
    """Embed anew where another embedding is."""


def embed_pools(config: PoolsEmbedConfig) -> int:
    """Write what is missing; 0.

    Raises:
        FileNotFoundError: no table, no model or no vectors there.
        ValueError: a number below 1, files that are no table or no vectors, or another embedding where this one goes.
        ImportError: the package is installed without its extra ``replay``, or without ``llm`` where a model reads.
        RuntimeError: another process is embedding the table.
    """
    try:
        from prefenv.replay.features import EmbeddingSettings, FeatureFiles, FeatureWriter
        from prefenv.replay.table import PoolTable
    except ModuleNotFoundError as error:
        raise ImportError(f"tables of pools need '{error.name}': pip install 'prefenv[replay]'") from error
    whole_number("max_tokens", config.max_tokens)
    whole_number("batch_size", config.batch_size)
    table = PoolTable.open(config.pools)
    if config.vectors is None:
        vectors, settings = None, EmbeddingSettings(config.model, config.text, config.max_tokens)
    else:
        vectors = _vectors(config.vectors, table)
        settings = EmbeddingSettings(f"{config.vectors.name} {_digest(config.vectors)}")
    if not config.overwrite and _is_there(table, settings):
        print(f"the embeddings of {table.path} are there already: {settings}")
        return 0
    embed, size = _model(config) if vectors is None else (_taker(vectors), vectors.shape[1])
    with FeatureWriter(table, settings, size, config.overwrite) as writer:
        _write(table, writer, embed, MODEL_BLOCK if vectors is None else VECTORS_BLOCK)
    files = FeatureFiles(table.path)
    print(f"{table.n_rows} rows by {settings}: {files.embedding}, {files.surface.name}, {files.about.name}")
    return 0


def _is_there(table: PoolTable, settings: EmbeddingSettings) -> bool:
    from prefenv.replay.features import FeatureFiles, Features

    files = FeatureFiles(table.path)
    if not files.about.exists():
        return False
    found = Features.open(table).settings
    if found != settings:
        raise ValueError(
            f"{table.path} is embedded by {found}, not by {settings}: to replace that, pass --overwrite; to keep both, "
            "embed a copy of the table"
        )
    return True


def _write(table: PoolTable, writer: FeatureWriter, embed: Embed, block: int) -> None:
    from prefenv.replay.features import text_blocks
    from prefenv.replay.surface import surface_features

    if writer.rows:
        print(f"{writer.rows} of {table.n_rows} rows are there already", flush=True)
    with tqdm(total=table.n_rows, initial=writer.rows, unit="row", dynamic_ncols=True) as bar:
        if writer.rows == table.n_rows:
            return
        for prompts, responses in text_blocks(table, writer.rows, block):
            embedding = embed(prompts, responses, writer.rows)
            writer.append(embedding, surface_features(prompts, responses))
            bar.update(len(responses))


def _model(config: PoolsEmbedConfig) -> tuple[Embed, int]:
    try:
        from prefenv.llm.embed import load_embedder
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"embedding needs '{error.name}': pip install 'prefenv[llm]', or pass --vectors FILE.npy", name=error.name
        ) from error
    embedder = load_embedder(config.model, config.text != "response", config.max_tokens, config.device)
    return lambda prompts, responses, _: embedder.embed(prompts, responses, config.batch_size), embedder.embedding_size


def _taker(vectors: NDArray) -> Embed:
    return lambda _, responses, first: np.asarray(vectors[first : first + len(responses)])


def _vectors(path: Path, table: PoolTable) -> NDArray:
    """(R, d) on disk.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no vectors at {path}: pass an array that numpy.save wrote")
    try:
        vectors = np.load(path, mmap_mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is no whole array that numpy.save wrote: {error}") from None
    if not isinstance(vectors, np.ndarray) or vectors.dtype.kind != "f":
        raise ValueError(f"{path} holds no array of floating-point numbers")
    if vectors.ndim != 2 or len(vectors) != table.n_rows or vectors.shape[1] < 1:
        raise ValueError(f"{path} holds {vectors.shape} numbers, but {table.path} needs ({table.n_rows}, d)")
    about = path.with_suffix(".json")  # as the import leaves it
    if about.is_file() and json.loads(about.read_text()).get("fingerprint", table.fingerprint) != table.fingerprint:
        raise ValueError(f"{path} belongs to another table than {table.path}, says {about}")
    return vectors


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
