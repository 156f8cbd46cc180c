"""What lies beside a table of candidates: an embedding and surface features of every response."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from prefenv.replay.surface import SURFACE
from prefenv.replay.table import PoolTable
from prefenv.types import FloatArray

VERSION = 1  # of the files; goes up when a surface feature is counted otherwise
DTYPES = (np.float16, np.float32)  # of the embedding and the surface features


@dataclass(frozen=True)
class EmbeddingSettings:
    """What embeddings come from: equal settings, equal embeddings.

    Attributes:
        model: name or folder of the model, or the name and hash of a file of vectors.
        text: what the model reads, ``response`` or ``prompt-and-response``; None for vectors.
        max_tokens: longest text it reads; None for vectors.
    """

    model: str
    text: str | None = None
    max_tokens: int | None = None

    def __str__(self) -> str:
        reads = f", {self.text.replace('-', ' ')} up to {self.max_tokens} tokens" if self.text else ""
        return f"{self.model}{reads}"


@dataclass(frozen=True)
class FeatureFiles:
    """Where the features of a table are, and where they are while they are being made.

    >>> FeatureFiles(Path("data/pools.parquet")).embedding.as_posix()
    'data/pools.embedding.npy'
    """

    table: Path

    @property
    def embedding(self) -> Path:
        """(R, d) float16."""
        return self._named("{}.embedding.npy")

    @property
    def surface(self) -> Path:
        """(R, F) float32."""
        return self._named("{}.surface.npy")

    @property
    def about(self) -> Path:
        """What they belong to and come from; written last."""
        return self._named("{}.features.json")

    @property
    def progress(self) -> Path:
        """Like ``about``, with the number of rows that are done."""
        return self._named(".{}.features.json.part")

    @property
    def lock(self) -> Path:
        """Held by the process that writes."""
        return self._named(".{}.features.lock")

    @property
    def parts(self) -> dict[Path, Path]:
        """Unfinished → finished array."""
        return {path.with_name(f".{path.name}.part"): path for path in (self.embedding, self.surface)}

    @property
    def command(self) -> str:
        """That makes them."""
        return f"prefenv pools embed {self.table}"

    def _named(self, pattern: str) -> Path:
        return self.table.with_name(pattern.format(self.table.stem))


@dataclass(frozen=True, eq=False)
class Features:
    """Embeddings and surface features of a table, row by row; the numbers stay on disk until they are asked for.

    Attributes:
        embedding: (R, d) float16, memory-mapped.
        surface: (R, F) float32, memory-mapped; the columns are those of ``SURFACE``.
        settings: what the embeddings come from.
    """

    embedding: NDArray[np.float16]
    surface: NDArray[np.float32]
    settings: EmbeddingSettings

    @classmethod
    def open(cls, table: PoolTable) -> Features:
        """The features beside a table.

        Raises:
            FileNotFoundError: there are none, or they are unfinished.
            ValueError: they are another table's, of another version, or damaged; the message says what makes it right.
        """
        files = FeatureFiles(table.path)
        if not files.about.is_file():
            what = (
                f"embedding {table.path} is unfinished"
                if files.progress.is_file()
                else f"{table.path} has no embeddings"
            )
            raise FileNotFoundError(f"{what}: run `{files.command}`")
        again = f"run `{files.command} --overwrite`"
        about = _read_json(files.about)
        if about.get("version") != VERSION or about.get("surface") != list(SURFACE):
            raise ValueError(f"{files.about} is damaged, or was written by another version of prefenv: {again}")
        if about.get("fingerprint") != table.fingerprint or about.get("rows") != table.n_rows:
            raise ValueError(
                f"the embeddings beside {table.path} belong to another table, of {about.get('rows')} rows "
                f"(this one has {table.n_rows}): put that one back, or {again}"
            )
        shape = (table.n_rows, about.get("d"))
        embedding = _mapped(files.embedding, shape, np.float16, again)
        return cls(
            embedding=embedding,
            surface=_mapped(files.surface, (table.n_rows, len(SURFACE)), np.float32, again),
            settings=EmbeddingSettings(str(about.get("model")), about.get("text"), about.get("max_tokens")),
        )


def _read_json(path: Path) -> dict[str, Any]:
    """What a file holds; nothing where it cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """All of it or nothing, and on the disk."""
    new = path.with_name(f".{path.name}.new")
    with new.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def _mapped(path: Path, shape: tuple[Any, ...], dtype: type, again: str, mode: Literal["r", "r+"] = "r") -> np.memmap:
    """An array on disk, once its header and its size have been found right; its numbers are not read."""
    try:
        array = np.lib.format.open_memmap(path, mode=mode)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: {again}") from None
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}): {again}") from None
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(
            f"{path} holds {array.shape} {array.dtype}, but should hold {shape} {np.dtype(dtype).name}: {again}"
        )
    if path.stat().st_size != array.offset + array.nbytes:
        raise ValueError(f"{path} is damaged (it is longer than its numbers): {again}")
    return array


class FeatureWriter:
    """Writes the features of a table, block by block; stopped at any moment, it goes on after the last whole block.

    The files get their names when all rows are there, and not before. Use it as a context: it holds the files for this
    process, and another one that wants to write them is refused.

    Args:
        table: whose features they are.
        settings: what the embeddings come from.
        embedding_size: d.
        overwrite: an unfinished part that comes from other settings is thrown away; else it is an error.

    Attributes:
        rows: that are done.

    Raises:
        ValueError: an unfinished part comes from other settings.
        RuntimeError: another process is writing.
        OSError: the disk is too full.
    """

    def __init__(
        self, table: PoolTable, settings: EmbeddingSettings, embedding_size: int, overwrite: bool = False
    ) -> None:
        self._files = FeatureFiles(table.path)
        self._lock = FileLock(self._files.lock)
        self._overwrite, self._table = overwrite, table
        self._arrays: tuple[np.memmap, ...] = ()
        self._shapes = ((table.n_rows, embedding_size), (table.n_rows, len(SURFACE)))
        self._about = {
            "version": VERSION, "fingerprint": table.fingerprint, "rows": table.n_rows, "d": embedding_size,
            "dtype": "float16", **asdict(settings), "surface": list(SURFACE),
        }  # fmt: skip
        self.rows = 0

    def __enter__(self) -> FeatureWriter:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RuntimeError(f"another process is embedding {self._table.path}: wait for it") from None
        try:
            self._begin()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        self._arrays = ()
        self._lock.release()

    def append(self, embedding: FloatArray, surface: FloatArray) -> None:
        """The next k rows, on the disk when it returns; with the last of them the files get their names.

        Args:
            embedding: (k, d).
            surface: (k, F).

        Raises:
            ValueError: a number that is not finite, or too large for float16, or arrays of another shape.
        """
        end = self.rows + len(surface)
        blocks = [
            self._checked(block, array[self.rows : end])
            for array, block in zip(self._arrays, (embedding, surface), strict=True)
        ]
        for array, block in zip(self._arrays, blocks, strict=True):
            array[self.rows : end] = block
            array.flush()
        self.rows = end
        _write_json(self._files.progress, self._about | {"rows_done": self.rows})
        if self.rows == self._table.n_rows:
            self._finish()

    def _checked(self, block: FloatArray, place: NDArray[Any]) -> NDArray[Any]:
        """The block in the type of its place."""
        if block.shape != place.shape:
            raise ValueError(f"a block of {block.shape} numbers cannot fill {place.shape} from row {self.rows} on")
        with np.errstate(over="ignore"):
            cast = block.astype(place.dtype)
        wrong = np.flatnonzero(~np.isfinite(cast).all(axis=1))
        if len(wrong):
            raise ValueError(
                f"row {self.rows + wrong[0]} of {self._table.path} and {len(wrong) - 1} more of its block have numbers "
                f"that are not finite in {place.dtype}, from {self._about['model']}"
            )
        return cast

    def _begin(self) -> None:
        """Go on with the unfinished part, if there is one."""
        kept = _read_json(self._files.progress)
        rows = kept.pop("rows_done", 0)
        same = kept == self._about
        if kept and not same and not self._overwrite:
            raise ValueError(
                f"an embedding of {self._table.path} by {kept.get('model')} is unfinished ({rows} of "
                f"{kept.get('rows')} rows): go on with it, or begin anew with `{self._files.command} --overwrite`"
            )
        complete = rows == self._table.n_rows
        if same and complete and not self._files.about.exists():
            self._finish()  # it was stopped while the files got their names
        elif same and self._open_parts():
            self.rows = rows
            if complete:
                self._finish()
        else:
            self._create_parts()

    def _open_parts(self) -> bool:
        try:
            self._arrays = tuple(
                _mapped(part, shape, dtype, "", mode="r+")
                for part, shape, dtype in zip(self._files.parts, self._shapes, DTYPES, strict=True)
            )
        except ValueError:  # lost: all is done anew
            return False
        return True

    def _create_parts(self) -> None:
        self._files.progress.unlink(missing_ok=True)
        for part in self._files.parts:
            part.unlink(missing_ok=True)
        (rows, size), (_, n_surface) = self._shapes
        needed = rows * (2 * size + 4 * n_surface)
        free = shutil.disk_usage(self._table.path.parent).free
        if free < needed:  # a memory map that outgrows the disk kills the process without a word
            raise OSError(f"features of {self._table.path} take {needed:.1e} bytes, but {free:.1e} are free beside it")
        self._arrays = tuple(
            np.lib.format.open_memmap(part, mode="w+", dtype=dtype, shape=shape)
            for part, shape, dtype in zip(self._files.parts, self._shapes, DTYPES, strict=True)
        )
        _write_json(self._files.progress, self._about | {"rows_done": 0})

    def _finish(self) -> None:
        """Name the files; whenever this is stopped, the same command goes on with it."""
        self._arrays = ()
        self.rows = self._table.n_rows
        self._files.about.unlink(missing_ok=True)  # what it says is of the arrays that are replaced now
        for part, whole in self._files.parts.items():
            if part.exists():
                part.replace(whole)
        _write_json(self._files.about, self._about)
        self._files.progress.unlink(missing_ok=True)
        Features.open(self._table)


def text_blocks(table: PoolTable, first: int, size: int) -> Iterator[tuple[list[str], list[str]]]:
    """Prompts and responses from row ``first`` on, cut where a reader from row 0 would find them cut."""
    read = 0
    for batch in table.batches(["prompt", "response"], size):
        skip = max(first - read, 0)
        read += len(batch["prompt"])
        if read > first:
            prompts, responses = ([text or "" for text in batch[name][skip:]] for name in ("prompt", "response"))
            yield prompts, responses
