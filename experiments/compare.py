"""``prefenv compare``: worlds × agents × seeds, paired by seed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from tqdm import tqdm

import agents as agent_registry
import prefenv.worlds
from agents.learned.scorer import SHIPPED
from experiments import report, tensorboard
from experiments.results import Results, Run, only_writer, require_compared_seeds
from experiments.train import TrainConfig, train, world_settings_of
from prefenv.llm.settings import LLMSettings
from prefenv.protocols import World
from prefenv.replay.settings import ReplaySettings
from prefenv.spaces import n_pairs
from prefenv.synthetic.settings import SyntheticSettings

CURVES = (
    "win_rate", "win_rate_low", "win_rate_high", "win_rate_second", "win_rate_length_controlled", "capability", "kl",
    "posterior_accuracy",
)  # fmt: skip


@dataclass(frozen=True)
class CompareConfig:
    """Compare agents on worlds, paired by seed: the same seed is the same world for every agent.

    Writes to the folder --out: results.jsonl (one line for each run, finished or failed), table.md, win_rate.png,
    tensorboard/, and for worlds of text the acquired preferences. Started again with the same --out, it goes on where
    it was stopped, and adds agents, seeds or worlds that are new; finished runs are not repeated.
    """

    world: tuple[str, ...] = ("synthetic",)
    """One or more of `prefenv worlds`: synthetic, active-ultrafeedback, on-policy, replay (with --pools), llm."""
    agents: tuple[str, ...] = ("random", "dts", "drts", "deltaucb", "infomax", "maxmin")
    """One or more of `prefenv agents`. Differences are to `random`, headroom is a share of `oracle-greedy`'s."""
    seeds: int = 10
    """How many seeds; the unit over which intervals are taken."""
    first_seed: int = 0
    """Seeds are first_seed, first_seed + 1, ..."""
    rounds: int = 10
    """Rounds in an episode, each with one label for each prompt, or as many as labels_per_round says."""
    labels_per_round: int | None = None
    """Labels in a round, anywhere in the pool; without, one for each prompt. For methods that choose prompts."""
    out: Path = Path("runs/compare")
    """Folder for everything that is written."""
    ppo_weights: Path | None = None
    """Weights for the agent `ppo`, from `prefenv train`. Without, it is trained first: in the simulator as it is set
    here, for as many rounds, on seeds that are never compared."""
    ppo_steps: int = 30_000
    """Environment steps of that training."""
    retry_failed: bool = False
    """Run the failed ones again too."""
    synthetic: SyntheticSettings = field(default_factory=SyntheticSettings)
    """Settings of the world synthetic; the other simulated worlds are presets and stay as they are."""
    llm: LLMSettings = field(default_factory=LLMSettings)
    """Settings of the language model world."""
    replay: ReplaySettings = field(default_factory=ReplaySettings)
    """Settings of the replay world; its table is --pools."""
    pools: Path | None = None
    """Table of the world replay: a Parquet file, as `prefenv pools` makes it."""


@dataclass(frozen=True)
class _Cell:
    world: str
    agent: str
    seed: int


class _Comparison:
    """The worlds in memory, the folder, and what has been run."""

    def __init__(self, config: CompareConfig, results: Results) -> None:
        self.config, self.results = config, results
        self._worlds: dict[str, World] = {}
        self._weights: Path | None = None
        self._tensorboard = tensorboard.available()

    def cells(self) -> list[_Cell]:
        """What is left to run, seed by seed, so that a stopped comparison is still paired."""
        config = self.config
        every = [
            _Cell(world, agent, seed)
            for seed in range(config.first_seed, config.first_seed + config.seeds)
            for world in config.world
            for agent in config.agents
        ]
        return [cell for cell in every if not self._done(cell)]

    def _done(self, cell: _Cell) -> bool:
        run = self.results.runs.get((cell.world, cell.agent, cell.seed))
        return run is not None and (run.status == "finished" or not self.config.retry_failed)

    def weights(self) -> Path:
        """The weights for ``ppo``: named, trained here before, or trained now in the simulator as it is set."""
        if self._weights is None:
            trained = self.config.out / f"ppo_{self.config.ppo_steps}_steps" / "ppo.safetensors"
            if self.config.ppo_weights is not None:
                self._weights = self.config.ppo_weights
            elif trained.exists():
                self._weights = trained
            else:
                print(f"training ppo in the simulator, {self.config.ppo_steps} steps", flush=True)
                config = TrainConfig(
                    out=trained.parent,
                    world="synthetic",
                    imitation=0,
                    steps=self.config.ppo_steps,
                    rounds=self.config.rounds,
                    synthetic=self.config.synthetic,
                    device="cpu",
                    held_out=False,
                )
                self._weights = train(config)
        return self._weights

    def weights_digest(self, agent: str) -> str | None:
        """What tells apart the weights of a learned agent."""
        spec = agent_registry.spec(agent)
        if not spec.learned:
            return None
        return hashlib.sha256((self.weights() if spec.needs_weights else SHIPPED).read_bytes()).hexdigest()[:16]

    def require_same_weights(self) -> None:
        """Refuse to mix runs of a learned agent under different weights.

        Raises:
            ValueError: the folder holds such runs, or the weights cannot be read.
        """
        for agent in self.config.agents:
            if not agent_registry.spec(agent).learned:
                continue
            settings = self._weights_of(agent)
            agent_registry.make(agent, None, None, **settings)  # weights that cannot be read are told now
            digest = self.weights_digest(agent)
            others = [
                run
                for run in self.results.runs.values()
                if (run.agent, run.status) == (agent, "finished") and run.weights != digest
            ]
            if others:
                raise ValueError(f"{self.results.path} holds runs of '{agent}' with other weights: name another --out")

    def run(self, cell: _Cell, bar: tqdm) -> Run:
        """One episode, whatever comes of it."""
        started = time.perf_counter()
        try:
            return self._episode(cell, bar, started)
        except Exception as error:
            message = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
            seconds = time.perf_counter() - started
            return Run(cell.world, cell.agent, cell.seed, "failed", spent=[], curves={}, seconds=seconds, error=message)

    def build(self, world: str) -> None:
        """Make a world, once for all its runs.

        Raises:
            ValueError: it cannot be made, or cannot serve an agent.
        """
        settings = world_settings_of(world, self.config)
        spec = prefenv.worlds.world_spec(world)
        self._worlds[world] = spec.build(settings, spec.key)
        if "oracle-greedy" in self.config.agents and self._worlds[world].gain is None:
            raise ValueError(f"oracle-greedy needs the truth, which world '{world}' does not know: leave the agent out")
        n, pairs = self._worlds[world].n_prompts, n_pairs(self._worlds[world].n_candidates)
        k = self.config.labels_per_round or n
        if k > n * pairs:
            raise ValueError(f"labels_per_round={k}, but a pool of world '{world}' has {n * pairs} pairs")
        for agent in self.config.agents:
            agent_registry.recipe(agent).require_prompts(n, k)

    def _env(self, cell: _Cell) -> gym.Env:
        world, k = self._worlds[cell.world], self.config.labels_per_round
        form: dict[str, Any] = {} if k is None else {"labels_per_round": k}
        return gym.make(
            "PrefAcquireBudget-v0" if form else "PrefAcquire-v0",
            world=world,
            budget=self.config.rounds * (k or world.n_prompts),
            privileged=agent_registry.spec(cell.agent).privileged,
            recipe=agent_registry.recipe(cell.agent),
            **form,
        )

    def _agent(self, cell: _Cell, env: gym.Env) -> Any:
        settings = self._weights_of(cell.agent)
        return agent_registry.make(cell.agent, action_space=env.action_space, seed=cell.seed, **settings)

    def _weights_of(self, agent: str) -> dict[str, str]:
        """The setting that an agent needs which does not come with its own weights."""
        return {"weights": str(self.weights())} if agent_registry.spec(agent).needs_weights else {}

    def _episode(self, cell: _Cell, bar: tqdm, started: float) -> Run:
        env = self._env(cell)
        agent = self._agent(cell, env)
        log = _Log(self.config.out, cell, self._tensorboard)
        choosing, done, state, start = 0.0, False, None, np.ones(1, dtype=bool)
        bar.set_postfix_str(f"{cell.world} {cell.agent} seed {cell.seed}: begins", refresh=False)
        bar.update(0)
        try:
            observation, info = env.reset(seed=cell.seed)
            log.add(info)
            while not done:
                before = time.perf_counter()
                action, state = agent.predict(observation, state, episode_start=start)
                choosing += time.perf_counter() - before
                start = np.zeros(1, dtype=bool)
                observation, _, done, _, info = env.step(action)
                log.add(info)
                bar.update()
                bar.set_postfix_str(
                    f"{cell.world} {cell.agent} seed {cell.seed}: win rate {info['win_rate']:.3f}", refresh=False
                )
        finally:
            log.close()
        return Run(
            cell.world, cell.agent, cell.seed, "finished", spent=log.spent, curves=log.curves,
            seconds_choosing=choosing, seconds=time.perf_counter() - started, labels=info["labels"],
            weights=self.weights_digest(cell.agent),
        )  # fmt: skip


class _Log:
    """Curves, TensorBoard events and acquired texts of one run, written as they come."""

    def __init__(self, out: Path, cell: _Cell, events: bool) -> None:
        self.spent: list[int] = []
        self.curves: dict[str, list[float]] = {}
        folder = out / "tensorboard" / cell.world / cell.agent / f"seed_{cell.seed}"
        self._writer = tensorboard.fresh_writer(folder) if events else None
        self._texts = out / "preferences" / f"{cell.world}-{cell.agent}-seed_{cell.seed}.jsonl"
        self._texts.unlink(missing_ok=True)

    def add(self, info: dict[str, Any]) -> None:
        self.spent.append(info["spent"])
        for name in CURVES:
            if name in info:  # a world may not measure all
                self.curves.setdefault(name, []).append(float(info[name]))
        if self._writer is not None:
            tensorboard.write_point(self._writer, info)
            self._writer.flush()
        if info.get("rows"):
            self._texts.parent.mkdir(parents=True, exist_ok=True)
            with self._texts.open("a", encoding="utf-8") as file:
                for row in info["rows"]:
                    file.write(json.dumps({"round": len(self.spent) - 1, **row}, ensure_ascii=False) + "\n")

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def compare(config: CompareConfig) -> int:
    """Run what is left of the comparison, then write and print its table.

    Returns:
        0, or 1 when a run failed.

    Raises:
        ValueError: an unknown agent or world, a number that cannot be, or a folder with results that do not fit.
    """
    config = _by_key(config)
    settings = _checked(config)
    with only_writer(config.out):
        results = Results(config.out)
        for world in config.world:
            results.require_same_settings(world, settings[world])
        comparison = _Comparison(config, results)
        comparison.require_same_weights()
        cells = comparison.cells()
        total = len(config.world) * len(config.agents) * config.seeds
        print(f"{total} runs, {total - len(cells)} of them here already, in {config.out}", flush=True)
        for world in dict.fromkeys(cell.world for cell in cells):
            comparison.build(world)  # a world that cannot be made is told before anything is written
            results.keep_settings(world, settings[world])
        with tqdm(total=len(cells) * config.rounds, unit="round", dynamic_ncols=True) as bar:
            for done, cell in enumerate(cells, start=1):
                run = comparison.run(cell, bar)
                results.add(run)
                bar.n = done * config.rounds
                if run.status == "failed":
                    bar.write(
                        f"failed: {cell.world} {cell.agent} seed {cell.seed}: {(run.error or '').splitlines()[0]}"
                    )
        return _conclude(config, results)


def _by_key(config: CompareConfig) -> CompareConfig:
    """The same with keys in the place of aliases.

    Raises:
        ValueError: an unknown agent or world.
    """
    return dataclasses.replace(
        config,
        world=tuple(prefenv.worlds.world_spec(world).key for world in config.world),
        agents=tuple(agent_registry.spec(agent).key for agent in config.agents),
    )


def _checked(config: CompareConfig) -> dict[str, dict[str, Any]]:
    """The settings of each world, once everything asked for has been found possible."""
    for name in ("seeds", "rounds", "ppo_steps", "labels_per_round"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    require_compared_seeds(config.first_seed, config.seeds)
    if config.out.exists() and not config.out.is_dir():
        raise ValueError(f"--out {config.out} is a file: name a folder")
    for name in ("agents", "world"):
        if len(set(getattr(config, name))) < len(getattr(config, name)) or not getattr(config, name):
            raise ValueError(f"{name} {list(getattr(config, name))}: name at least one, and none twice")
    if config.ppo_weights is not None and not config.ppo_weights.is_file():
        raise FileNotFoundError(f"no weights at '{config.ppo_weights}': `prefenv train` makes them")
    return {
        world: {
            "rounds": config.rounds,
            **({"labels_per_round": config.labels_per_round} if config.labels_per_round else {}),
            **_settings_of(world, config),
        }
        for world in config.world
    }


def _settings_of(world: str, config: CompareConfig) -> dict[str, Any]:
    """The settings of a world, with what its table holds in the place of where it lies."""
    settings = world_settings_of(world, config)
    if not isinstance(settings, ReplaySettings):
        return dataclasses.asdict(settings)
    return dataclasses.asdict(settings) | {"pools": prefenv.worlds.build_world(settings).digest}


def _conclude(config: CompareConfig, results: Results) -> int:
    """Table, picture, TensorBoard means and the closing lines."""
    asked = {
        (world, agent, seed)
        for world in config.world
        for agent in config.agents
        for seed in range(config.first_seed, config.first_seed + config.seeds)
    }
    runs = [run for cell, run in results.runs.items() if cell in asked]
    failed = [run for run in runs if run.status == "failed"]
    text = report.table(runs, config.world, config.agents)
    (config.out / "table.md").write_text(text + "\n", encoding="utf-8")
    report.picture(runs, config.world, config.agents, config.out / "win_rate.png")
    print(f"\n{text}\n\ndifferences are paired by seed, with 95 % intervals over seeds (none with one seed)")
    print(f"picture:     {config.out / 'win_rate.png'}")
    if tensorboard.available():
        _write_means(config, runs)
        print(f"TensorBoard: tensorboard --logdir {config.out / 'tensorboard'}")
    else:
        print("TensorBoard: not installed, so no events were written: pip install 'prefenv[rl]'")
    for run in failed:
        print(f"failed: {run.world} {run.agent} seed {run.seed}: {(run.error or '').splitlines()[0]}")
    if failed:
        print(f"{len(failed)} runs failed, their traces are in {results.path}; --retry-failed runs them again")
    return 1 if failed else 0


def _write_means(config: CompareConfig, runs: list[Run]) -> None:
    folder = config.out / "tensorboard"
    tensorboard.write_layout(folder)
    for world in config.world:
        for agent in config.agents:
            by_seed = report.finished(runs, world, agent)
            if by_seed:
                spent, points = report.mean_curve(by_seed)
                mean, low, high = np.array([(p.mean, p.low, p.high) for p in points]).T
                low, high = (np.where(np.isnan(end), mean, end) for end in (low, high))
                tensorboard.write_mean(
                    folder / world / agent / "mean", spent.tolist(), list(mean), list(low), list(high)
                )
