"""A comparison as a table and a picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from agents import AGENTS
from experiments.results import Run

BASELINE = "random"
CEILING = "oracle-greedy"
CONFIDENCE = 0.95
FEW = 10  # agents that matplotlib has colours for, and that a legend inside the picture has room for
COLUMNS = (
    "world", "agent", "seeds", "final win rate", "area", "area - random's", "headroom", "labels", "judged",
    "choosing, s",
)  # fmt: skip


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95 % Student interval; ends are NaN with fewer than two seeds."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        if np.isnan(self.low):
            return f"{self.mean:+.3f}"
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def area(run: Run) -> float:
    """Mean height of the win-rate curve over the labels spent (trapezia), in [0, 1]."""
    return float(np.trapezoid(run.curves["win_rate"], run.spent) / (run.spent[-1] - run.spent[0]))


def interval(values: Sequence[float] | NDArray[np.floating]) -> Interval:
    """Mean and interval of independent values, one for each seed.

    >>> interval([0.0, 2.0]).mean
    1.0
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size < 2:
        return Interval(float(array.mean()), float("nan"), float("nan"))
    half = stats.t.ppf(0.5 + CONFIDENCE / 2, array.size - 1) * array.std(ddof=1) / np.sqrt(array.size)
    return Interval(float(array.mean()), float(array.mean() - half), float(array.mean() + half))


def finished(runs: Iterable[Run], world: str, agent: str) -> dict[int, Run]:
    """Finished runs by seed."""
    return {r.seed: r for r in runs if (r.world, r.agent, r.status) == (world, agent, "finished")}


def label(agent: str) -> str:
    """The agent's name in tables and pictures; a privileged one is marked."""
    return f"{agent} (privileged)" if AGENTS[agent].privileged else agent


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Markdown table; the first row is the header.

    >>> print(markdown([["a", "bc"], ["1", "2"]]))
    | a | bc |
    |---|----|
    | 1 | 2  |
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def table(runs: Sequence[Run], worlds: Sequence[str], agents: Sequence[str]) -> str:
    """Markdown table, a row for each world and agent that has a finished run."""
    rows = [list(COLUMNS)]
    for world in worlds:
        baseline, ceiling = finished(runs, world, BASELINE), finished(runs, world, CEILING)
        for agent in agents:
            by_seed = finished(runs, world, agent)
            if by_seed:
                rows.append(_row(world, agent, by_seed, baseline, ceiling))
    return markdown(rows)


def headroom(by_seed: dict[int, Run], baseline: dict[int, Run], ceiling: dict[int, Run]) -> float:
    """(area - random's) / (oracle-greedy's - random's), of means over the seeds that all have; NaN without one."""
    seeds = by_seed.keys() & baseline.keys() & ceiling.keys()
    if not seeds:
        return float("nan")
    own, low, high = (np.mean([area(runs[seed]) for seed in seeds]) for runs in (by_seed, baseline, ceiling))
    return float((own - low) / (high - low)) if high != low else float("nan")


def _row(
    world: str, agent: str, by_seed: dict[int, Run], baseline: dict[int, Run], ceiling: dict[int, Run]
) -> list[str]:
    shared = sorted(by_seed.keys() & baseline.keys())
    difference = "-"
    if agent != BASELINE and shared:
        difference = str(interval([area(by_seed[seed]) - area(baseline[seed]) for seed in shared]))
    runs = list(by_seed.values())
    room = headroom(by_seed, baseline, ceiling)
    return [
        world,
        label(agent),
        str(len(runs)),
        f"{np.mean([run.curves['win_rate'][-1] for run in runs]):.3f}",
        f"{np.mean([area(run) for run in runs]):.3f}",
        difference,
        "-" if np.isnan(room) else f"{room:.2f}",
        f"{np.mean([run.labels for run in runs]):.0f}",
        AGENTS[agent].judged,
        f"{np.mean([run.seconds_choosing for run in runs]):.2g}",
    ]


def _seeds(n: int) -> str:
    return "1 seed" if n == 1 else f"{n} seeds"


def mean_curve(by_seed: dict[int, Run]) -> tuple[NDArray[np.int64], list[Interval]]:
    """Labels spent, and the win rate there with its interval over seeds."""
    runs = list(by_seed.values())
    curves = np.array([run.curves["win_rate"] for run in runs])
    return np.array(runs[0].spent), [interval(column) for column in curves.T]


def picture(runs: Sequence[Run], worlds: Sequence[str], agents: Sequence[str], path: Path) -> None:
    """Write a PNG: win rate against labels, a panel a world, a line an agent, bands over seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    shown = [world for world in worlds if any(finished(runs, world, agent) for agent in agents)]
    many = len(agents) > FEW
    figure = Figure(figsize=((6.4 + 2.4 * many) * max(1, len(shown)), 4.4 + 1.2 * many), layout="constrained")
    FigureCanvasAgg(figure)
    for column, world in enumerate(shown, start=1):
        axes = figure.add_subplot(1, len(shown), column)
        lines: list[tuple[float, Line2D]] = []
        for index, agent in enumerate(agents):
            by_seed = finished(runs, world, agent)
            if not by_seed:
                continue
            spent, points = mean_curve(by_seed)
            style = "--" if AGENTS[agent].privileged else "-" if index < FEW else "-." if index < 2 * FEW else ":"
            color = "black" if agent == BASELINE else f"C{index}"
            name = f"{label(agent)}, {_seeds(len(by_seed))}"
            (line,) = axes.plot(spent, [p.mean for p in points], style, color=color, label=name)
            lines.append((points[-1].mean, line))
            if len(by_seed) > 1:
                low, high = [p.low for p in points], [p.high for p in points]
                axes.fill_between(spent, low, high, color=color, alpha=0.12, lw=0)
        axes.axhline(0.5, color="grey", lw=0.8, ls=":")
        axes.set(title=f"world: {world}", xlabel="labels spent", ylabel="win rate against the reference")
        if many:  # beside the picture, best first
            best_first = [line for _, line in sorted(lines, key=lambda pair: -pair[0])]
            axes.legend(handles=best_first, frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.02))
        else:
            axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
