"""A results file: one JSON line for the settings of each world, one for each finished or failed run.

Lines are appended and flushed to disk one by one, so a crash loses at most the run in hand. A line that a crash cut
short is dropped when the file is opened again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from agents.learned import TRAINING_SEEDS

VERSION = 1


@dataclass(frozen=True)
class Run:
    """One agent in one world with one seed.

    Attributes:
        world: key.
        agent: key.
        seed: of world and agent.
        status: "finished" or "failed".
        spent: labels spent at each point of the curves, the first is 0.
        curves: name → one number for each point.
        seconds_choosing: the agent's own time, in all.
        seconds: of the whole run.
        labels: preferences received.
        weights: digest of a learned agent's weights.
        error: of a failed run.
    """

    world: str
    agent: str
    seed: int
    status: Literal["finished", "failed"]
    spent: list[int]
    curves: dict[str, list[float]]
    seconds_choosing: float = 0.0
    seconds: float = 0.0
    labels: int = 0
    weights: str | None = None
    error: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for a run that no comparison can have written."""
        points = {len(self.spent), *(len(curve) for curve in self.curves.values())}
        complete = "win_rate" in self.curves and len(points) == 1 and len(self.spent) > 1
        if self.status not in ("finished", "failed") or (self.status == "finished" and not complete):
            raise ValueError(f"not a run: {self}")

    @property
    def cell(self) -> tuple[str, str, int]:
        """What may be in a comparison only once."""
        return self.world, self.agent, self.seed


def require_compared_seeds(first_seed: int, seeds: int) -> None:
    """Check that seeds first_seed, first_seed + 1, ... are for comparing.

    Raises:
        ValueError: some are below 0, or belong to training.
    """
    if not 0 <= first_seed <= TRAINING_SEEDS - seeds:
        raise ValueError(f"first_seed={first_seed}: seeds must lie in 0 ... {TRAINING_SEEDS - 1}, larger ones belong "
                         "to training")  # fmt: skip


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Holds a folder for this process; released however the process ends.

    Raises:
        RuntimeError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise RuntimeError(f"another comparison is writing to {folder}: wait for it, or name another --out") from None


class Results:
    """The runs in ``folder/results.jsonl``.

    Raises:
        ValueError: the file is of another version, or a line in its middle cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "results.jsonl"
        self.runs: dict[tuple[str, str, int], Run] = {}
        self._settings: dict[str, dict[str, Any]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            os.truncate(self.path, len(whole))
        for number, line in enumerate(whole.splitlines(), start=1):
            self._read_line(f"{self.path}, line {number}", line)

    def _read_line(self, where: str, line: bytes) -> None:
        unreadable = ValueError(f"{where}: not a line of results; mend or remove it, or name another --out")
        try:
            entry = json.loads(line)
            version, kind = entry.pop("version"), entry.pop("kind")
        except (ValueError, KeyError, AttributeError, TypeError):
            raise unreadable from None
        if version != VERSION:
            raise ValueError(
                f"{where}: results of version {version!r}, this package reads {VERSION}: name another --out"
            )
        try:
            if kind == "settings":
                self._settings[entry["world"]] = dict(entry["settings"])
            elif kind == "run" and entry["world"] in self._settings:
                run = Run(**entry)
                self.runs[run.cell] = run
            else:
                raise unreadable
        except (KeyError, TypeError, ValueError):
            raise unreadable from None

    def _append(self, kind: str, entry: dict[str, Any]) -> None:
        line = json.dumps({"version": VERSION, "kind": kind, **entry}, allow_nan=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def keep_settings(self, world: str, settings: dict[str, Any]) -> None:
        """Write down a world's settings, unless they are here already."""
        if world not in self._settings:
            self._settings[world] = settings
            self._append("settings", {"world": world, "settings": settings})

    def require_same_settings(self, world: str, settings: dict[str, Any]) -> None:
        """Check that a world's settings are those of the runs already here, if there are any.

        Raises:
            ValueError: they differ; the message says in what.
        """
        settings = json.loads(json.dumps(settings))  # as they were written
        before = self._settings.get(world, settings)
        differing = [
            f"{name}: {before.get(name)!r} there, {settings.get(name)!r} now"
            for name in sorted(before.keys() | settings.keys())
            if before.get(name) != settings.get(name)
        ]
        if differing:
            raise ValueError(f"{self.path} holds runs of '{world}' with other settings ({'; '.join(differing)}): "
                             "name another --out")  # fmt: skip

    def add(self, run: Run) -> None:
        """Keep a run, on disk at once."""
        self._append("run", asdict(run))
        self.runs[run.cell] = run
