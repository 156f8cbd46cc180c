"""A warm start for reinforcement learning: the pair scorer learns to foresee the gain that a label brings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from stable_baselines3.common.utils import get_device
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from agents.learned.features import FEATURES, pair_features
from agents.learned.network import PairScorer, save_scorer
from agents.learned.training import CHECKPOINTS, Evaluate, append_line, one_thread, torch_score, whole_file

LEGAL = FEATURES.index("legal")
LEARNING_RATE = 1e-3  # falls by a half cosine to a twentieth
WARM_UP = 20  # episodes of a rising learning rate
MEMORY = 500  # steps, of the average of the weights that is kept; less early, when they change fast
SHARPNESS = 5.0  # of the policy that walks: its logits are this many times the foreseen gains
CHOICE = 0.2  # weight of the choices beside the squares: 1 / SHARPNESS, for which their slopes are of one size
LARGEST_GAIN = 5.0  # of a target, in its unit; a pool with one great pair must not drown the rest
LARGEST_GRADIENT = 1.0  # norm
TINY = 1e-12

Episode = Callable[[int], Sequence[tuple[VectorEnv, int]]]
"""Number of an episode → privileged environments of as many rounds, to walk side by side, each with its first seed."""


def imitate(
    episode: Episode,
    out: str | Path,
    episodes: int,
    seed: int = 0,
    evaluate: Evaluate | None = None,
    progress: bool = True,
    device: str = "cpu",
) -> Path:
    """Teach a pair scorer the gain of ``oracle-greedy`` and write its weights.

    The scorer predicts, from what is observed, ``oracle_gain`` in units of its root mean square over the pool: least
    squares over all pairs, so that it learns the expectation given what an agent can know. It walks by its own choices
    (a softmax of its predictions), because these are the states that it will meet; and the gain that this softmax
    expects is part of what it learns by, so that it is exact where it matters, among the best pairs.

    Args:
        episode: new worlds for each episode. They are closed after it.
        out: folder for ``imitation.pt`` (a stopped run goes on from it), ``tensorboard/``, ``curve.jsonl`` and
            ``imitation.safetensors``. The logits of the weights are SHARPNESS times the foreseen gains.
        episodes: how many, those of an earlier part included.
        seed: of the network and of the walks.
        evaluate: called now and then.
        progress: show a bar.
        device: of the network, as torch names it; "auto" is a GPU where there is one.

    Returns:
        path of the weights.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):  # layers draw their weights from torch's own generator
        torch.manual_seed(seed)
        scorer = PairScorer()
    learning = _Learning(scorer.to(get_device(device)))
    begun = learning.load(folder / "imitation.pt")
    writer = SummaryWriter(str(folder / "tensorboard" / "imitation"))
    numbers = tqdm(range(begun, episodes), initial=begun, total=episodes, unit="episode", disable=not progress)
    with one_thread():
        for number in numbers:
            learning.set_rate(number, episodes)
            loss = _walk(learning, episode(number), torch.Generator().manual_seed(seed * 1_000_003 + number))
            writer.add_scalar("imitation/loss", loss, number)
            numbers.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            if (number + 1) % max(episodes // CHECKPOINTS, 1) == 0 or number + 1 == episodes:
                _watch(learning, folder, number + 1, evaluate, writer)
    writer.close()
    weights = folder / "imitation.safetensors"
    with torch.no_grad():
        learning.averaged.last.weight *= SHARPNESS
    with whole_file(weights) as partial:
        save_scorer(learning.averaged, partial, note=f"imitation of oracle-greedy, {episodes} episodes, seed {seed}")
    return weights


def _watch(learning: _Learning, folder: Path, episodes: int, evaluate: Evaluate | None, writer: SummaryWriter) -> None:
    """Evaluate where that is asked for, and save."""
    found = {} if evaluate is None else evaluate(torch_score(learning.averaged))
    for name, value in found.items():
        writer.add_scalar(f"held_out/{name}", value, episodes)
    if found:
        append_line(folder / "curve.jsonl", {"imitation": episodes, **found})
    learning.save(folder / "imitation.pt", episodes)


class _Learning:
    """The network, its running average and its optimiser."""

    def __init__(self, scorer: PairScorer) -> None:
        self.scorer, self.optimizer = scorer, torch.optim.Adam(scorer.parameters(), lr=LEARNING_RATE)
        self.smooth = AveragedModel(scorer, avg_fn=_average)
        self.averaged: PairScorer = self.smooth.module  # type: ignore[assignment]

    def step(self) -> None:
        """Along the gradients that there are, of a norm that no batch of odd worlds exceeds."""
        torch.nn.utils.clip_grad_norm_(self.scorer.parameters(), LARGEST_GRADIENT)
        self.optimizer.step()
        self.smooth.update_parameters(self.scorer)

    def set_rate(self, number: int, episodes: int) -> None:
        """Of learning, in an episode."""
        falling = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * number / episodes))
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * falling * min(1.0, (number + 1) / WARM_UP)

    def save(self, path: Path, episodes: int) -> None:
        """Write all of it, and how many episodes made it."""
        states = {name: getattr(self, name).state_dict() for name in ("scorer", "smooth", "optimizer")}
        with whole_file(path) as partial:
            torch.save(states | {"episodes": episodes}, partial)

    def load(self, path: Path) -> int:
        """Go on from what was saved; the number of episodes that made it, 0 where nothing is."""
        if not path.exists():
            return 0
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        self.scorer.load_state_dict(state["scorer"])
        self.smooth.load_state_dict(state["smooth"])
        self.optimizer.load_state_dict(state["optimizer"])
        return int(state["episodes"])


def _walk(learning: _Learning, worlds: Sequence[tuple[VectorEnv, int]], generator: torch.Generator) -> float:
    """One episode of all the worlds, in step, with a gradient step a round; the mean loss."""
    scorer = learning.scorer
    device = next(scorer.parameters()).device
    observations = [envs.reset(seed=first)[0] for envs, first in worlds]
    losses, over = [], False
    while not over:
        learning.optimizer.zero_grad()
        loss = 0.0
        for place, ((envs, _), observation) in enumerate(zip(worlds, observations, strict=True)):
            features = torch.from_numpy(pair_features(observation)).to(device)
            foreseen = scorer.logits(features)
            gain = torch.from_numpy(observation["oracle_gain"]).to(device)
            own = gain_loss(foreseen, gain, features[..., LEGAL]) / len(worlds)
            own.backward()
            loss += own.item()
            chances = (SHARPNESS * foreseen.detach()).softmax(dim=-1).cpu()
            drawn = torch.multinomial(chances.flatten(0, 1), 1, generator=generator).numpy()
            observations[place], _, terminated, _, _ = envs.step(drawn.reshape(chances.shape[:2]))
            over |= bool(terminated.all())  # all have as many rounds
        learning.step()
        losses.append(loss)
    for envs, _ in worlds:
        envs.close()
    return float(np.mean(losses))


def _average(average: Tensor, now: Tensor, steps: Tensor | int) -> Tensor:
    """The weights' running average: of the last tenth of the steps, of MEMORY at most."""
    return average + (now - average) * max(10 / (float(steps) + 10), 1 / MEMORY)


def gain_loss(foreseen: Tensor, gain: Tensor, legal: Tensor) -> Tensor:
    """Mean squared error of foreseen gains over all pairs, less CHOICE times the mean gain of the pairs chosen.

    All pools count alike, whatever their sizes.

    Args:
        foreseen: (B, n, P) in units of the pool's root mean square gain.
        gain: (B, n, P) in any unit.
        legal: (B, n, P), 1 where a pair is and 0 elsewhere.
    """
    count = legal.sum(dim=(1, 2))
    unit = ((gain * gain * legal).sum(dim=(1, 2)) / count).sqrt().clamp(min=TINY)
    target = (gain / unit[:, None, None]).clamp(-LARGEST_GAIN, LARGEST_GAIN)
    error = (foreseen - target) * legal  # the logits of illegal pairs are large, and times 0
    chosen = ((SHARPNESS * foreseen).softmax(dim=-1) * target * legal).sum(dim=(1, 2))
    prompts = legal.amax(dim=-1).sum(dim=1)
    return ((error * error).sum(dim=(1, 2)) / count - CHOICE * chosen / prompts).mean()
