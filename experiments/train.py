"""``prefenv train``: an agent learns to acquire, by PPO."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import gymnasium as gym

import prefenv.worlds
from prefenv.llm.settings import LLMSettings
from prefenv.replay.settings import ReplaySettings
from prefenv.synthetic.settings import SyntheticSettings


@dataclass(frozen=True)
class TrainConfig:
    """Train an acquisition policy by PPO and write its weights, for `prefenv compare --agents ppo --ppo-weights FILE`.

    The policy scores pairs by numbers that mean the same in every world, so weights trained in the simulator choose in
    a world of any size. A stopped run goes on from its last checkpoint when it is started again.
    """

    out: Path = Path("runs/train")
    """Folder for the weights (ppo.safetensors), the checkpoint and the TensorBoard events."""
    steps: int = 30_000
    """Environment steps in all; raise it to train an agent further."""
    world: str = "synthetic"
    """World to train in: see `prefenv worlds`."""
    rounds: int = 10
    """Rounds in an episode, each with one label for each prompt."""
    seed: int = 0
    """Of network, rollouts and training worlds."""
    n_envs: int = 16
    """Environments side by side; 1 for the llm world, which holds a model for each."""
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
        ValueError: a number below 1, an unknown world, or a folder that holds training of another configuration.
        ModuleNotFoundError: the package is installed without its extra ``rl``.
    """
    for name in ("steps", "rounds", "n_envs"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)} must be at least 1")
    if config.world == "llm" and config.n_envs > 1:
        raise ValueError(f"n_envs={config.n_envs} would load as many language models: pass --n-envs 1")
    if not 0 <= config.seed < 2**16:
        raise ValueError(f"seed={config.seed} must lie in 0 ... {2**16 - 1}")
    if config.out.exists() and not config.out.is_dir():
        raise ValueError(f"--out {config.out} is a file: name a folder")
    settings = world_settings_of(config.world, config)
    try:
        from agents.learned.training import train_ppo
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"training needs '{error.name}': pip install 'prefenv[rl]'", name=error.name
        ) from error
    _same_configuration(config, settings)

    budget = config.rounds * settings.n_prompts
    worlds = gym.make_vec("PrefAcquire-v0", num_envs=config.n_envs, world=settings, budget=budget)
    return train_ppo(worlds, config.out, config.steps, config.seed, config.progress)


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


def _same_configuration(config: TrainConfig, settings: AnySettings) -> None:
    """Keep the configuration beside the checkpoint, so that training never goes on under another one."""
    file = config.out / "train.json"
    kept = {name: getattr(config, name) for name in ("world", "rounds", "seed", "n_envs")}
    text = json.dumps(kept | {"settings": dataclasses.asdict(settings)}, indent=1)
    if file.exists() and file.read_text() != text:
        raise ValueError(f"{config.out} holds training with other settings (see {file}): name another --out")
    config.out.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
