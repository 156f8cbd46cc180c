"""Reads what is imported: Parquet, Arrow, JSON lines, JSON and CSV, a batch of rows at a time.

Every error names the file, the row where there is one, and the way out. Nothing here knows what the columns mean.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet as pq

from prefenv.types import IntArray, unknown_name

BATCH_ROWS = 8192  # of a flat table
RECORD_ROWS = 512  # of records that are made into Python objects, each with all candidates of a prompt
CSV_BLOCK = 1 << 26  # bytes: the longest row of a CSV file that can be read
KINDS = (".parquet", ".arrow", ".jsonl", ".jsonl.gz", ".csv", ".json")  # in a folder the first kind there is counts
Data: TypeAlias = pa.Table | list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Batch:
    """Some rows of a source.

    Attributes:
        file: name of the file they are in.
        row: (n,) int64, the number of each in it, from 1: a line of JSON lines, a record (without the header) of a CSV.
        data: an Arrow table, or a list of dicts.
    """

    file: str
    row: IntArray
    data: Data

    def records(self) -> list[dict[str, Any]]:
        """The rows as dicts."""
        return self.data if isinstance(self.data, list) else self.data.to_pylist()

    def column(self, name: str) -> pa.ChunkedArray | list[Any]:
        """The values of a column; where a record has none, None."""
        if isinstance(self.data, list):
            return [record.get(name) for record in self.data]
        return self.data[name] if name in self.data.column_names else [None] * len(self.data)


@dataclass(frozen=True)
class Files:
    """A source on disk: a file, or all files of one kind in a folder and the folders in it, by name.

    Attributes:
        paths: of the files.

    Example:
        >>> Files.at("pools.txt")
        Traceback (most recent call last):
        ...
        FileNotFoundError: nothing at pools.txt: name a file, a folder, or hub:NAME
    """

    paths: tuple[Path, ...]

    @classmethod
    def at(cls, path: str | Path) -> Files:
        """The files at a path.

        Raises:
            FileNotFoundError: there is nothing.
            ValueError: what is there is of no kind that can be read.
        """
        path = Path(path)
        if path.is_dir():
            for kind in KINDS:
                found = sorted(inside for inside in path.rglob(f"*{kind}") if inside.is_file())
                if found:
                    return cls(tuple(found))
            raise ValueError(f"no file in {path} ends in {', '.join(KINDS)}")
        if not path.exists():
            raise FileNotFoundError(f"nothing at {path}: name a file, a folder, or hub:NAME")
        if not path.name.lower().endswith(KINDS):
            raise ValueError(f"{path} is of no kind that can be read: its name must end in {', '.join(KINDS)}")
        return cls((path,))

    def batches(self, columns: Sequence[str], optional: Sequence[str] = (), size: int = RECORD_ROWS) -> Iterator[Batch]:
        """The rows of all files in order, with these columns and those of the optional ones that there are.

        Raises:
            ValueError: a file is damaged, or has no such column.
        """
        for path in self.paths:
            read = READERS[next(kind for kind in KINDS if path.name.lower().endswith(kind))]
            first = 1
            try:
                for row, data in read(path, columns, optional, size):
                    numbers = np.asarray(row, dtype=np.int64) if row else np.arange(first, first + len(data))
                    first += len(data)
                    yield Batch(str(path), numbers, data)
            except (pa.ArrowInvalid, pa.ArrowTypeError, EOFError, gzip.BadGzipFile, UnicodeDecodeError) as error:
                raise _damaged(path, first, error) from None
            except OSError as error:
                if error.errno is not None:  # of the disk, not of what is in the file
                    raise
                raise _damaged(path, first, error) from None


def _damaged(path: Path, row: int, error: Exception) -> ValueError:
    where = f", after {row - 1} rows that could be read" if row > 1 else ""
    return ValueError(f"{path} is damaged, cut short, or of another kind than its name says{where}: {error}")


def pick(file: str, there: Iterable[str], columns: Sequence[str], optional: Sequence[str]) -> list[str]:
    """Those of the columns that are read.

    >>> pick("a.csv", ["prompt", "score"], ["prompt"], ["length"])
    ['prompt']

    Raises:
        ValueError: one that must be there is not.
    """
    names = list(there)
    for name in columns:
        if name not in names:
            raise unknown_name(f"column of {file}", name, names)
    return [*columns, *(name for name in optional if name in names and name not in columns)]


Rows: TypeAlias = Iterator[tuple[Sequence[int] | None, Data]]


def _parquet(path: Path, columns: Sequence[str], optional: Sequence[str], size: int) -> Rows:
    with pq.ParquetFile(path, memory_map=True) as file:
        names = pick(str(path), file.schema_arrow.names, columns, optional)
        for batch in file.iter_batches(batch_size=size, columns=names):
            yield None, pa.Table.from_batches([batch])


def _arrow(path: Path, columns: Sequence[str], optional: Sequence[str], size: int) -> Rows:
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
        names = pick(str(path), reader.schema.names, columns, optional)
        for batch in reader:
            for start in range(0, batch.num_rows, size):
                yield None, pa.Table.from_batches([batch.slice(start, size).select(names)])


def _csv(path: Path, columns: Sequence[str], optional: Sequence[str], size: int) -> Rows:
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = next(csv.reader(file), [])
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ValueError(f"{path} has two columns {', '.join(twice)}: rename one")
    names = pick(str(path), header, columns, optional)
    reader = pyarrow.csv.open_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(block_size=CSV_BLOCK, use_threads=False),  # so that errors know the row
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=names, column_types=dict.fromkeys(names, pa.large_string()), strings_can_be_null=False
        ),
    )
    with reader:
        for batch in reader:
            for start in range(0, batch.num_rows, size):
                yield None, pa.Table.from_batches([batch.slice(start, size)])


def _json_lines(path: Path, columns: Sequence[str], optional: Sequence[str], size: int) -> Rows:
    seen = False
    with _open(path) as file:
        numbers: list[int] = []
        records: list[dict[str, Any]] = []
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise ValueError(
                    f"{path}, line {number} is no JSON: {error}. Mend or delete the line; a last line that is cut "
                    "short means that the file is not complete"
                ) from None
            numbers.append(number)
            records.append(_record(f"{path}, line {number}", record))
            if len(records) == size:
                seen = seen or _require(path, records, columns)
                yield numbers, records
                numbers, records = [], []
        if records:
            _ = seen or _require(path, records, columns)
            yield numbers, records


def _json(path: Path, columns: Sequence[str], optional: Sequence[str], size: int) -> Rows:
    try:
        records = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON, or a part of it: {error}. JSON lines are to be named .jsonl") from None
    if not isinstance(records, list):
        raise ValueError(f"{path} holds a {type(records).__name__}, not a list of records")
    for start in range(0, len(records), size):
        part = [
            _record(f"{path}, item {start + at}", record) for at, record in enumerate(records[start : start + size], 1)
        ]
        if start == 0:
            _require(path, part, columns)
        yield None, part


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _record(where: str, record: object) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise ValueError(f"{where} is a {type(record).__name__}, not an object with named fields")
    return record


def _require(path: Path, records: list[dict[str, Any]], columns: Sequence[str]) -> bool:
    """Refuse a name that none of the first records has; that one of them lacks it is for the cleaning to count."""
    pick(str(path), dict.fromkeys(name for record in records for name in record), columns, ())
    return True


READERS = {
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".jsonl": _json_lines,
    ".jsonl.gz": _json_lines,
    ".csv": _csv,
    ".json": _json,
}
