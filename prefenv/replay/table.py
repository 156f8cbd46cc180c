"""The table of annotated candidates: a Parquet file with a row a candidate. Its format is docs/pools.md."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from prefenv.types import FloatArray, IntArray, unknown_name

TEXT_COLUMNS = ("prompt", "generator", "response")
REQUIRED = ("prompt_id", *TEXT_COLUMNS)
HASHED = ("prompt_id", "generator", "response")  # what embeddings belong to
GROUP_ROWS = 4096  # of a row group: what is read at once when texts are asked for
BATCH_ROWS = 65_536  # of a column that is hashed


@dataclass(frozen=True, eq=False)
class PoolTable:
    """Prompts with their candidates; numbers are in memory, texts are read when asked for.

    Attributes:
        path: of the Parquet file.
        prompt_id: (N,) the table's own ids, strings or integers, no two alike.
        start: (N + 1,) int64: the candidates of prompt i are rows start[i] … start[i + 1] - 1.
        generator: (R,) int32, place in ``generators``.
        generators: names, sorted.
        columns: names of the columns that are numbers.
        fingerprint: of ids, generators and responses, in order.
    """

    path: Path
    prompt_id: NDArray[Any]
    start: IntArray
    generator: IntArray
    generators: tuple[str, ...]
    columns: tuple[str, ...]
    fingerprint: str

    @property
    def n_prompts(self) -> int:
        """N."""
        return len(self.prompt_id)

    @property
    def n_rows(self) -> int:
        """R, candidates of all prompts."""
        return int(self.start[-1])

    @property
    def sizes(self) -> IntArray:
        """(N,) candidates of each prompt."""
        return np.diff(self.start)

    @classmethod
    def open(cls, path: str | Path) -> PoolTable:
        """Read the numbers of a table and check it.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no table of this format; the message says what is wrong and what makes it right.
        """
        path = Path(path)
        file = _parquet(path)
        names = file.schema_arrow.names
        missing = [name for name in REQUIRED if name not in names]
        if missing:
            raise ValueError(f"{path} has no column {', '.join(missing)}: `prefenv pools import` makes such a table")
        if file.metadata.num_rows == 0:
            raise ValueError(f"{path} has no rows")
        columns = tuple(field.name for field in file.schema_arrow if field.name != "prompt_id" and _is_number(field))
        ids = _dictionary(path, "prompt_id")
        prompt_id, start = _runs(path, ids)
        generators = _dictionary(path, "generator")
        names = [str(name) for name in generators.dictionary.to_pylist()]
        order = np.argsort(names)
        place = np.empty(len(names), dtype=np.int32)
        place[order] = np.arange(len(names))
        return cls(
            path=path,
            prompt_id=prompt_id,
            start=start,
            generator=place[np.asarray(generators.indices)],
            generators=tuple(names[index] for index in order),
            columns=columns,
            fingerprint=_fingerprint(path, file),
        )

    def column(self, name: str) -> FloatArray:
        """(R,) float32, as :meth:`numbers`."""
        return self.numbers(name).astype(np.float32)

    def numbers(self, name: str) -> FloatArray:
        """(R,) float64, the numbers of a column.

        Raises:
            ValueError: there is no such column of numbers, or some of them are missing or infinite.
        """
        if name in REQUIRED or name not in self.columns:
            if name in pq.read_schema(self.path).names:
                raise ValueError(f"column '{name}' of {self.path} holds no numbers: `prefenv pools import` reads them")
            raise unknown_name(f"score column of {self.path}", name, self.columns)
        numbers = _column(self.path, name).cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        wrong = int((~np.isfinite(numbers)).sum())
        if wrong:
            raise ValueError(
                f"column '{name}' of {self.path} has {wrong} missing or infinite numbers in {len(numbers)} rows: "
                f"import the pools again with `--require {name}`, which leaves such rows out, or take another column"
            )
        return np.asarray(numbers)

    def texts(self, rows: Sequence[int] | IntArray) -> list[tuple[str, str]]:
        """Prompt and response of each of these rows."""
        return [
            (prompt, response)
            for prompt, response in zip(self._texts_of("prompt", rows), self._texts_of("response", rows), strict=True)
        ]

    def batches(self, columns: Sequence[str], size: int = GROUP_ROWS) -> Iterator[dict[str, list[Any]]]:
        """The whole table in order, column by column, ``size`` rows at a time."""
        for batch in self._file.iter_batches(batch_size=size, columns=list(columns)):
            yield batch.to_pydict()

    @cached_property
    def _file(self) -> pq.ParquetFile:
        return _parquet(self.path)

    @cached_property
    def _group_start(self) -> IntArray:
        metadata = self._file.metadata
        sizes = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        return np.concatenate([[0], np.cumsum(sizes)])

    def _texts_of(self, column: str, rows: Sequence[int] | IntArray) -> list[str]:
        rows = np.asarray(rows, dtype=np.int64)
        group = np.searchsorted(self._group_start, rows, side="right") - 1
        found: list[str] = [""] * len(rows)
        for index in np.unique(group):
            values = self._file.read_row_group(int(index), columns=[column])[column]
            for place in np.flatnonzero(group == index):
                found[place] = values[int(rows[place] - self._group_start[index])].as_py()
        return found


class TableWriter:
    """Writes a table prompt by prompt; what is there under its path is replaced when it is closed, and not before.

    Args:
        path: of the Parquet file.
        columns: names of the columns of numbers.

    Attributes:
        fingerprint: of the table, once it is closed.

    Use it as a context: when the block is left by an error, nothing is written.
    """

    def __init__(self, path: str | Path, columns: Sequence[str]) -> None:
        self.path, self.columns = Path(path), tuple(columns)
        fields = [pa.field("prompt_id", pa.string()), *(pa.field(name, pa.large_string()) for name in TEXT_COLUMNS)]
        self._schema = pa.schema([*fields, *(pa.field(name, pa.float64()) for name in self.columns)])
        self._hash, self._waiting = _Hash(), _empty(self._schema)
        self._part = self.path.with_name(f".{self.path.name}.part")

    def __enter__(self) -> TableWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        repeated = ["prompt_id", "prompt", "generator"]
        self._writer = pq.ParquetWriter(self._part, self._schema, compression="zstd", use_dictionary=repeated)
        return self

    def add(self, prompt_id: str, prompt: str, candidates: Sequence[dict[str, Any]]) -> None:
        """The candidates of one prompt, each a dict with ``generator``, ``response`` and the columns of numbers."""
        for candidate in candidates:
            self._waiting["prompt_id"].append(str(prompt_id))
            self._waiting["prompt"].append(prompt)
            for name in ("generator", "response", *self.columns):
                self._waiting[name].append(candidate[name])
        if len(self._waiting["prompt_id"]) >= GROUP_ROWS:
            self._flush()

    def write(self, rows: pa.Table) -> None:
        """Rows with the columns of the table, in its order; those of a prompt follow each other."""
        self._flush()
        self._write(rows.select(self._schema.names).cast(self._schema))

    def _flush(self) -> None:
        self._write(pa.table(self._waiting, schema=self._schema))
        self._waiting = _empty(self._schema)

    def _write(self, table: pa.Table) -> None:
        if table.num_rows:
            self._hash.update(table)
            self._writer.write_table(table, row_group_size=GROUP_ROWS)

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        try:
            if kind is None:
                self._flush()
                self.fingerprint = self._hash.hexdigest()
            self._writer.close()
            if kind is None:
                self._part.replace(self.path)
        finally:
            self._part.unlink(missing_ok=True)


class _Hash:
    """Of the columns that embeddings belong to; how many rows come at a time makes no difference."""

    def __init__(self) -> None:
        self._parts = {name: (hashlib.blake2b(), hashlib.blake2b()) for name in HASHED}

    def update(self, table: pa.Table) -> None:
        for name, (contents, lengths) in self._parts.items():
            values = pc.cast(table[name], pa.large_string()).combine_chunks()
            values = values.chunk(0) if isinstance(values, pa.ChunkedArray) else values
            values = pc.fill_null(values, "")
            offsets = np.frombuffer(values.buffers()[1], dtype=np.int64)[
                values.offset : values.offset + len(values) + 1
            ]
            data = values.buffers()[2]
            if data is not None:
                contents.update(memoryview(data)[int(offsets[0]) : int(offsets[-1])])
            lengths.update(np.diff(offsets).tobytes())

    def hexdigest(self) -> str:
        whole = hashlib.blake2b(digest_size=16)
        for contents, lengths in self._parts.values():
            whole.update(contents.digest() + lengths.digest())
        return whole.hexdigest()


def _parquet(path: Path) -> pq.ParquetFile:
    if not path.is_file():
        raise FileNotFoundError(f"no table at {path}: `prefenv pools import` makes one")
    try:
        return pq.ParquetFile(path, memory_map=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is no Parquet file that can be read, or a part of one: {error}") from None


def _is_number(field: pa.Field) -> bool:
    return bool(pa.types.is_integer(field.type) or pa.types.is_floating(field.type) or pa.types.is_boolean(field.type))


def _column(path: Path, name: str) -> pa.ChunkedArray:
    try:
        return pq.read_table(path, columns=[name], memory_map=True)[name]
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is damaged in column '{name}': {error}") from None


def _dictionary(path: Path, name: str) -> pa.DictionaryArray:
    column = _column(path, name)
    if column.null_count:
        raise ValueError(f"{path} has {column.null_count} rows without {name}: `prefenv pools import` leaves them out")
    whole = column.combine_chunks().dictionary_encode()
    return whole.combine_chunks() if isinstance(whole, pa.ChunkedArray) else whole


def _runs(path: Path, ids: pa.DictionaryArray) -> tuple[NDArray[Any], IntArray]:
    """Id and first row of each prompt."""
    code = np.asarray(ids.indices)
    begins = np.flatnonzero(np.concatenate([[True], code[1:] != code[:-1]]))
    start = np.append(begins, len(code)).astype(np.int64)
    if len(begins) != len(ids.dictionary):
        raise ValueError(
            f"{path}: the candidates of a prompt stand apart, {len(begins)} runs of rows for {len(ids.dictionary)} "
            "prompts: `prefenv pools import` brings them together"
        )
    alone = int((np.diff(start) < 2).sum())
    if alone:
        raise ValueError(f"{path}: {alone} prompts have one candidate: `prefenv pools import` leaves them out")
    values = np.array(ids.dictionary.to_pylist(), dtype=object)
    return values[code[begins]], start


def _fingerprint(path: Path, file: pq.ParquetFile) -> str:
    """Of what is in the file: one kept in its metadata would stay there when rows are moved or taken out."""
    whole = _Hash()
    try:
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=list(HASHED)):
            whole.update(pa.Table.from_batches([batch]))
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    return whole.hexdigest()


def _empty(schema: pa.Schema) -> dict[str, list[Any]]:
    return {name: [] for name in schema.names}
