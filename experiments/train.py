"""``prefenv train``: an agent learns to acquire."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

import prefenv.worlds
from agents.learned import SEEDS_A_RUN, TRAINING_SEEDS
from experiments.held_out import RL_RANGES, HeldOut
from prefenv.llm.settings import LLMSettings
from prefenv.replay.settings import ReplaySettings
from prefenv.synthetic.ranges import POOLS_OF_MANY, Ranges
from prefenv.synthetic.settings import SyntheticSettings
from prefenv.training_worlds import TrainingWorlds
from prefenv.vector import PrefAcquireVectorEnv

DRAWN = "drawn"
PRESETS = {"quick": (80, 25_000), "full": (1200, 600_000)}
"""Preset → episodes of imitation, environment steps. ``quick`` is a few minutes of two cores, ``full`` half an hour."""
MOST_LESSONS = 5000  # episodes of imitation, of a thousand seeds each
WORLDS_EACH = 8  # that share drawn settings


@dataclass(frozen=True)
class TrainConfig:
    """Train an acquisition policy and write its weights, for `prefenv compare --agents ppo --ppo-weights FILE`.

    First it learns by imitation to foresee the gain that a label brings, then by reinforcement learning what pays over
    an episode. The policy scores pairs by numbers that mean the same in every world, so weights trained in the
    simulator choose in a world of any size. A stopped run goes on from its last checkpoint when it is started again.
    """

    out: Path = Path("runs/train")
    """Folder for the weights (named by the algorithm), checkpoints, curve.jsonl and the TensorBoard events."""
    preset: Literal["quick", "full"] = "quick"
    """How long: quick is a few minutes on two cores, full is how the shipped weights were made."""
    algorithm: Literal["ppo", "a2c", "maskable-ppo", "dqn"] = "ppo"
    """ppo and a2c choose a pair of every prompt at once; maskable-ppo and dqn one pair a step, in a named --world."""
    world: str = DRAWN
    """Worlds to train in: drawn, each episode with settings from wide ranges; or one of `prefenv worlds`."""
    steps: int | None = None
    """Environment steps of reinforcement learning in all; raise it to train an agent further. Without, the preset's."""
    imitation: int | None = None
    """Episodes of imitation before that, in drawn worlds; 0 begins from a random network. Without, the preset's."""
    rounds: int = 10
    """Rounds in an episode, each with one label for each prompt."""
    seed: int = 0
    """Of network, rollouts and training worlds."""
    n_envs: int | None = None
    """Environments side by side. Without: 128 drawn ones, 16 of a named world, 1 of llm (each holds a model)."""
    device: str = "auto"
    """Of the network: cpu, cuda, or auto, a GPU where there is one. Another device rounds otherwise."""
    held_out: bool = True
    """Evaluate now and then in simulated worlds that are not trained in; a minute or two in all."""
    progress: bool = True
    """Show a progress bar."""
    synthetic: SyntheticSettings = field(default_factory=SyntheticSettings)
    """Settings of the simulator."""
    llm: LLMSettings = field(default_factory=LLMSettings)
    """Settings of the language model world."""
    replay: ReplaySettings = field(default_factory=ReplaySettings)
    """Settings of the replay world; its table is --pools."""
    pools: Path | None = None
    """Table of the world replay: a Parquet file, as `prefenv pools` makes it."""


def train(config: TrainConfig) -> Path:
    """Train and return the path of the weights.

    Raises:
        ValueError: a number that cannot be, an unknown world, an algorithm that does not fit the world, or a folder
            that holds training of another configuration.
        ModuleNotFoundError: the package is installed without its extra ``rl``.
    """
    imitation, steps = (
        preset if asked is None else asked
        for preset, asked in zip(PRESETS[config.preset], (config.imitation, config.steps), strict=True)
    )
    _check(config, imitation, steps)
    drawn = config.world == DRAWN
    settings = None if drawn else world_settings_of(config.world, config)
    try:
        from agents.learned.imitation import imitate
        from agents.learned.training import ALGORITHMS, train_agent
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"training needs '{error.name}': pip install 'prefenv[rl]'", name=error.name
        ) from error
    sequential = ALGORITHMS[config.algorithm].sequential
    if drawn and sequential:
        raise ValueError(
            f"{config.algorithm} takes one pair a step, and drawn worlds take a pair of every prompt: "
            "pass --world synthetic, or --algorithm ppo"
        )
    _same_configuration(config, settings, imitation)
    held_out = HeldOut() if config.held_out else None
    rest: dict[str, Any] = {
        "seed": config.seed, "evaluate": held_out, "progress": config.progress, "device": config.device,
    }  # fmt: skip
    start = None
    if imitation:
        start = imitate(_lessons(config.seed), config.out, imitation, **rest)
    worlds = _drawn_worlds(config) if settings is None else _named_worlds(config, settings, sequential)
    weights = train_agent(worlds, config.out, steps, config.algorithm, start=start, **rest)
    curve = config.out / "curve.jsonl"
    if curve.exists():  # of this run, or of the one that it goes on from
        curve_picture(curve, config.out / "curve.png")
    return weights


def curve_picture(curve: Path, path: Path) -> None:
    """Write a PNG: what the policy in training did in held-out worlds, by episodes of imitation and then by steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in curve.read_text(encoding="utf-8").splitlines()]
    parts = [("imitation", "episodes of imitation"), ("steps", "environment steps of reinforcement learning")]
    there = [(key, label) for key, label in parts if any(key in line for line in lines)]
    figure = Figure(figsize=(4.5 * len(there), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(there), squeeze=False, sharey=True)[0]
    for axes, (key, label) in zip(panels, there, strict=True):
        for number, name in enumerate(sorted(set().union(*lines) - {key for key, _ in parts})):
            rows = [line for line in lines if key in line and name in line]
            unit, scale = ("tenths of the headroom", 10) if name == "drawn" else ("points ahead of random", 1)
            values = [scale * row[name] for row in rows]
            axes.plot([row[key] for row in rows], values, f"C{number}o-", ms=3, label=f"{name}, {unit}")
        axes.set_xlabel(label)
        axes.axhline(0.0, color="black", lw=0.8, ls=":")
    panels[0].set_ylabel("held-out worlds")
    panels[-1].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def _check(config: TrainConfig, imitation: int, steps: int) -> None:
    for name, value, least in (("steps", steps, 1), ("imitation", imitation, 0), ("rounds", config.rounds, 1)):
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
    if config.n_envs is not None and config.n_envs < 1:
        raise ValueError(f"n_envs={config.n_envs} must be at least 1")
    if config.world == "llm" and (config.n_envs or 1) > 1:
        raise ValueError(f"n_envs={config.n_envs} would load as many language models: pass --n-envs 1")
    if config.world == DRAWN and (config.n_envs or WORLDS_EACH) % WORLDS_EACH:
        raise ValueError(f"n_envs={config.n_envs}: drawn worlds come {WORLDS_EACH} at a time, so pass a multiple of it")
    if not 0 <= config.seed < 100:
        raise ValueError(
            f"seed={config.seed} must lie in 0 ... 99: each has ten million worlds of its own to draw from"
        )
    for name, value, most in (("steps", steps, SEEDS_A_RUN // 2), ("imitation", imitation, MOST_LESSONS)):
        if value >= most:
            raise ValueError(f"{name}={value} must be below {most}: the seeds of a training would run out")
    if config.out.exists() and not config.out.is_dir():
        raise ValueError(f"--out {config.out} is a file: name a folder")


def _n_envs(config: TrainConfig) -> int:
    return config.n_envs or {DRAWN: 128, "llm": 1}.get(config.world, 16)


def _drawn_worlds(config: TrainConfig) -> TrainingWorlds:
    groups = _n_envs(config) // WORLDS_EACH
    return TrainingWorlds(RL_RANGES, groups, WORLDS_EACH, config.rounds)


def _named_worlds(config: TrainConfig, settings: AnySettings, sequential: bool) -> VectorEnv:
    n_envs = _n_envs(config)
    form = "PrefAcquireSequential-v0" if sequential else "PrefAcquire-v0"
    return gym.make_vec(form, num_envs=n_envs, world=settings, budget=config.rounds * settings.n_prompts)


def _lessons(seed: int) -> Callable[[int], list[tuple[VectorEnv, int]]]:
    """Worlds of each episode of imitation: eight settings of small pools and three of large ones."""

    def lessons(number: int) -> list[tuple[VectorEnv, int]]:
        first = TRAINING_SEEDS + SEEDS_A_RUN * seed + SEEDS_A_RUN // 2 + (SEEDS_A_RUN // 2 // MOST_LESSONS) * number
        rng = np.random.default_rng(first)
        rounds = int(rng.integers(4, 16))
        kinds = [(Ranges(), 8)] * 8 + [(POOLS_OF_MANY, 3)] * 3
        worlds: list[tuple[VectorEnv, int]] = []
        for place, (ranges, n_worlds) in enumerate(kinds):
            settings = ranges.draw(rng)
            envs = PrefAcquireVectorEnv(settings, n_worlds, rounds * settings.n_prompts, privileged=True)
            worlds.append((envs, first + 8 * place))
        return worlds

    return lessons


class OfWorlds(Protocol):
    """A command's settings of the worlds that can be set."""

    @property
    def synthetic(self) -> SyntheticSettings:
        """Of the simulator."""

    @property
    def llm(self) -> LLMSettings:
        """Of the language model world."""

    @property
    def replay(self) -> ReplaySettings:
        """Of the replay world."""

    @property
    def pools(self) -> Path | None:
        """Its table."""


AnySettings = SyntheticSettings | LLMSettings | ReplaySettings


def world_settings_of(key: str, config: OfWorlds) -> AnySettings:
    """The settings that belong to a world's key: presets are as they are, the other worlds as they are set.

    Raises:
        ValueError: no such world.
    """
    spec = prefenv.worlds.world_spec(key)
    pools = config.replay.pools if config.pools is None else str(config.pools)
    replay = dataclasses.replace(config.replay, pools=pools)
    given: dict[str, AnySettings] = {"synthetic": config.synthetic, "llm": config.llm, "replay": replay}
    return given.get(spec.key, spec.settings)


def _same_configuration(config: TrainConfig, settings: AnySettings | None, imitation: int) -> None:
    """Keep the configuration beside the checkpoint, so that training never goes on under another one."""
    file = config.out / "train.json"
    kept: dict[str, Any] = {name: getattr(config, name) for name in ("world", "algorithm", "rounds", "seed")}
    kept["n_envs"] = _n_envs(config)
    text = json.dumps(
        kept | {"imitation": imitation, "settings": None if settings is None else dataclasses.asdict(settings)},
        indent=1,
    )
    if file.exists() and file.read_text() != text:
        raise ValueError(f"{config.out} holds training with other settings (see {file}): name another --out")
    config.out.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
