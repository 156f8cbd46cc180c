"""A method through one episode of many simulated worlds at once, and the reward model that its labels make."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

import agents
from experiments.reward_model import fit_reward_model, held_out_pairs, ranking_accuracy
from prefenv.synthetic.settings import SyntheticSettings
from prefenv.types import FloatArray
from prefenv.vector import PrefAcquireVectorEnv

CURVES = ("win_rate", "capability")


@dataclass(frozen=True, eq=False)
class Walk:
    """What B episodes of T rounds gave.

    Attributes:
        curves: name → (B, T + 1), before the first round and after each.
        chosen: (B, labels asked, d) embedding of the preferred response of each label.
        rejected: likewise of the other; the same one where there was no label.
        seconds_choosing: for all worlds together.
    """

    curves: dict[str, FloatArray]
    chosen: FloatArray
    rejected: FloatArray
    seconds_choosing: float


def simulated(
    method: str, settings: SyntheticSettings, n_worlds: int, rounds: int, labels_per_round: int | None = None
) -> PrefAcquireVectorEnv:
    """Worlds with all that the method needs, for episodes of so many rounds.

    Args:
        method: an agent's key.
        settings: of the worlds.
        n_worlds: B.
        rounds: T.
        labels_per_round: k anywhere in the pool; None for one of each prompt.
    """
    budget = rounds * (settings.n_prompts if labels_per_round is None else labels_per_round)
    privileged, recipe = agents.spec(method).privileged, agents.recipe(method)
    return PrefAcquireVectorEnv(settings, n_worlds, budget, privileged, recipe, labels_per_round)


def walk(envs: PrefAcquireVectorEnv, method: str, seeds: Sequence[int], bar: tqdm) -> Walk:
    """One episode of each world under one agent of the method.

    Args:
        envs: B worlds.
        method: the agent's key.
        seeds: B, of the worlds; the first is the agent's too.
        bar: moved on by one each round.
    """
    agent = agents.make(method, envs.single_action_space, seed=seeds[0])
    observation, info = envs.reset(seed=list(seeds))
    world, state, start, choosing = np.arange(len(seeds))[:, None], None, np.ones(len(seeds), dtype=bool), 0.0
    infos, chosen, rejected, over = [info], [], [], False
    while not over:
        before = time.perf_counter()
        action, state = agent.predict(observation, state, episode_start=start)
        choosing += time.perf_counter() - before
        start, embedding = np.zeros(len(seeds), dtype=bool), observation["embedding"]
        observation, _, terminated, _, info = envs.step(action)
        over = bool(terminated.all())
        prompt, better, worse = np.moveaxis(info["preferences"], -1, 0)  # all -1 where there is no label
        infos.append(info)
        chosen.append(embedding[world, prompt, better])
        rejected.append(embedding[world, prompt, worse])
        bar.update()
    curves = {name: np.stack([info[name] for info in infos], axis=1) for name in CURVES}
    return Walk(curves, np.concatenate(chosen, axis=1), np.concatenate(rejected, axis=1), choosing)


def accuracies(envs: PrefAcquireVectorEnv, walked: Walk, seeds: Sequence[int]) -> dict[str, FloatArray]:
    """Kind of held-out pairs → (B,) share that a reward model trained on the walk's labels ranks as the truth does."""
    weights = fit_reward_model(walked.chosen, walked.rejected)
    pairs = held_out_pairs(envs.settings, envs._sources.hidden, seeds)
    return {
        kind: ranking_accuracy(weights, difference, pairs.reward)
        for kind, difference in (("in style", pairs.in_style), ("off style", pairs.off_style))
    }
