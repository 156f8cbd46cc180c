"""``prefenv calibrate``: does the simulator order the methods as published runs do? It prints its own verdict."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import agents
import prefenv
from experiments import calibration_report as report
from experiments.results import only_writer
from experiments.reward_model import STEP_SIZE, STEPS, fit_reward_model, held_out_pairs, ranking_accuracy
from prefenv.forms import PrefAcquireBudgetEnv
from prefenv.synthetic.settings import PRESETS, Loss, SyntheticSettings
from prefenv.types import FloatArray, whole_number
from prefenv.vector import PrefAcquireVectorEnv

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


Found = dict[str, FloatArray]
"""Name → (seeds,) or (seeds, rounds + 1) numbers."""


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
        kept = Kept(config.out / FILE, _settings(config))
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
    return config.seeds if cell.world == "on-policy" else config.rounds


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
    privileged = agents.spec(cell.method).privileged
    envs = PrefAcquireVectorEnv(settings, len(seeds), config.rounds * settings.n_prompts, privileged)
    agent = agents.make(cell.method, envs.single_action_space, seed=config.first_seed)
    observation, info = envs.reset(seed=list(seeds))
    world, chosen, rejected = np.arange(len(seeds))[:, None], [], []
    for _ in range(config.rounds):
        embedding = observation["embedding"]
        observation, _, _, _, info = envs.step(agent.predict(observation)[0])
        prompt, better, worse = np.moveaxis(info["preferences"], -1, 0)  # all -1 where there is no label
        chosen.append(embedding[world, prompt, better])
        rejected.append(embedding[world, prompt, worse])
        bar.update()
    found = {"gain": info["win_rate"] - 0.5}
    if cell.loss == "dpo":
        weights = fit_reward_model(np.concatenate(chosen, axis=1), np.concatenate(rejected, axis=1))
        hidden = envs._sources.hidden
        pairs = held_out_pairs(settings, hidden, seeds)
        for kind, difference in (("in style", pairs.in_style), ("off style", pairs.off_style)):
            found[kind] = ranking_accuracy(weights, difference, pairs.reward) - 0.5
    return found


def _on_policy(config: CalibrateConfig, cell: Cell, bar: tqdm) -> Found:
    """Curves of win rate and capability, one environment after the other."""
    curves: dict[str, list[list[float]]] = {"win_rate": [], "capability": []}
    env = PrefAcquireBudgetEnv(
        prefenv.worlds.build_world(config.on_policy),
        budget=config.on_policy_rounds * LABELS_PER_ROUND,
        labels_per_round=LABELS_PER_ROUND,
    )
    for seed in range(config.first_seed, config.first_seed + config.seeds):
        agent = agents.make(cell.method, env.action_space, seed=seed)
        observation, info = env.reset(seed=seed)
        run = [info]
        while info["spent"] < env.budget:
            observation, _, _, _, info = env.step(agent.predict(observation)[0])
            run.append(info)
        for name, rows in curves.items():
            rows.append([float(info[name]) for info in run])
        bar.update()
    return {name: np.array(rows) for name, rows in curves.items()}


class Kept:
    """The finished cells in a file: a line of settings, then a line each, flushed to disk one by one.

    Raises:
        ValueError: the file is of other settings, or a line in its middle cannot be read.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
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
                self.found[Cell(**line)] = values
        except (json.JSONDecodeError, KeyError, TypeError):
            raise ValueError(f"{path} is no file of a calibration: name another --out") from None

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
        self._append(dataclasses.asdict(cell) | {"found": {name: values.tolist() for name, values in found.items()}})
        self.found[cell] = found


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
