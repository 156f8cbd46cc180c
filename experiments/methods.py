"""``prefenv methods``: every acquisition method in every simulated world, as tables and a picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import agents
import prefenv
from experiments.kept import Found, Kept
from experiments.report import BASELINE, CEILING, interval, label, markdown
from experiments.results import only_writer, require_compared_seeds
from experiments.reward_model import STEP_SIZE, STEPS
from experiments.walks import accuracies, simulated, walk
from prefenv.synthetic.settings import PRESETS
from prefenv.types import FloatArray, unknown_name, whole_number

EACH, QUARTER = "one pair of each prompt", "a quarter of the prompts"
ROUNDS = {EACH: 10, QUARTER: 40}  # for the same number of labels
PLACES = (
    ("synthetic", EACH), ("synthetic", QUARTER), ("active-ultrafeedback", EACH), ("active-ultrafeedback", QUARTER),
    ("on-policy", QUARTER),  # two candidates are one pair, so that only prompts can be chosen
)  # fmt: skip
FILE = "methods.jsonl"
LEARNED = "learned"


@dataclass(frozen=True)
class MethodsConfig:
    """Run all acquisition methods in the three simulated worlds, and write one table for each world and form.

    In `synthetic` (the default preset) and `active-ultrafeedback` with one pair of each prompt a round, and with as
    many pairs as a quarter of the prompts, anywhere in the pool; in `on-policy` with a quarter. Of the learned agents
    there is the one that comes with its weights, and the others are compared with it too; methods that only choose
    prompts are where prompts can be chosen. Writes to --out: methods.jsonl (a line for each finished method),
    methods.md, methods.png. Started again with the same settings, it goes on where it was stopped.
    """

    seeds: int = 100
    """How many seeds; the unit over which intervals are taken. At least 2."""
    first_seed: int = 0
    """Seeds are first_seed, first_seed + 1, ..."""
    agents: tuple[str, ...] = ()
    """Only these methods of `prefenv agents`, with `random` and `oracle-greedy`. Without, all."""
    out: Path = Path("runs/methods")
    """Folder for everything that is written."""


@dataclass(frozen=True)
class Cell:
    """All seeds of one method in one world and form."""

    world: str
    form: str
    method: str


def methods(config: MethodsConfig) -> int:
    """Run what is left, print the tables, write them and the picture.

    Returns:
        0.

    Raises:
        ValueError: a number or an agent that cannot be, or a folder with results of other settings.
    """
    whole_number("seeds", config.seeds, 2)
    require_compared_seeds(config.first_seed, config.seeds)
    cells = list(_cells(_asked(config)))
    with only_writer(config.out):
        kept = Kept(config.out / FILE, _settings(config), Cell)
        left = [cell for cell in cells if cell not in kept.found]
        with tqdm(total=sum(ROUNDS[cell.form] for cell in left), unit="round", dynamic_ncols=True) as bar:
            for cell in left:
                bar.set_postfix_str(f"{cell.world} {cell.method}")
                kept.add(cell, _run(config, cell, bar))
        found = {cell: kept.found[cell] for cell in cells}
        text = _conclude(config, found)
    print(f"\n{text}\npicture: {config.out / 'methods.png'}")
    return 0


def _asked(config: MethodsConfig) -> list[str]:
    keys = [key for key, spec in agents.AGENTS.items() if not spec.needs_weights]
    if not config.agents:
        return keys
    asked = {agents.spec(name).key for name in config.agents} | {BASELINE, CEILING}
    for name in asked - set(keys):
        raise unknown_name("method that needs no weights", name, keys)
    return [key for key in keys if key in asked]


def _cells(keys: list[str]) -> Iterator[Cell]:
    for world, form in PLACES:
        for key in keys:
            if form != EACH or agents.spec(key).family != "prompts":
                yield Cell(world, form, key)


def _settings(config: MethodsConfig) -> dict[str, Any]:
    """All that the numbers depend on."""
    worlds = {name: dataclasses.asdict(settings) for name, settings in PRESETS.items()}
    run = {"seeds": config.seeds, "first_seed": config.first_seed, "rounds": ROUNDS, "version": prefenv.__version__}
    return run | {"worlds": worlds, "steps": STEPS, "step_size": STEP_SIZE}


def _run(config: MethodsConfig, cell: Cell, bar: tqdm) -> Found:
    settings, rounds = PRESETS[cell.world], ROUNDS[cell.form]
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    k = None if cell.form == EACH else settings.n_prompts // 4
    envs = simulated(cell.method, settings, len(seeds), rounds, k)
    walked = walk(envs, cell.method, seeds, bar)
    win_rate, kinds = walked.curves["win_rate"], accuracies(envs, walked, seeds)
    return {
        "final": win_rate[:, -1],
        "area": np.trapezoid(win_rate, axis=1) / rounds,
        "reward model": np.mean(list(kinds.values()), axis=0),
        "capability": walked.curves["capability"][:, -1],
        "microseconds": np.array([1e6 * walked.seconds_choosing / (len(seeds) * rounds * settings.n_prompts)]),
    }


def _conclude(config: MethodsConfig, found: dict[Cell, Found]) -> str:
    last_seed = config.first_seed + config.seeds - 1
    parts = [f"Seeds {config.first_seed} to {last_seed}; intervals are 95 % over seeds, differences paired by seed."]
    for world, form in PLACES:
        settings = PRESETS[world]
        k = settings.n_prompts if form == EACH else settings.n_prompts // 4
        place = {cell.method: numbers for cell, numbers in found.items() if (cell.world, cell.form) == (world, form)}
        parts += [
            f"### `{world}`, {form}",
            f"{settings.n_prompts} prompts of {settings.n_candidates} candidates, {ROUNDS[form]} rounds of {k} labels.",
            table(place),
        ]
    text = "\n\n".join(parts)
    (config.out / "methods.md").write_text(text + "\n", encoding="utf-8")
    picture(found, config.out / "methods.png")
    return text


def differences(place: dict[str, Found]) -> dict[str, FloatArray]:
    """Method → (seeds,) area less that of ``random``, best method first, without ``random`` itself."""
    pairs = {method: numbers["area"] - place[BASELINE]["area"] for method, numbers in place.items()}
    ordered = sorted(pairs, key=lambda method: -pairs[method].mean())
    return {method: pairs[method] for method in ordered if method != BASELINE}


def table(place: dict[str, Found]) -> str:
    """Markdown table of one world and form, best area first; with how far ``learned`` is ahead where it is there."""
    rows = [[
        "method", "judged", "final win rate", "area", "area - random's, points", "headroom", "reward model",
        "capability", "µs a prompt", "learned is ahead by, points",
    ]]  # fmt: skip
    learned = place.get(LEARNED)
    gains = differences(place)
    room = float(gains[CEILING].mean())
    for method in sorted(place, key=lambda name: -place[name]["area"].mean()):
        numbers, gain = place[method], gains.get(method)
        rows.append([
            label(method),
            agents.spec(method).judged,
            f"{numbers['final'].mean():.3f}",
            f"{numbers['area'].mean():.4f}",
            "-" if gain is None else _points(gain),
            "-" if gain is None else f"{gain.mean() / room:+.2f}",
            f"{numbers['reward model'].mean():.3f}",
            f"{numbers['capability'].mean():+.3f}",
            f"{numbers['microseconds'][0]:.1f}",
            "-" if learned is None or method == LEARNED else _points(learned["area"] - numbers["area"]),
        ])  # fmt: skip
    return markdown(rows if learned else [row[:-1] for row in rows])


def _points(values: NDArray[np.floating]) -> str:
    """Mean and interval in hundredths."""
    found = interval(100 * values)
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def picture(found: dict[Cell, Found], path: Path) -> None:
    """Write a PNG: each method's area less random's with its interval, a panel for each world and form."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(PLACES), 8.5), layout="constrained")
    FigureCanvasAgg(figure)
    for column, (world, form) in enumerate(PLACES, start=1):
        place = {cell.method: numbers for cell, numbers in found.items() if (cell.world, cell.form) == (world, form)}
        gains = differences(place)
        axes = figure.add_subplot(1, len(PLACES), column)
        for row, (method, values) in enumerate(reversed(gains.items())):
            gain = interval(100 * values)
            privileged = agents.spec(method).privileged
            color = "grey" if privileged else "C0" if gain.low > 0 else "C3" if gain.high < 0 else "black"
            axes.errorbar(
                gain.mean, row, xerr=[[gain.mean - gain.low], [gain.high - gain.mean]], fmt="o", color=color,
                mfc="white" if privileged else color, ms=4, lw=1,
            )  # fmt: skip
        axes.axvline(0.0, color="black", lw=0.8, ls=":")
        axes.set_yticks(range(len(gains)), [label(method) for method in reversed(gains)], fontsize=8)
        axes.set_title(f"{world}\n{form}", fontsize=9)
        axes.set_xlabel("area less random's, points of win rate", fontsize=8)
    figure.savefig(path, dpi=110)
