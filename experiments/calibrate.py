"""``prefenv calibrate``: does the simulator order the methods as published runs do? It prints its own verdict."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

import prefenv
from experiments import calibration_report as report
from experiments.kept import Found, Kept
from experiments.results import only_writer
from experiments.reward_model import STEP_SIZE, STEPS
from experiments.walks import accuracies, simulated, walk
from prefenv.synthetic.settings import PRESETS, Loss, SyntheticSettings
from prefenv.types import FloatArray, whole_number

LOSSES: tuple[Loss, ...] = ("dpo", "ipo", "simpo")
SIMPO_BETA, SIMPO_MARGIN = 2.0, 1.0  # in the range that the SimPO paper recommends
ON_POLICY_METHODS = ("random", "apl")
LABELS_PER_ROUND = 16  # on-policy, as in arXiv 2604.02766
FILE = "calibration.jsonl"


@dataclass(frozen=True)
class CalibrateConfig:
    """Compare the order of nine methods in the simulator with published orders, and print the verdict.

    World `active-ultrafeedback`: final win rate with the losses of DPO, IPO and SimPO, and the accuracy of a fresh
    reward model trained on the pairs that each method acquired; rank correlations with table 2 of arXiv 2603.09692.
    World `on-policy`: win rate and capability under `random` and `apl`. Writes to --out: calibration.jsonl (a line for
    each finished method), calibration.md, calibration.png. Started again with the same settings, it goes on where it
    was stopped.
    """

    seeds: int = 100
    """How many seeds; the unit over which intervals are taken. At least 2."""
    first_seed: int = 0
    """Seeds are first_seed, first_seed + 1, ..."""
    out: Path = Path("runs/calibrate")
    """Folder for everything that is written."""
    rounds: int = 10
    """Rounds in an episode of `active-ultrafeedback`, each with one label for each prompt."""
    on_policy_rounds: int = 40
    """Rounds in an episode of `on-policy`, each with 16 labels anywhere in the pool."""
    active_ultrafeedback: SyntheticSettings = field(default_factory=lambda: PRESETS["active-ultrafeedback"])
    """Settings of that world; other ones than the preset's show what the verdict hangs on."""
    on_policy: SyntheticSettings = field(default_factory=lambda: PRESETS["on-policy"])
    """Settings of that world."""


@dataclass(frozen=True)
class Cell:
    """All seeds of one method: with a loss in ``active-ultrafeedback``, or in ``on-policy``."""

    world: str
    method: str
    loss: Loss


def calibrate(config: CalibrateConfig) -> int:
    """Run what is left, print tables and verdicts, write them and the picture.

    Returns:
        0, whatever the verdict.

    Raises:
        ValueError: a number that cannot be, or a folder with results of other settings.
    """
    for name, minimum in (("seeds", 2), ("first_seed", 0), ("rounds", 1), ("on_policy_rounds", 1)):
        whole_number(name, getattr(config, name), minimum)
    with only_writer(config.out):
        kept = Kept(config.out / FILE, _settings(config), Cell)
        cells = [cell for cell in _cells() if cell not in kept.found]
        total = sum(_steps(config, cell) for cell in cells)
        with tqdm(total=total, unit="step", dynamic_ncols=True) as bar:
            for cell in cells:
                bar.set_postfix_str(f"{cell.world} {cell.method} {cell.loss}")
                run = _on_policy if cell.world == "on-policy" else _active_ultrafeedback
                kept.add(cell, run(config, cell, bar))
        text = conclude(config, kept.found)
    print(f"\n{text}\npicture: {config.out / 'calibration.png'}")
    return 0


def _cells() -> Iterator[Cell]:
    for loss in LOSSES:
        for method in report.METHODS:
            yield Cell("active-ultrafeedback", method, loss)
    for method in ON_POLICY_METHODS:
        yield Cell("on-policy", method, "dpo")


def _steps(config: CalibrateConfig, cell: Cell) -> int:
    """Of the progress bar."""
    return config.on_policy_rounds if cell.world == "on-policy" else config.rounds


def _settings(config: CalibrateConfig) -> dict[str, Any]:
    """All that the numbers depend on."""
    settings = dataclasses.asdict(config) | {"steps": STEPS, "step_size": STEP_SIZE, "version": prefenv.__version__}
    del settings["out"]
    return settings


def world_of(settings: SyntheticSettings, loss: Loss) -> SyntheticSettings:
    """A world with another loss, its settings fixed before it was ever run.

    IPO keeps beta. SimPO has beta 2, margin 1, and a step that is smaller by as much as beta is larger, for which its
    first step has about DPO's length.
    """
    if loss != "simpo":
        return dataclasses.replace(settings, loss=loss)
    rate = settings.learning_rate * settings.beta / SIMPO_BETA
    return dataclasses.replace(settings, loss=loss, beta=SIMPO_BETA, simpo_margin=SIMPO_MARGIN, learning_rate=rate)


def _active_ultrafeedback(config: CalibrateConfig, cell: Cell, bar: tqdm) -> Found:
    """Gain in win rate; with DPO also the reward model's accuracies (pairs do not depend on the policy's loss)."""
    settings = world_of(config.active_ultrafeedback, cell.loss)
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    envs = simulated(cell.method, settings, len(seeds), config.rounds)
    walked = walk(envs, cell.method, seeds, bar)
    found = {"gain": walked.curves["win_rate"][:, -1] - 0.5}
    if cell.loss == "dpo":
        found |= {kind: accuracy - 0.5 for kind, accuracy in accuracies(envs, walked, seeds).items()}
    return found


def _on_policy(config: CalibrateConfig, cell: Cell, bar: tqdm) -> Found:
    """Curves of win rate and capability."""
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    envs = simulated(cell.method, config.on_policy, len(seeds), config.on_policy_rounds, LABELS_PER_ROUND)
    curves = walk(envs, cell.method, seeds, bar).curves
    return {name: curves[name] for name in ("win_rate", "capability")}


def conclude(config: CalibrateConfig, found: dict[Cell, Found]) -> str:
    """Tables and verdicts as text; written to the folder with the picture."""
    kinds = {
        f"on pairs {kind}": {m: found[Cell("active-ultrafeedback", m, "dpo")][kind] for m in report.METHODS}
        for kind in ("in style", "off style")
    }
    values: dict[str, dict[str, FloatArray]] = {
        loss: {m: found[Cell("active-ultrafeedback", m, loss)]["gain"] for m in report.METHODS} for loss in LOSSES
    }
    first, second = kinds.values()
    values["reward model"] = {m: (first[m] + second[m]) / 2 for m in report.METHODS}
    curves = {method: found[Cell("on-policy", method, "dpo")] for method in ON_POLICY_METHODS}
    last_seed = config.first_seed + config.seeds - 1
    text = "\n".join([
        f"active-ultrafeedback, seeds {config.first_seed} to {last_seed}, {config.rounds} rounds of "
        f"{config.active_ultrafeedback.n_prompts} labels; own numbers in points, with 95 % intervals over seeds",
        "", report.methods_table(values),
        "", report.kinds_table(kinds), "",
        *(report.verdict(c, report.rank_correlation(c, values[c.key])) for c in report.COLUMNS),
        "",
        f"on-policy, {config.on_policy_rounds} rounds of {LABELS_PER_ROUND} labels",
        "", report.on_policy_table(curves), "",
        *report.on_policy_lines(curves),
    ])  # fmt: skip
    (config.out / "calibration.md").write_text(text + "\n", encoding="utf-8")
    report.picture(values, curves, config.out / "calibration.png")
    return text
