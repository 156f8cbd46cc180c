"""Training with Stable-Baselines3's PPO, in checkpoints, so that a stopped run goes on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from gymnasium.vector import VectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from agents.learned import TRAINING_SEEDS
from agents.learned.features import feature_space, pair_features
from agents.learned.network import PairPolicy, save_scorer
from agents.learned.vec_env import SB3VecEnv

ROLLOUT_STEPS = 40  # a world's steps between updates: four episodes of ten rounds
DISCOUNT = 0.9  # an early gain is enjoyed for longer: about the area under a curve of ten rounds
CHECKPOINT_STEPS = 10_000


class _Checkpoints(BaseCallback):
    """Saves the model now and then, each file whole or not at all."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path, self._saved_at = path, 0

    def _on_training_start(self) -> None:
        self._saved_at = self.num_timesteps

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps - self._saved_at >= CHECKPOINT_STEPS:
            self._saved_at = self.num_timesteps
            with whole_file(self._path) as partial:
                self.model.save(partial)


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


def train_ppo(
    worlds: VectorEnv,
    out: str | Path,
    steps: int,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Train a pair scorer by PPO and write its weights.

    Args:
        worlds: environments with one pair a prompt, as ``gymnasium.make_vec`` makes them; they are closed at the end.
        out: folder for ``checkpoint.zip`` (a stopped or shorter run goes on from it), ``tensorboard/`` and
            ``ppo.safetensors``.
        steps: environment steps in all, those of an earlier part included.
        seed: of network, rollouts and worlds.
        progress: show a bar.

    Returns:
        path of the weights.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.zip"
    n_envs = worlds.num_envs
    envs = SB3VecEnv(worlds, pair_features, feature_space(worlds.single_observation_space))
    if checkpoint.is_file():
        model = PPO.load(checkpoint, env=envs, device="cpu")
    else:
        model = PPO(
            PairPolicy, envs, seed=seed, device="cpu", n_steps=ROLLOUT_STEPS, batch_size=ROLLOUT_STEPS * n_envs // 4,
            n_epochs=8, gamma=DISCOUNT, gae_lambda=DISCOUNT, learning_rate=1e-3, ent_coef=0.0,
            tensorboard_log=str(folder / "tensorboard"),
        )  # fmt: skip
    envs.seed(TRAINING_SEEDS + (seed * n_envs) + model.num_timesteps)
    left = steps - model.num_timesteps
    if left > 0:
        with one_thread():
            model.learn(
                left, _Checkpoints(checkpoint), progress_bar=progress, reset_num_timesteps=False, tb_log_name="ppo"
            )
    assert isinstance(model.policy, PairPolicy)
    weights = folder / "ppo.safetensors"
    with whole_file(checkpoint) as partial:
        model.save(partial)
    with whole_file(weights) as partial:
        save_scorer(model.policy.scorer, partial, note=f"PPO, {model.num_timesteps} steps, seed {seed}")
    envs.close()
    return weights
