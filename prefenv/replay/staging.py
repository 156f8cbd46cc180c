"""Candidates on their way into a table: texts wait on disk, a few numbers for each row in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray

from prefenv.replay.values import MISSING, NOT_FINITE, UNREADABLE, Values, blank, numbers, texts
from prefenv.types import FloatArray, IntArray

STAGED = ("prompt_id", "prompt", "generator", "response")
SCHEMA = pa.schema([pa.field(name, pa.large_string()) for name in STAGED])
PROMPT_BYTES = 16  # of a prompt's key: two prompts of a million share one with a chance of 1e-27
RESPONSE_BYTES = 8  # of a response's key, which is compared within a prompt only
NO_PROMPT, NO_RESPONSE = "no prompt", "no response"
WHY = {MISSING: "no {}", UNREADABLE: "{} is no number", NOT_FINITE: "{} is NaN or infinite"}


@dataclass(frozen=True, eq=False)
class Candidates:
    """Some rows as an importer found them, n in number, good and broken.

    Attributes:
        file: they come from.
        row: (n,) place of each in it, from 1.
        prompt_id: n ids, or None for those that have none of their own.
        prompt: n texts.
        generator: n names.
        response: n texts.
        scores: column → n numbers, or texts of numbers.
    """

    file: str
    row: Sequence[int] | IntArray
    prompt_id: Values
    prompt: Values
    generator: Values
    response: Values
    scores: Mapping[str, Values] = field(default_factory=dict)


class Stage:
    """Takes candidates in any order, and gives any of them back.

    Args:
        path: of the file that texts wait in; gone when the block is left.
        required: score columns that a row must have, the main one first.

    Attributes:
        reasons: why a row is left out; the first, "", is for those that are not.

    Use it as a context: ``add`` all candidates, then ``close_input``, then read.
    """

    def __init__(self, path: Path, required: Sequence[str]) -> None:
        self._path, self.required = path, tuple(required)
        self.reasons = [""]
        self.n_rows = 0
        self._files: list[str] = []
        self._columns: list[str] = []
        self._parts: list[tuple[IntArray, ...]] = []
        self._scores: list[tuple[int, dict[str, FloatArray]]] = []

    def __enter__(self) -> Stage:
        self._sink = pa.OSFile(str(self._path), "wb")
        self._writer = pa.ipc.new_file(self._sink, SCHEMA)
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._close()
        finally:
            self._path.unlink(missing_ok=True)

    def _close(self) -> None:
        if not self._sink.closed:
            self._writer.close()
            self._sink.close()

    def code(self, reason: str) -> int:
        """The number of a reason."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        return self.reasons.index(reason)

    def add(self, found: Candidates) -> None:
        """Keep some rows, and note what is wrong with each by itself."""
        batch = pa.record_batch([texts(name, getattr(found, name)) for name in STAGED], schema=SCHEMA)
        why = np.zeros(batch.num_rows, dtype=np.int16)
        read = {name: numbers(name, values) for name, values in found.scores.items()}
        self._columns += [name for name in read if name not in self._columns]
        for name in reversed(self.required):
            status = read[name][1] if name in read else np.full(len(why), MISSING)
            for kind, text in WHY.items():
                why[status == kind] = self.code(text.format(name))
        why[blank(batch["response"])] = self.code(NO_RESPONSE)
        why[blank(batch["prompt"])] = self.code(NO_PROMPT)
        if not self._files or self._files[-1] != found.file:
            self._files.append(found.file)
        file = np.full(len(why), len(self._files) - 1, dtype=np.int32)
        prompt, response = _keys(batch["prompt"], PROMPT_BYTES), _keys(batch["response"], RESPONSE_BYTES)
        self._parts.append((why, file, np.asarray(found.row, dtype=np.int64), prompt, response[:, 0]))
        self._scores.append((len(why), {name: values for name, (values, _) in read.items()}))
        self._writer.write_batch(batch)
        self.n_rows += len(why)

    def close_input(self) -> None:
        """No more candidates come: what was noted of them becomes one array each.

        Attributes after it: ``why`` (R,) int16, ``prompt_key`` (R, 2) uint64, ``response_key`` (R,) uint64, ``scores``
        column → (R,) float64.
        """
        self._close()
        self.why, self._file, self._row, self.prompt_key, self.response_key = (
            np.concatenate(parts) for parts in zip(*self._parts, strict=True)
        )
        self._parts.clear()
        self.scores = {
            name: np.concatenate([part.get(name, np.full(size, np.nan)) for size, part in self._scores])
            for name in self._columns
        }
        self._scores.clear()
        reader = pa.ipc.open_file(pa.memory_map(str(self._path)))
        self._batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        self._start = np.cumsum([0, *(batch.num_rows for batch in self._batches)])

    def place(self, row: int) -> tuple[str, int]:
        """File and row in it."""
        return self._files[self._file[row]], int(self._row[row])

    def take(self, rows: IntArray, columns: Sequence[str] = STAGED) -> pa.Table:
        """These rows, in this order."""
        part = np.searchsorted(self._start, rows, side="right") - 1
        order = np.argsort(part, kind="stable")
        cuts = np.flatnonzero(np.diff(part[order])) + 1
        pieces = [
            self._batches[part[some[0]]].select(columns).take(pa.array(rows[some] - self._start[part[some[0]]]))
            for some in np.split(order, cuts)
            if len(some)
        ]
        back = np.empty(len(rows), dtype=np.int64)
        back[order] = np.arange(len(rows))
        schema = pa.schema([SCHEMA.field(name) for name in columns])
        return pa.Table.from_batches(pieces, schema=schema).combine_chunks().take(pa.array(back))


def hexadecimal(key: NDArray[np.uint64]) -> str:
    """A prompt's own id, made from its text: the key as 32 hexadecimal digits."""
    return key.tobytes().hex()


def _keys(values: pa.LargeStringArray, size: int) -> NDArray[np.uint64]:
    """(n, size / 8) uint64: of equal texts equal."""
    whole = b"".join(
        hashlib.blake2b(value or b"", digest_size=size).digest() for value in values.cast(pa.large_binary()).to_pylist()
    )
    return np.frombuffer(whole, dtype=np.uint64).reshape(len(values), size // 8)
