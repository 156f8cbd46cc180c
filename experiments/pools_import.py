"""``prefenv pools import``: tables of prompts, candidates and judge scores from what others have published."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:  # they need pyarrow, and the command line must not
    from prefenv.replay.importers import Source
    from prefenv.replay.staging import Candidates

ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"  # the judge of AlpacaEval 2


@dataclass(frozen=True, kw_only=True)
class _Import:
    out: Path = Path("pools.parquet")
    """Table to write, a .parquet file; the rows left out are listed in STEM.left_out.jsonl beside it."""
    require: tuple[str, ...] = ()
    """Score columns that a candidate must have a number in, besides the main one."""


@dataclass(frozen=True, kw_only=True)
class _HubImport(_Import):
    source: tyro.conf.Positional[str]
    """A file (.parquet, .arrow, .jsonl, .jsonl.gz, .json or .csv), a folder of such files, or hub:NAME."""
    subset: str | None = None
    """Subset of a source on the hub, where it has more than one."""
    split: str = "train"
    """Split of a source on the hub."""


@dataclass(frozen=True, kw_only=True)
class ImportUltraFeedback(_HubImport):
    """From UltraFeedback (openbmb/UltraFeedback): instruction, completions with ratings of four aspects.

    The main column is overall_score.
    """


@dataclass(frozen=True, kw_only=True)
class ImportActiveUltraFeedback(_HubImport):
    """From a `full` table of ActiveUltraFeedback: prompt_id, prompt, completions of many models.

    The main column is overall_score.
    """


@dataclass(frozen=True, kw_only=True)
class ImportAlpacaEval(_Import):
    """From AlpacaEval's results, MODEL/model_outputs.json with MODEL/ANNOTATOR/annotations.json.

    The main column is score: the log-odds with which the judge prefers a response to the baseline's.
    """

    source: tyro.conf.Positional[Path]
    """The folder `results`, or the one it lies in."""
    annotators: tuple[str, ...] = (ANNOTATOR,)
    """Folders of the judges: the first gives the column score, each further one a column of its own name."""
    baseline: bool = True
    """Take the baseline's responses as candidates too, with score 0."""


@dataclass(frozen=True, kw_only=True)
class ImportPreferences(_HubImport):
    """From pairs of chosen and rejected: HH-RLHF, or any preference set that TRL takes.

    Each pair is a pool of two; the main column is score, 1 for the chosen and 0 for the rejected response.
    """


@dataclass(frozen=True, kw_only=True)
class ImportTable(_HubImport):
    """From a plain table with named columns, a row a candidate; the rows of a prompt may stand apart."""

    prompt_column: str = "prompt"
    """Column of the prompt."""
    response_column: str = "response"
    """Column of the response."""
    generator_column: str | None = "generator"
    """Column of who wrote the response; None where there is none."""
    prompt_id_column: str | None = None
    """Column of the prompt's id; without, ids are made from the prompts."""
    score_columns: tuple[str, ...] = ("score",)
    """Columns of numbers, the main one first."""
    vectors: Path | None = None
    """A .npy file with a row for each row of the source, which must be one file: the rows kept are written beside the
    table as STEM.vectors.npy."""


ImportConfig = ImportUltraFeedback | ImportActiveUltraFeedback | ImportAlpacaEval | ImportPreferences | ImportTable
ImportCommand = (
    Annotated[ImportUltraFeedback, tyro.conf.subcommand("ultrafeedback")]
    | Annotated[ImportActiveUltraFeedback, tyro.conf.subcommand("active-ultrafeedback")]
    | Annotated[ImportAlpacaEval, tyro.conf.subcommand("alpaca-eval")]
    | Annotated[ImportPreferences, tyro.conf.subcommand("preferences")]
    | Annotated[ImportTable, tyro.conf.subcommand("table")]
)
"""What the command line reads: wrapped in a subcommand `import`, one below it for each kind of source."""


def pools_import(config: ImportConfig) -> int:
    """Import a source, and print what was kept and what was left out.

    Returns:
        0.

    Raises:
        ValueError: the source cannot be read, or nothing of it is left.
        OSError: it is not there, or the hub cannot be reached.
        ImportError: a package for it is absent.
    """
    try:
        from prefenv.replay.cleaning import write_pools
    except ModuleNotFoundError as error:
        raise ImportError(f"tables of pools need '{error.name}': pip install 'prefenv[replay]'") from error
    vectors = config.vectors if isinstance(config, ImportTable) else None
    print(write_pools(_found(config), config.out, _main(config), config.require, vectors))
    return 0


def _main(config: ImportConfig) -> str:
    """The score column that every row must have."""
    if isinstance(config, ImportTable):
        if not config.score_columns:
            raise ValueError("name at least one of --score-columns")
        return config.score_columns[0]
    return "overall_score" if isinstance(config, ImportUltraFeedback | ImportActiveUltraFeedback) else "score"


def _found(config: ImportConfig) -> Iterator[Candidates]:
    from prefenv.replay import importers
    from prefenv.replay.alpaca_eval import alpaca_eval

    if isinstance(config, ImportAlpacaEval):
        return alpaca_eval(config.source, config.annotators, config.baseline)
    source = _source(config)
    if isinstance(config, ImportUltraFeedback):
        return importers.ultrafeedback(source)
    if isinstance(config, ImportActiveUltraFeedback):
        return importers.active_ultrafeedback(source)
    if isinstance(config, ImportPreferences):
        return importers.preferences(source)
    return importers.table(
        source,
        prompt=config.prompt_column,
        response=config.response_column,
        generator=config.generator_column,
        prompt_id=config.prompt_id_column,
        scores=config.score_columns,
    )


def _source(config: _HubImport) -> Source:
    """The files or the hub that are named, once they fit what else is asked for."""
    from experiments.hub import HUB, Hub
    from prefenv.replay.sources import Files

    vectors = config.vectors if isinstance(config, ImportTable) else None
    if config.source.startswith(HUB):
        if vectors is not None:
            raise ValueError("--vectors go with a single file, not with the hub")
        return Hub(config.source.removeprefix(HUB), config.subset, config.split)
    if config.subset is not None:
        raise ValueError(f"--subset {config.subset} is for {HUB}NAME: of files, name those that are wanted")
    files = Files.at(config.source)
    if vectors is not None and len(files.paths) > 1:
        raise ValueError(f"--vectors go with a single file, but there are {len(files.paths)} in {config.source}")
    if config.out.resolve() in [path.resolve() for path in files.paths]:
        raise ValueError(f"--out {config.out} is among what is imported: name another file")
    return files
