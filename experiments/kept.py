"""Numbers of finished cells, kept in a file that a command started again goes on from."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from prefenv.types import FloatArray

Cell = TypeVar("Cell")
Found = dict[str, FloatArray]
"""Name → (seeds,) or (seeds, rounds + 1) numbers."""


class Kept(Generic[Cell]):
    """The finished cells in a file: a line of settings, then a line each, flushed to disk one by one.

    Args:
        path: of the file.
        settings: all that the numbers depend on.
        cell: a frozen dataclass of strings, which names a cell.

    Attributes:
        found: cell → name → numbers.

    Raises:
        ValueError: the file is of other settings, or a line in its middle cannot be read.
    """

    def __init__(self, path: Path, settings: dict[str, Any], cell: type[Cell]) -> None:
        self.path = path
        self.found: dict[Cell, Found] = {}
        settings = json.loads(json.dumps(settings))  # as they are written
        lines = self._whole_lines()
        if not lines:
            self._append({"settings": settings})
            return
        try:
            before, *rest = map(json.loads, lines)
            self._require_same(before["settings"], settings)
            for line in rest:
                values = {name: np.array(numbers) for name, numbers in line.pop("found").items()}
                self.found[cell(**line)] = values
        except (json.JSONDecodeError, KeyError, TypeError):
            raise ValueError(f"{path} is no file of this command: name another --out") from None

    def _whole_lines(self) -> list[bytes]:
        """The lines that are there; a last one that a crash cut short is dropped."""
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        os.truncate(self.path, len(whole))
        return whole.splitlines()

    def _require_same(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        differing = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
        if differing:
            raise ValueError(f"{self.path} was made with other settings ({', '.join(differing)}): name another --out")

    def _append(self, line: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def add(self, cell: Cell, found: Found) -> None:
        """Keep a cell, on disk at once."""
        self._append(vars(cell) | {"found": {name: values.tolist() for name, values in found.items()}})
        self.found[cell] = found
