"""``prefenv explain``: what a learned policy does, as tables and a picture."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import agents
import prefenv
from agents.learned.features import EVEN, FEATURES, ODD, pair_features
from agents.learned.scorer import SHIPPED, Weights, pair_logits, read_weights
from agents.select import best_of_each_prompt
from experiments.kept import Found, Kept
from experiments.report import interval, markdown
from experiments.results import only_writer, require_compared_seeds
from prefenv.synthetic.settings import PRESETS, SyntheticSettings
from prefenv.types import FloatArray, IntArray, whole_number
from prefenv.vector import PrefAcquireVectorEnv

WORLDS = ("synthetic", "active-ultrafeedback")
ROUNDS = 10
AS_IT_IS = "as it is"
RELATIONS = (
    "expected gain", "expected gain, generators as a hint", "reward", "spread of the reward difference", "generator",
    "implicit reward", "distance of the embeddings", "sum of the log-probabilities",
)  # fmt: skip
"""Features whose correlation with the logits is followed; of odd ones, that of their size."""
FILE = "explain.jsonl"

Pairs = NDArray[np.float32]


@dataclass(frozen=True)
class ExplainConfig:
    """Say what a learned policy does: what moves its logits, how that changes, and whom it agrees with.

    In the presets `synthetic` and `active-ultrafeedback`, one pair of each prompt, ten rounds. Writes to --out:
    explain.jsonl (a line for each finished part), explain.md, explain.png. Started again with the same settings, it
    goes on where it was stopped.
    """

    seeds: int = 100
    """How many seeds; the unit over which intervals are taken. At least 2."""
    first_seed: int = 0
    """Seeds are first_seed, first_seed + 1, ..."""
    weights: Path | None = None
    """Of a policy of your own, from `prefenv train`. Without, those that come with the package."""
    out: Path = Path("runs/explain")
    """Folder for everything that is written."""


@dataclass(frozen=True)
class Cell:
    """One world; the policy as it is, or with one feature hidden from it."""

    world: str
    hidden: str


def explain(config: ExplainConfig) -> int:
    """Walk what is left, print the tables, write them and the picture.

    Returns:
        0.

    Raises:
        ValueError: a number that cannot be, weights that cannot be read, or a folder with results of other settings.
    """
    whole_number("seeds", config.seeds, 2)
    require_compared_seeds(config.first_seed, config.seeds)
    path = SHIPPED if config.weights is None else config.weights
    weights = read_weights(path)
    cells = [Cell(world, hidden) for world in WORLDS for hidden in (AS_IT_IS, *FEATURES[:-1])]
    with only_writer(config.out):
        kept = Kept(config.out / FILE, _settings(config, path), Cell)
        left = [cell for cell in cells if cell not in kept.found]
        with tqdm(total=ROUNDS * len(left), unit="round", dynamic_ncols=True) as bar:
            for cell in left:
                bar.set_postfix_str(f"{cell.world}: {cell.hidden}")
                kept.add(cell, _walk(config, cell, weights, bar))
        text = "\n\n".join(_text(config, world, kept.found) for world in WORLDS)
        (config.out / "explain.md").write_text(text + "\n", encoding="utf-8")
        _picture(kept.found, config.out / "explain.png")
    print(f"\n{text}\n\npicture: {config.out / 'explain.png'}")
    return 0


def _settings(config: ExplainConfig, weights: Path) -> dict[str, Any]:
    """All that the numbers depend on."""
    worlds = {name: dataclasses.asdict(PRESETS[name]) for name in WORLDS}
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:16]
    run = {"seeds": config.seeds, "first_seed": config.first_seed, "version": prefenv.__version__}
    return run | {"weights": digest, "worlds": worlds}


def _walk(config: ExplainConfig, cell: Cell, weights: Weights, bar: tqdm) -> Found:
    """All seeds of one cell: the area under the curve, and what the choices are like where nothing is hidden."""
    settings: SyntheticSettings = PRESETS[cell.world]
    seeds = list(range(config.first_seed, config.first_seed + config.seeds))
    envs = PrefAcquireVectorEnv(settings, len(seeds), ROUNDS * settings.n_prompts)
    rng = np.random.default_rng(config.first_seed)
    look = _Look(envs, seeds[0]) if cell.hidden == AS_IT_IS else None
    observation, info = envs.reset(seed=seeds)
    curve, changed = [info["win_rate"]], []
    for _ in range(ROUNDS):
        features = pair_features(observation)
        seen = pair_logits(features, weights)
        logits = seen if look else pair_logits(hide(features, cell.hidden), weights)
        legal = features[..., -1] > 0
        action = best_of_each_prompt(logits, legal, rng)
        changed.append((action != seen.argmax(axis=-1)).mean(axis=-1))
        if look:
            look.add(observation, features, seen, action)
        observation, _, _, _, info = envs.step(action)
        curve.append(info["win_rate"])
        bar.update()
    found = {"area": np.trapezoid(np.stack(curve), axis=0) / ROUNDS, "changed": np.mean(changed, axis=0)}
    return found | (look.found() if look else {})


def hide(features: Pairs, name: str) -> Pairs:
    """The features with one made the same for all legal pairs: 0 where it is odd, else its mean over these pools.

    The budget, of which all pools have as much left, is made one half.
    """
    place, legal = FEATURES.index(name), features[..., -1]
    blank = 0.0 if place < len(ODD) else (features[..., place] * legal).sum() / legal.sum()
    blank = 0.5 if name == "budget left" else blank
    hidden = features.copy()
    hidden[..., place] = blank * legal
    return hidden


class _Look:
    """Collects, round by round, what the policy's choices go with."""

    def __init__(self, envs: PrefAcquireVectorEnv, seed: int) -> None:
        self._others = {
            key: agents.make(key, envs.single_action_space, seed=seed)
            for key, spec in agents.AGENTS.items()
            if not (
                spec.privileged or spec.learned or spec.family == "prompts" or key == "xpo"
            )  # xpo chooses as random
        }
        self._states: dict[str, Any] = dict.fromkeys(self._others)
        self._rows: dict[str, list[FloatArray]] = {}

    def add(self, observation: Any, features: Pairs, logits: Pairs, action: IntArray) -> None:
        """One round of all worlds."""
        begins = np.full(len(action), not self._rows)
        for name in RELATIONS:
            place = FEATURES.index(name)
            value = np.abs(features[..., place]) if place < len(ODD) else features[..., place]
            self._rows.setdefault(f"follows {name}", []).append(_correlation(value, logits))
        for key, agent in self._others.items():
            theirs, self._states[key] = agent.predict(observation, self._states[key], episode_start=begins)
            self._rows.setdefault(f"agrees {key}", []).append((theirs == action).mean(axis=-1))

    def found(self) -> Found:
        """Name → (seeds, rounds)."""
        return {name: np.stack(rows, axis=1) for name, rows in self._rows.items()}


def _correlation(a: FloatArray, b: FloatArray) -> FloatArray:
    """(B,) mean over prompts of the correlation over the pairs of (B, n, P); prompts without spread are left out."""
    a, b = (value.astype(np.float64) - value.mean(axis=-1, keepdims=True) for value in (a, b))
    size = np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1))
    there = size > 1e-9
    each = np.where(there, (a * b).sum(axis=-1) / np.where(there, size, 1.0), 0.0)
    return each.sum(axis=-1) / np.maximum(there.sum(axis=-1), 1)


def _by_size(found: dict[Cell, Found], world: str, number: Callable[[Found], float]) -> list[str]:
    """Features, the one with the largest number first."""
    return sorted(FEATURES[:-1], key=lambda name: -number(found[Cell(world, name)]))


def _lost(found: dict[Cell, Found], world: str, name: str) -> FloatArray:
    """(seeds,) points of area that hiding a feature costs."""
    return 100 * (found[Cell(world, AS_IT_IS)]["area"] - found[Cell(world, name)]["area"])


def _text(config: ExplainConfig, world: str, found: dict[Cell, Found]) -> str:
    whole = found[Cell(world, AS_IT_IS)]
    rows = [["feature hidden", "choices it changes", "area lost, points"]]
    for name in _by_size(found, world, lambda cell: float(cell["changed"].mean())):
        lost = interval(_lost(found, world, name))
        changed = found[Cell(world, name)]["changed"].mean()
        kind = "gap" if name in ODD else "pool" if name in EVEN[-7:] else "pair"
        rows.append(
            [f"{name} ({kind})", f"{100 * changed:.0f} %", f"{lost.mean:+.2f} [{lost.low:+.2f}, {lost.high:+.2f}]"]
        )
    agreement = [["method", "same pair, first round", "last round", "all rounds"]]
    for name in sorted((n for n in whole if n.startswith("agrees ")), key=lambda n: -whole[n].mean()):
        rounds = 100 * whole[name].mean(axis=0)
        agreement.append(
            [name.removeprefix("agrees "), f"{rounds[0]:.0f} %", f"{rounds[-1]:.0f} %", f"{rounds.mean():.0f} %"]
        )
    last = config.first_seed + config.seeds - 1
    return "\n\n".join([
        f"### `{world}`",
        f"Seeds {config.first_seed} to {last}; 95 % intervals over seeds, paired.",
        markdown(rows),
        markdown(agreement),
    ])  # fmt: skip


def _picture(found: dict[Cell, Found], path: Path) -> None:
    """Write a PNG, a row for each world: what hiding a feature costs, what the logits follow, who agrees."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 5 * len(WORLDS)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(WORLDS), 3, squeeze=False)
    for (left, middle, right), world in zip(panels, WORLDS, strict=True):
        whole = found[Cell(world, AS_IT_IS)]
        names = _by_size(found, world, lambda cell: float(cell["changed"].mean()))[:14]
        _bars(left, names, [_lost(found, world, name) for name in names])
        left.set_title(f"{world}: points of area lost when a feature is hidden", fontsize=9)
        budget = 1 - np.arange(ROUNDS) / ROUNDS
        for name in RELATIONS:
            size = "size of " if name in ODD else ""
            middle.plot(budget, whole[f"follows {name}"].mean(axis=0), marker="o", ms=3, label=size + name)
        middle.invert_xaxis()
        middle.axhline(0.0, color="black", lw=0.8, ls=":")
        middle.set_xlabel("share of the budget left")
        middle.set_title("correlation of the logits with", fontsize=9)
        middle.legend(fontsize=7)
        keys = sorted((n for n in whole if n.startswith("agrees ")), key=lambda n: -whole[n].mean())
        rows = np.arange(len(keys))[::-1]
        right.barh(rows + 0.2, [100 * whole[key][:, 0].mean() for key in keys], 0.4, label="first round")
        right.barh(rows - 0.2, [100 * whole[key][:, -1].mean() for key in keys], 0.4, label="last round")
        right.set_yticks(rows, [key.removeprefix("agrees ") for key in keys], fontsize=8)
        right.set_title("prompts where a method names the same pair, %", fontsize=9)
        right.legend(fontsize=8)
    figure.savefig(path, dpi=90)


def _bars(axes: Any, names: Sequence[str], values: Sequence[FloatArray]) -> None:
    """A horizontal bar with its interval for each name, the first on top."""
    for row, each in enumerate(reversed(values)):
        found = interval(each)
        axes.barh(row, found.mean, color="C0" if found.low > 0 else "lightgrey")
        axes.plot([found.low, found.high], [row, row], color="black", lw=1)
    axes.set_yticks(range(len(names)), list(reversed(names)), fontsize=8)
    axes.axvline(0.0, color="black", lw=0.8)
