"""What a calibration found: rank correlations with published numbers, verdicts, a table and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from experiments.report import interval, label, markdown
from prefenv.types import FloatArray

RESAMPLES = 4000  # of the seeds, for the interval of a rank correlation
RESAMPLING_SEED = 0
METHODS = (
    "deltaqwen", "drts", "deltaucb", "maxmin", "random", "ultrafeedback", "dts", "infomax", "maxminlcb"
)  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A column of published numbers, and what is asked of ours.

    Attributes:
        key: of our values.
        title: in tables.
        published: method → points gained over the model before tuning, table 2 of arXiv 2603.09692.
        own: what our number is.
        required: rank correlation asked for; None for a column that was not used for calibration.
    """

    key: str
    title: str
    published: Mapping[str, float]
    own: str
    required: float | None = None


def _published(*points: float | None) -> dict[str, float]:
    return {method: value for method, value in zip(METHODS, points, strict=True) if value is not None}


WIN_RATE = "own: final win rate - 1/2, points"
COLUMNS = (
    Column("dpo", "DPO", _published(13.7, 12.7, 12.0, 11.1, 4.6, 3.6, 2.3, 1.6, 1.6), WIN_RATE, required=0.9),
    Column(
        "reward model", "reward model", _published(10.0, 31.2, 33.9, 31.8, 27.8, 28.7, 22.4, 29.7, 23.0),
        "own: accuracy - 1/2, points", required=0.6,
    ),
    Column("ipo", "IPO", _published(10, 16, 13, 15, 12, 14, 13, None, 1), WIN_RATE),
    Column("simpo", "SimPO", _published(15, 18, 18, 15, 17, 18, 10, 1, 1), WIN_RATE),
)  # fmt: skip

Values = Mapping[str, Mapping[str, FloatArray]]
"""Column's key → method → (seeds,) our values."""


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's, of our means over seeds with the published numbers; 95 % bootstrap interval over seeds."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def rank_correlation(column: Column, values: Mapping[str, FloatArray]) -> RankCorrelation:
    """Of the methods that both have; equal published numbers share a rank.

    A resample draws seeds with replacement, the same for all methods.

    >>> column = Column("x", "x", {"random": 1.0, "drts": 2.0, "dts": 0.0}, "own")
    >>> found = {"random": np.array([5.0, 6.0]), "drts": np.array([9.0, 8.0]), "dts": np.array([1.0, 2.0])}
    >>> str(rank_correlation(column, found))
    '1.00 [1.00, 1.00]'
    """
    methods = [method for method in METHODS if method in column.published and method in values]
    ours = np.array([values[method] for method in methods])
    published = np.array([column.published[method] for method in methods])
    seeds = ours.shape[1]
    draws = np.random.default_rng(RESAMPLING_SEED).integers(seeds, size=(RESAMPLES, seeds))
    means = np.stack([ours[:, draw].mean(axis=1) for draw in draws])
    resampled = _correlations(means, published)
    low, high = np.quantile(resampled, (0.025, 0.975))
    return RankCorrelation(float(_correlations(ours.mean(axis=1)[None], published)[0]), float(low), float(high))


def _correlations(means: FloatArray, published: FloatArray) -> FloatArray:
    """(R,) Spearman's rank correlations of rows (R, methods) with the published numbers (methods,)."""
    ours, theirs = stats.rankdata(means, axis=1), stats.rankdata(published)
    ours, theirs = ours - ours.mean(axis=1, keepdims=True), theirs - theirs.mean()
    scale = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs)
    return np.asarray(ours @ theirs / np.maximum(scale, 1e-12))


def verdict(column: Column, found: RankCorrelation) -> str:
    """One line: what was found, what was asked for, whether it is reached.

    >>> verdict(COLUMNS[0], RankCorrelation(0.95, 0.9, 1.0))
    'DPO: rank correlation 0.95 [0.90, 1.00], asked for at least 0.9: reached'
    """
    line = f"{column.title}: rank correlation {found}, "
    if column.required is None:
        return line + "held-out, not used for calibration"
    outcome = "reached" if found.value >= column.required else "not reached"
    return line + f"asked for at least {column.required}: {outcome}"


def points(values: FloatArray) -> str:
    """Mean and 95 % Student interval over seeds of shares, in points.

    >>> points(np.array([0.1, 0.1]))
    '10.0 [10.0, 10.0]'
    """
    found = interval(100 * values)
    return f"{found.mean:.1f} [{found.low:.1f}, {found.high:.1f}]"


def methods_table(values: Values) -> str:
    """A row for each method: published points and ours, column by column."""
    rows = [["method", *(f"{column.title}, {who}" for column in COLUMNS for who in ("published", "own"))]]
    for method in METHODS:
        row = [label(method)]
        for column in COLUMNS:
            row.append(f"{column.published[method]:g}" if method in column.published else "-")
            row.append(points(values[column.key][method]))
        rows.append(row)
    return markdown(rows)


def kinds_table(by_kind: Mapping[str, Mapping[str, FloatArray]]) -> str:
    """A row for each method: accuracy of the reward model on each kind of held-out pairs, less one half, in points."""
    rows = [["reward model", *by_kind]]
    rows += [[label(method), *(points(kind[method]) for kind in by_kind.values())] for method in METHODS]
    return markdown(rows)


def on_policy_table(curves: Mapping[str, Mapping[str, NDArray[np.floating]]]) -> str:
    """A row for each method: win rate and capability at start, middle and end.

    Args:
        curves: method → "win_rate", "capability" → (seeds, rounds + 1).
    """
    names = {"win_rate": "win rate", "capability": "capability"}
    rows = [["on-policy", *(f"{name}, {when}" for name in names.values() for when in ("start", "middle", "end"))]]
    for method, found in curves.items():
        row = [label(method)]
        for name in names:
            last = found[name].shape[1] - 1
            row += [_number(found[name][:, at]) for at in (0, last // 2, last)]
        rows.append(row)
    return markdown(rows)


def _number(values: FloatArray) -> str:
    found = interval(values)
    mean, low, high = (round(number, 3) + 0.0 for number in (found.mean, found.low, found.high))  # no minus zero
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def on_policy_lines(curves: Mapping[str, Mapping[str, NDArray[np.floating]]]) -> list[str]:
    """``apl`` less ``random``, paired by seed, and for each whether win rate rises while capability falls."""
    apl, random = curves["apl"]["win_rate"], curves["random"]["win_rate"]
    area = np.trapezoid(apl - random, axis=1) / (apl.shape[1] - 1)
    lines = [
        f"apl - random, paired by seed: final win rate {interval(apl[:, -1] - random[:, -1])}, area {interval(area)}",
        "spread over seeds of the final win rate (standard deviation): "
        + ", ".join(f"{method} {found['win_rate'][:, -1].std(ddof=1):.4f}" for method, found in curves.items()),
    ]
    for method, found in curves.items():
        rise, fall = (interval(found[name][:, -1] - found[name][:, 0]) for name in ("win_rate", "capability"))
        answer = "yes" if rise.low > 0 and fall.high < 0 else "no"
        lines.append(f"{method}: win rate rises while capability falls: {answer} (win rate {rise}, capability {fall})")
    return lines


def picture(values: Values, curves: Mapping[str, Mapping[str, NDArray[np.floating]]], path: Path) -> None:
    """Write a PNG: ours against the published, a panel a column, and the curves of the on-policy world."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(17, 8.4), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 4)
    for place, column in enumerate(COLUMNS):
        _scatter(figure.add_subplot(grid[0, place]), column, values[column.key])
    texts = {"win_rate": "win rate against the reference", "capability": "capability less the reference's"}
    for place, (name, text) in enumerate(texts.items()):
        axes = figure.add_subplot(grid[1, 2 * place : 2 * place + 2])
        for method, of_method in curves.items():
            band = [interval(point) for point in of_method[name].T]
            rounds = np.arange(len(band))
            axes.plot(rounds, [p.mean for p in band], label=f"{method}, {len(of_method[name])} seeds")
            axes.fill_between(rounds, [p.low for p in band], [p.high for p in band], alpha=0.2, lw=0)
        axes.set(title="world: on-policy", xlabel="round", ylabel=text)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def _scatter(axes: Any, column: Column, values: Mapping[str, FloatArray]) -> None:
    """Ours with intervals over seeds against the published, a point a method; the title has the rank correlation."""
    for method, published in column.published.items():
        found = interval(100 * values[method])
        ends = [[found.mean - found.low], [found.high - found.mean]]
        axes.errorbar(published, found.mean, yerr=ends, fmt="o", ms=4, color="C0")
        axes.annotate(method, (published, found.mean), xytext=(4, 4), textcoords="offset points", fontsize=8)
    used = "held-out" if column.required is None else f"asked for {column.required}"
    axes.set(title=f"{column.title}: {rank_correlation(column, values).value:.2f}, {used}")
    axes.set(xlabel="published gain, points", ylabel=column.own)
    axes.margins(x=0.25, y=0.1)
