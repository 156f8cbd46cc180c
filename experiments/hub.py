"""Sources on the hub, read as files are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from prefenv.replay.sources import RECORD_ROWS, Batch, pick

HUB = "hub:"


@dataclass(frozen=True)
class Hub:
    """A source on the hub, or one that was fetched from it before.

    Attributes:
        name: of the data set there; a folder on disk will do.
        subset: of it, where it has more than one.
        split: of it.
    """

    name: str
    subset: str | None
    split: str

    def batches(self, columns: Sequence[str], optional: Sequence[str] = (), size: int = RECORD_ROWS) -> Iterator[Batch]:
        """The rows in order.

        Raises:
            ValueError: there is no such column.
            OSError: the hub cannot be reached, or does not have it.
            ImportError: the package for it is absent.
        """
        try:
            import datasets
        except ImportError as error:
            raise ImportError(f"{HUB} needs the package datasets: pip install 'prefenv[llm]'") from error
        try:
            data = datasets.load_dataset(self.name, self.subset, split=self.split)
        except (OSError, ValueError) as error:
            message = str(error).strip().splitlines() or [type(error).__name__]
            raise OSError(
                f"{HUB}{self.name} (subset {self.subset}, split {self.split}) cannot be had: {message[0]}. Without the "
                "hub, copy its files to a folder and name that folder"
            ) from error
        where = f"{HUB}{self.name}"
        data = data.select_columns(pick(where, data.column_names, columns, optional)).with_format("arrow")
        first = 1
        for part in data.iter(size):
            yield Batch(where, np.arange(first, first + len(part)), part)
            first += len(part)
