"""Candidates from any source become one clean table: broken rows are counted, listed and left out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from prefenv.replay.staging import Candidates, Stage, hexadecimal
from prefenv.replay.table import REQUIRED, TableWriter
from prefenv.replay.values import blank
from prefenv.types import BoolArray, FloatArray, IntArray, unknown_name

WRITE_ROWS = 32_768  # at a time
DUPLICATE, OTHER_PROMPT, ALONE = "duplicate", "prompt_id of another prompt", "no other candidate of the prompt"
UNKNOWN = "unknown"  # generator of a row that names none


@dataclass(frozen=True)
class Column:
    """What a column of numbers holds, over the rows that were kept."""

    name: str
    missing: int
    smallest: float
    mean: float
    largest: float


@dataclass(frozen=True)
class Summary:
    """What came of an import.

    Attributes:
        path: of the table.
        left_out_path: of the list of rows left out.
        vectors_path: of the vectors, where there were any.
        rows: candidates read.
        prompts: different ones among them.
        kept_rows: candidates written.
        kept_prompts: prompts written.
        sizes: fewest and most candidates of a prompt.
        generators: how many.
        columns: of numbers, the main one first.
        empty: columns without a number, which are not written.
        left_out: reason → rows.
    """

    path: Path
    left_out_path: Path
    vectors_path: Path | None
    rows: int
    prompts: int
    kept_rows: int
    kept_prompts: int
    sizes: tuple[int, int]
    generators: int
    columns: tuple[Column, ...]
    empty: tuple[str, ...]
    left_out: dict[str, int]

    def __str__(self) -> str:
        """A few lines for people."""
        low, high = self.sizes
        lines = [
            f"read:      {self.rows:,} candidates of {self.prompts:,} prompts",
            f"left out:  {_counts(self.left_out)}",
            f"kept:      {self.kept_rows:,} candidates of {self.kept_prompts:,} prompts, {low} to {high} of each, "
            f"from {self.generators:,} generators",
        ]
        for column in self.columns:
            held = f"{column.smallest:.4g} to {column.largest:.4g}, mean {column.mean:.4g}"
            without = f"; {column.missing:,} candidates without" if column.missing else ""
            lines.append(f"column:    {column.name}, {held}{without}")
        if self.empty:
            lines.append(f"no column: {', '.join(self.empty)}, for which there is no number")
        lines += [f"table:     {self.path}", f"list:      {self.left_out_path}"]
        return "\n".join([*lines, *([f"vectors:   {self.vectors_path}"] if self.vectors_path else [])])


def write_pools(
    found: Iterable[Candidates],
    path: str | Path,
    main: str,
    require: Sequence[str] = (),
    vectors: str | Path | None = None,
) -> Summary:
    """Clean candidates and write their table, with the list of what was left out beside it.

    Rows may come in any order. Prompts of the same text are one prompt, under the id that came first. A row is left out
    when its prompt or response is empty, when it lacks a finite number in a required column, when its prompt_id
    belongs to another prompt, when prompt and response are those of an earlier row, and when it is the only one left of
    its prompt. Nothing is written under ``path`` until all is done.

    Args:
        found: the candidates.
        path: of the table, a name that ends in .parquet.
        main: score column that every row must have.
        require: further such columns.
        vectors: a .npy file of one row for each candidate in ``found``, in order; the rows of those kept are written
            as ``STEM.vectors.npy``, in the table's order.

    Raises:
        ValueError: a path or a column name that cannot be, or nothing is left.
    """
    path = Path(path)
    if path.suffix != ".parquet" or path.is_dir():
        raise ValueError(f"'{path}' cannot be the table: name a file that ends in .parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    with Stage(_hidden(path, ".stage"), list(dict.fromkeys([main, *require]))) as stage:
        with tqdm(desc="read", unit=" candidates", unit_scale=True, dynamic_ncols=True) as bar:
            for some in found:
                stage.add(some)
                bar.update(len(some.row))
        if stage.n_rows == 0:
            raise ValueError("the source has no rows, so that there is no table to write")
        stage.close_input()
        _check_columns(stage)
        clean = _clean(stage)
        if not len(clean.rows):
            counts = _counts(_left_out(stage))
            raise ValueError(f"nothing is left of {stage.n_rows:,} candidates, so that no table is written: {counts}")
        return _write(stage, clean, path, None if vectors is None else Path(vectors))


@dataclass(frozen=True, eq=False)
class _Clean:
    """What is kept: ``rows`` (K,) of the stage in the table's order, ``prompt`` (K,) of each, ``ids`` of prompts."""

    rows: IntArray
    prompt: IntArray
    ids: list[str]
    n_prompts_read: int


def _clean(stage: Stage) -> _Clean:
    """Find what stands against rows that are whole by themselves; notes it in ``stage.why``."""
    rows = np.flatnonzero(stage.why == 0)
    prompt, first = _numbered(stage.prompt_key[rows])
    ids, clash = _ids(stage, rows[first])
    stage.why[rows[clash[prompt]]] = stage.code(OTHER_PROMPT)
    fine = ~clash[prompt]
    rows, prompt = rows[fine], prompt[fine]
    order = np.lexsort((stage.response_key[rows], prompt))
    key = stage.response_key[rows][order]
    again = np.zeros(len(rows), dtype=bool)
    again[order[1:]] = (key[1:] == key[:-1]) & (np.diff(prompt[order]) == 0)
    stage.why[rows[again]] = stage.code(DUPLICATE)
    rows, prompt = rows[~again], prompt[~again]
    alone = np.bincount(prompt, minlength=len(ids))[prompt] < 2 if len(rows) else np.zeros(0, dtype=bool)
    stage.why[rows[alone]] = stage.code(ALONE)
    rows, prompt = rows[~alone], prompt[~alone]
    order = np.argsort(prompt, kind="stable")
    every, _ = _numbered(stage.prompt_key)
    return _Clean(rows[order], prompt[order], ids, int(every.max()) + 1)


def _numbered(keys: np.ndarray) -> tuple[IntArray, IntArray]:
    """Number of each row's prompt, by first appearance, and the row at which each appears first."""
    if not len(keys):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: of equal keys the earlier row comes first
    new = np.concatenate([[True], (np.diff(keys[order].view(np.int64), axis=0) != 0).any(axis=1)])
    first = order[new]
    number = np.empty(len(first), dtype=np.int64)
    number[np.argsort(first)] = np.arange(len(first))
    prompt = np.empty(len(keys), dtype=np.int64)
    prompt[order] = number[np.cumsum(new) - 1]
    return prompt, np.sort(first)


def _ids(stage: Stage, first: IntArray) -> tuple[list[str], BoolArray]:
    """Id of each prompt, its own or one made from its text, and whether an earlier prompt has the same."""
    given = stage.take(first, ["prompt_id"])["prompt_id"].combine_chunks() if len(first) else pa.array([], pa.string())
    none = blank(given) if len(first) else np.zeros(0, dtype=bool)
    ids = [
        hexadecimal(stage.prompt_key[row]) if without else name
        for row, name, without in zip(first, given.to_pylist(), none, strict=True)
    ]
    seen: set[str] = set()
    clash = np.zeros(len(ids), dtype=bool)
    for number, name in enumerate(ids):
        clash[number] = name in seen
        seen.add(name)
    return ids, clash


def _check_columns(stage: Stage) -> None:
    for name in stage.required:
        if name not in stage.scores:
            raise unknown_name("score column", name, stage.scores)
    for name in stage.scores:
        if name in REQUIRED:
            raise ValueError(f"'{name}' is no name for a score: that column of the table is {', '.join(REQUIRED)}'s")


def _write(stage: Stage, clean: _Clean, path: Path, vectors: Path | None) -> Summary:
    scores = {name: stage.scores[name][clean.rows] for name in _main_first(stage)}
    empty = tuple(name for name, values in scores.items() if not np.isfinite(values).any())
    scores = {name: values for name, values in scores.items() if name not in empty}
    left_out, beside = path.with_suffix(".left_out.jsonl"), path.with_suffix(".vectors.npy")
    parts = {_hidden(left_out): left_out} | ({_hidden(beside): beside} if vectors else {})
    with ExitStack() as after:
        for part in parts:
            after.callback(part.unlink, missing_ok=True)
        _list_left_out(stage, _hidden(left_out))
        if vectors is not None:
            _copy_vectors(vectors, stage.n_rows, clean.rows, _hidden(beside))
        with TableWriter(path, list(scores)) as writer:
            generators = _write_rows(writer, stage, clean, scores)
        for part, whole in parts.items():
            part.replace(whole)
    if vectors is not None:
        note = {"fingerprint": writer.fingerprint, "rows": len(clean.rows)}
        beside.with_suffix(".json").write_text(json.dumps(note) + "\n", encoding="utf-8")
    sizes = np.bincount(clean.prompt)
    sizes = sizes[sizes > 0]
    return Summary(
        path=path,
        left_out_path=left_out,
        vectors_path=beside if vectors else None,
        rows=stage.n_rows,
        prompts=clean.n_prompts_read,
        kept_rows=len(clean.rows),
        kept_prompts=len(sizes),
        sizes=(int(sizes.min()), int(sizes.max())),
        generators=generators,
        columns=tuple(_column(name, values) for name, values in scores.items()),
        empty=empty,
        left_out=_left_out(stage),
    )


def _main_first(stage: Stage) -> list[str]:
    return [stage.required[0], *(name for name in stage.scores if name != stage.required[0])]


def _write_rows(writer: TableWriter, stage: Stage, clean: _Clean, scores: dict[str, FloatArray]) -> int:
    """Write the rows that are kept; how many generators there are."""
    ids, generators = pa.array(clean.ids, pa.string()), set()
    with tqdm(desc="write", total=len(clean.rows), unit=" candidates", unit_scale=True, dynamic_ncols=True) as bar:
        for start in range(0, len(clean.rows), WRITE_ROWS):
            some = slice(start, start + WRITE_ROWS)
            table = stage.take(clean.rows[some])
            names = table["generator"].combine_chunks()
            names = pc.if_else(pa.array(blank(names)), UNKNOWN, names).cast(pa.large_string())
            generators.update(names.unique().to_pylist())
            table = table.set_column(0, "prompt_id", ids.take(pa.array(clean.prompt[some])))
            table = table.set_column(2, "generator", names)
            for name, values in scores.items():
                table = table.append_column(name, pa.array(values[some]))
            writer.write(table)
            bar.update(len(table))
    return len(generators)


def _list_left_out(stage: Stage, path: Path) -> None:
    rows = np.flatnonzero(stage.why)
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, len(rows), WRITE_ROWS):
            some = rows[start : start + WRITE_ROWS]
            texts = stage.take(some, ["prompt_id", "generator", "prompt"])
            nameless = blank(texts["prompt_id"].combine_chunks())
            silent = blank(texts["prompt"].combine_chunks())
            columns = (some, texts["prompt_id"].to_pylist(), texts["generator"].to_pylist(), nameless, silent)
            for row, name, generator, without, empty in zip(*columns, strict=True):
                made = None if empty else hexadecimal(stage.prompt_key[row])
                source, number = stage.place(row)
                line = {
                    "prompt_id": made if without else name,
                    "generator": generator,
                    "reason": stage.reasons[stage.why[row]],
                    "file": source,
                    "row": number,
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _copy_vectors(source: Path, n_rows: int, rows: IntArray, path: Path) -> None:
    """Write these rows of a .npy file, a few at a time.

    Raises:
        ValueError: it is no such file, has another number of rows, or holds something that is not finite.
    """
    try:
        every = np.load(source, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise ValueError(f"{source} is no .npy file of numbers that can be read: {error}") from None
    if not isinstance(every, np.ndarray) or every.ndim != 2 or every.dtype.kind != "f":
        raise ValueError(
            f"{source} must be a .npy file of floats with a row for each candidate and a column a dimension"
        )
    if len(every) != n_rows:
        raise ValueError(
            f"{source} has {len(every):,} rows, but the source has {n_rows:,}: it needs one for each, in order"
        )
    kept = np.lib.format.open_memmap(path, "w+", every.dtype, (len(rows), every.shape[1]))
    for start in range(0, len(rows), WRITE_ROWS):
        some = rows[start : start + WRITE_ROWS]
        values = every[some]
        wrong = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(wrong):
            raise ValueError(f"{source} holds NaN or infinity in row {some[wrong[0]] + 1:,}: take that row out of both")
        kept[start : start + WRITE_ROWS] = values
    kept.flush()


def _column(name: str, values: FloatArray) -> Column:
    there = values[np.isfinite(values)]
    return Column(name, len(values) - len(there), float(there.min()), float(there.mean()), float(there.max()))


def _left_out(stage: Stage) -> dict[str, int]:
    """Rows for each reason, the commonest first."""
    counts = Counter(
        {stage.reasons[code]: int(rows) for code, rows in enumerate(np.bincount(stage.why)) if code and rows}
    )
    return dict(counts.most_common())


def _counts(left_out: dict[str, int]) -> str:
    if not left_out:
        return "nothing"
    reasons = ", ".join(f"{rows:,} {reason}" for reason, rows in left_out.items())
    return f"{sum(left_out.values()):,} ({reasons})"


def _hidden(path: Path, ending: str = ".part") -> Path:
    return path.with_name(f".{path.name}{ending}")
