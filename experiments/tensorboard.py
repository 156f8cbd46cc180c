"""TensorBoard events of a comparison: the same tags for every agent, and a layout that overlays the agents."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

TAGS = {
    "win_rate": "policy/win_rate",
    "win_rate_second": "policy/win_rate_second_judge",
    "win_rate_length_controlled": "policy/win_rate_length_controlled",
    "capability": "policy/capability",
    "kl": "policy/kl",
    "posterior_accuracy": "posterior/accuracy",
    "label_agreement": "labels/agreement",
}
LAYOUT = {
    "agents, mean over seeds": {
        "win rate against labels": ["Multiline", ["over_seeds/win_rate$"]],
        "win rate with its 95 % interval": [
            "Margin", ["over_seeds/win_rate", "over_seeds/win_rate_low", "over_seeds/win_rate_high"]
        ],
    },
    "agents, every seed": {
        name: ["Multiline", [f"{tag}$"]]
        for name, tag in {
            "win rate": TAGS["win_rate"], "win rate, second judge": TAGS["win_rate_second"],
            "capability": TAGS["capability"], "KL to the reference": TAGS["kl"],
            "posterior accuracy": TAGS["posterior_accuracy"],
        }.items()
    },
}  # fmt: skip


def available() -> bool:
    """Whether TensorBoard events can be written here (extra ``rl``)."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def fresh_writer(folder: Path) -> SummaryWriter:
    """A writer on an empty folder: events of a run that was cut off are dropped."""
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)
    return SummaryWriter(str(folder))


def write_point(writer: SummaryWriter, info: dict[str, Any]) -> None:
    """The scalars of one step, at the number of labels spent."""
    for name, tag in TAGS.items():
        if name in info:
            writer.add_scalar(tag, info[name], info["spent"])


def write_layout(folder: Path) -> None:
    """The custom-scalars layout, in a run of its own."""
    writer = fresh_writer(folder / "layout")
    writer.add_custom_scalars(LAYOUT)
    writer.close()


def write_mean(folder: Path, spent: list[int], mean: list[float], low: list[float], high: list[float]) -> None:
    """Mean win rate over seeds with its interval, as a run of its own."""
    writer = fresh_writer(folder)
    for x, *values in zip(spent, mean, low, high, strict=True):
        for tag, value in zip(("win_rate", "win_rate_low", "win_rate_high"), values, strict=True):
            writer.add_scalar(f"over_seeds/{tag}", value, x)
    writer.close()
