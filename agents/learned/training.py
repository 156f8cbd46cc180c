"""Training with Stable-Baselines3, in checkpoints, so that a stopped run goes on."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gymnasium.vector import VectorEnv
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, DQN
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from agents.learned import SEEDS_A_RUN, TRAINING_SEEDS
from agents.learned.features import feature_space, pair_features
from agents.learned.network import MaskablePairPolicy, PairPolicy, PairQPolicy, PairScorer, load_scorer, save_scorer
from agents.learned.prompt_ppo import PromptPPO
from agents.learned.scorer import pair_logits
from agents.learned.vec_env import SB3VecEnv
from agents.scores import Score

CHECKPOINTS = 10  # of a training, and as many evaluations
CHECKPOINT = "checkpoint.zip"  # in SB3's own format, which unpickles: go on only in folders of your own
Evaluate = Callable[[Score], Mapping[str, float]]
"""Name → number of what a score does in worlds that are not trained in."""


@dataclass(frozen=True)
class Algorithm:
    """One of Stable-Baselines3's algorithms and how it is set for our environments.

    Attributes:
        make: the class.
        policy: its policy on pair features.
        sequential: wants ``PrefAcquireSequential-v0``, one pair a step; else one pair of each prompt.
        settings: keyword arguments of the class, from the number of environments.
    """

    make: type[BaseAlgorithm]
    policy: Any
    sequential: bool
    settings: Callable[[int], dict[str, Any]]


FROM_NOTHING, FINE_TUNING = 1e-3, 3e-4  # learning rates at the start; the second where weights are given
ROLLOUT_STEPS = 40  # a world's steps between updates: four episodes of ten rounds


def _ppo(n_envs: int) -> dict[str, Any]:
    return {
        "n_steps": ROLLOUT_STEPS, "batch_size": max(ROLLOUT_STEPS * n_envs // 4, 2), "n_epochs": 4, "gamma": 0.95,
        "gae_lambda": 0.9, "ent_coef": 0.0,
    }  # fmt: skip


def _falling(highest: float) -> Callable[[float], float]:
    """Learning rate by the share of the training that is left."""
    return lambda left: highest * max(left, 0.1)


ALGORITHMS: dict[str, Algorithm] = {
    "ppo": Algorithm(PromptPPO, PairPolicy, False, _ppo),
    "a2c": Algorithm(
        A2C, PairPolicy, False,
        lambda _: {"n_steps": 10, "gamma": 0.95, "gae_lambda": 0.9},
    ),
    "maskable-ppo": Algorithm(MaskablePPO, MaskablePairPolicy, True, _ppo),
    "dqn": Algorithm(
        DQN, PairQPolicy, True,
        lambda _: {
            "buffer_size": 20_000, "learning_starts": 500, "train_freq": 4, "gradient_steps": 2, "batch_size": 64,
            "target_update_interval": 500, "gamma": 0.99,
        },
    ),
}  # fmt: skip


class _Progress(BaseCallback):
    """Saves the model and evaluates it now and then, each file whole or not at all."""

    def __init__(self, folder: Path, steps: int, start: PairScorer | None, evaluate: Evaluate | None) -> None:
        super().__init__()
        self._folder, self._every = folder, max(steps // CHECKPOINTS, 1)
        self._start, self._evaluate = start, evaluate
        self._done = 0

    def _on_training_start(self) -> None:
        self._done = self.num_timesteps // self._every
        if self.num_timesteps == 0:
            self._measure()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps // self._every > self._done:
            self._done = self.num_timesteps // self._every
            self._measure()
            with whole_file(self._folder / CHECKPOINT) as partial:
                self.model.save(partial)

    def _on_training_end(self) -> None:
        self._measure()

    def _measure(self) -> None:
        if self._evaluate is None:
            return
        scorer: PairScorer = self.model.policy.scorer  # type: ignore[union-attr, assignment]
        found = self._evaluate(torch_score(halfway(self._start, scorer)))
        for name, value in found.items():
            self.logger.record(f"held_out/{name}", value)
        self.logger.dump(self.num_timesteps)
        append_line(self._folder / "curve.jsonl", {"steps": self.num_timesteps, **found})


def append_line(path: Path, entry: Mapping[str, Any]) -> None:
    """Add a JSON line to a file; a last line that a crash cut short is dropped."""
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dict(entry)) + "\n")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes ``path`` when all is written: a crash leaves the old file."""
    partial = path.with_name(f"partial-{path.name}")
    yield partial
    os.replace(partial, path)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Networks this small lose more to threads than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def halfway(start: PairScorer | None, scorer: PairScorer) -> PairScorer:
    """The mean of the weights before and after reinforcement learning; the latter where it began from nothing.

    It keeps more of what was known of worlds that reinforcement learning does not meet, such as large pools [the idea
    is that of arXiv 2109.01903].
    """
    if start is None:
        return scorer
    mean = PairScorer()
    after = scorer.state_dict()
    mean.load_state_dict({name: (value + after[name].cpu()) / 2 for name, value in start.state_dict().items()})
    return mean


def torch_score(scorer: PairScorer) -> Score:
    """A network in training as a score, by the arithmetic that its saved weights will be read with."""
    weights = {name: value.detach().cpu().numpy().copy() for name, value in scorer.state_dict().items()}
    return lambda observation, _: pair_logits(pair_features(observation), weights)


def train_agent(
    worlds: VectorEnv,
    out: str | Path,
    steps: int,
    algorithm: str = "ppo",
    seed: int = 0,
    start: str | Path | None = None,
    evaluate: Evaluate | None = None,
    progress: bool = True,
    device: str = "cpu",
) -> Path:
    """Train a pair scorer by reinforcement learning and write its weights.

    Args:
        worlds: vector environment in the form that the algorithm wants; it is closed at the end.
        out: folder for ``checkpoint.zip`` (a stopped or shorter run goes on from it), ``tensorboard/``,
            ``curve.jsonl`` (what ``evaluate`` found) and ``ALGORITHM.safetensors``.
        steps: environment steps in all, those of an earlier part included.
        algorithm: a key of :data:`ALGORITHMS`.
        seed: of network, rollouts and worlds.
        start: weights to begin from; those of a network drawn at random when None. With them, the weights that are
            evaluated and written are :func:`halfway` between these and what they have become.
        evaluate: called now and then.
        progress: show a bar.
        device: of the network, as torch names it; "auto" is a GPU where there is one.

    Returns:
        path of the weights.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    begun = None if start is None else load_scorer(start)
    envs = SB3VecEnv(worlds, pair_features, feature_space(worlds.single_observation_space))
    model = _model(ALGORITHMS[algorithm], envs, folder, seed, begun, device)
    envs.seed(TRAINING_SEEDS + seed * SEEDS_A_RUN + model.num_timesteps)
    left = steps - model.num_timesteps
    if left > 0:
        with one_thread():
            model.learn(
                left, _Progress(folder, steps, begun, evaluate), progress_bar=progress, reset_num_timesteps=False,
                tb_log_name=algorithm,
            )  # fmt: skip
    weights = folder / f"{algorithm}.safetensors"
    with whole_file(folder / CHECKPOINT) as partial:
        model.save(partial)
    with whole_file(weights) as partial:
        note = f"{algorithm}, {model.num_timesteps} steps, seed {seed}" + ("" if begun is None else ", after imitation")
        save_scorer(halfway(begun, model.policy.scorer), partial, note=note)  # type: ignore[union-attr, arg-type]
    envs.close()
    return weights


def _model(
    spec: Algorithm, envs: SB3VecEnv, folder: Path, seed: int, begun: PairScorer | None, device: str
) -> BaseAlgorithm:
    """The model of the folder's checkpoint, or a new one."""
    tensorboard = str(folder / "tensorboard")
    if (folder / CHECKPOINT).is_file():
        model = spec.make.load(folder / CHECKPOINT, env=envs, device=device, tensorboard_log=tensorboard)
        if isinstance(model, DQN):
            model.learning_starts += model.num_timesteps  # the replay buffer is not kept, and fills again first
        return model
    rate = _falling(FROM_NOTHING if begun is None else FINE_TUNING)
    model = spec.make(
        spec.policy, envs, seed=seed, device=device, tensorboard_log=tensorboard, learning_rate=rate,
        **spec.settings(envs.num_envs),
    )  # type: ignore[call-arg]  # fmt: skip
    if begun is not None:
        model.policy.scorer.load_state_dict(begun.state_dict())  # type: ignore[union-attr, operator]
    return model
