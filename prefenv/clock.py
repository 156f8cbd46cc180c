"""Wall-clock seconds of the parts of a step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from prefenv.types import Seconds

Result = TypeVar("Result")


class Clock:
    """Runs calls and keeps their wall-clock seconds by name."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}

    def __call__(self, name: str, call: Callable[[], Result]) -> Result:
        """What the call returns."""
        start = time.perf_counter()
        result = call()
        self._spent[name] = self._spent.get(name, 0.0) + time.perf_counter() - start
        return result

    def seconds(self) -> Seconds:
        """What has been measured."""
        return Seconds(**self._spent)


class Stopwatch:
    """Wall-clock seconds between laps, by name."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Put the time since the last lap down to this name."""
        now = time.perf_counter()
        self._spent[name] = self._spent.get(name, 0.0) + now - self._last
        self._last = now

    def seconds(self) -> Seconds:
        """What has been measured."""
        return Seconds(**self._spent)
