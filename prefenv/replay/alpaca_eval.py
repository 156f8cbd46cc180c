"""Importer of AlpacaEval's results: a folder for each model, with its outputs and a judge's preferences."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from prefenv.replay.staging import Candidates
from prefenv.types import unknown_name

OUTPUTS, ANNOTATIONS = "model_outputs.json", "annotations.json"
CLIP = 1e-9  # of a chance: a preference of exactly 1 or 2 becomes log-odds of -20.7 or 20.7
Records = list[dict[str, Any]]


def log_odds(preference: object) -> float | None:
    """The log-odds with which the judge prefers ``output_2``, from a preference of 1 (output_1 wins) to 2; 0 is a tie.

    >>> log_odds(1.5), log_odds(0), round(log_odds(1.9), 3), round(log_odds(1), 1), log_odds(None), log_odds(3)
    (0.0, 0.0, 2.197, -20.7, None, None)
    """
    if isinstance(preference, bool) or not isinstance(preference, int | float):
        return None
    chance = 0.5 if preference == 0 else preference - 1.0
    if not 0.0 <= chance <= 1.0:  # NaN is in no range
        return None
    chance = float(np.clip(chance, CLIP, 1.0 - CLIP))
    return float(np.log(chance) - np.log1p(-chance))


def alpaca_eval(path: str | Path, annotators: Sequence[str], baseline: bool = True) -> Iterator[Candidates]:
    """The outputs of all models, model by model, then those of the baseline.

    Scores: `score`, the log-odds with which the first annotator prefers the output to the baseline's; those of each
    further one under its own name. The baseline's own score is 0, for against itself it is as good.

    Args:
        path: a folder with `MODEL/model_outputs.json` and `MODEL/ANNOTATOR/annotations.json`, or one that has such a
            folder `results`.
        annotators: names of their folders.
        baseline: whether the outputs that others are compared with, as the annotations have them, are candidates too.

    Raises:
        ValueError: there are no outputs, or no annotations of an annotator.
    """
    if not annotators:
        raise ValueError("name at least one annotator")
    models = _models(Path(path))
    _require_annotators(models, annotators)
    judges = {name: _Judge() for name in ("score", *annotators[1:])}
    judged: set[str] = set()
    models.sort(key=lambda folder: not (folder / annotators[0] / ANNOTATIONS).is_file())  # baselines are known by then
    for folder in tqdm(models, desc="models", unit=" models", dynamic_ncols=True):
        for annotator, judge in zip(annotators, judges.values(), strict=True):
            judge.read(folder / annotator / ANNOTATIONS)
        outputs = [
            (str(record.get("generator") or folder.name), record.get("instruction"), record.get("output"))
            for record in _read(folder / OUTPUTS)
        ]
        judged.update(generator for generator, _, _ in outputs)
        yield _candidates(str(folder / OUTPUTS), outputs, judges)
    if baseline:
        for name, by_prompt in judges["score"].baselines.items():
            if name not in judged:
                yield _candidates(
                    f"{ANNOTATIONS} of {annotators[0]}", [(name, *output) for output in by_prompt.items()], judges
                )


class _Judge:
    """What an annotator says of one model's outputs, and the baselines of all models until now.

    Attributes:
        score: (instruction, output) → log-odds against the baseline.
        baselines: generator → instruction → output.
    """

    def __init__(self) -> None:
        self.score: dict[tuple[Any, Any], float | None] = {}
        self.baselines: dict[str, dict[str, str]] = {}

    def read(self, path: Path) -> None:
        """Take the annotations of the next model, if it has any."""
        self.score = {}
        for record in _read(path) if path.is_file() else []:
            instruction, first, second = (record.get(name) for name in ("instruction", "output_1", "output_2"))
            if self.score.get((instruction, second)) is None:
                self.score[instruction, second] = log_odds(record.get("preference"))
            if isinstance(instruction, str) and isinstance(first, str):
                self.baselines.setdefault(str(record.get("generator_1")), {})[instruction] = first

    def of_output(self, generator: str, instruction: Any, output: Any) -> float | None:
        """Its log-odds; a baseline's own output is as good as itself."""
        own = output is not None and self.baselines.get(generator, {}).get(instruction) == output
        return 0.0 if own else self.score.get((instruction, output))


def _candidates(file: str, outputs: Sequence[tuple[str, Any, Any]], judges: dict[str, _Judge]) -> Candidates:
    return Candidates(
        file=file,
        row=range(1, len(outputs) + 1),
        prompt_id=[None] * len(outputs),
        prompt=[prompt for _, prompt, _ in outputs],
        generator=[generator for generator, _, _ in outputs],
        response=[response for _, _, response in outputs],
        scores={name: [judge.of_output(*output) for output in outputs] for name, judge in judges.items()},
    )


def _models(path: Path) -> list[Path]:
    """The folders of models, by name."""
    if not path.is_dir():
        raise FileNotFoundError(f"no folder {path}: name AlpacaEval's `results`, or what it lies in")
    for root in (path / "results", path):
        found = sorted(inside.parent for inside in root.glob(f"*/{OUTPUTS}"))
        if found:
            return found
    raise ValueError(f"no {OUTPUTS} in the folders of {path}: name AlpacaEval's `results`, or what it lies in")


def _require_annotators(models: list[Path], annotators: Sequence[str]) -> None:
    known = sorted({inside.parent.name for folder in models for inside in folder.glob(f"*/{ANNOTATIONS}")})
    for name in annotators:
        if name not in known:
            raise unknown_name(f"annotator of {models[0].parent}", name, known)


def _read(path: Path) -> Records:
    try:
        records = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON, or a part of it: {error}") from None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError(f"{path} holds no list of records")
    return records
