"""The network: one small scorer shared by all pairs, so the same weights serve any n, m, d and any order."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from agents.learned.features import FEATURES, pair_features
from agents.scores import FloatArray, Observation, Score

HIDDEN = 32  # units a layer
FORMAT = "prefenv-pair-scorer-1"
ILLEGAL_LOGIT = -1e8  # softmax weight 0 in float32, and no NaN


class PairScorer(nn.Module):
    """Logits of pairs, and the value of a pool.

    A pair's logit depends on its own F features alone; the value on their mean over the pool.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pair = nn.Sequential(
            nn.Linear(len(FEATURES), HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1)
        )
        self.pool = nn.Sequential(nn.Linear(2 * len(FEATURES), HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh())
        last = self.pair[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)  # begins as the random agent
        nn.init.zeros_(last.bias)

    def logits(self, features: Tensor) -> Tensor:
        """(..., n, P) from (..., n, P, F)."""
        legal = features[..., FEATURES.index("legal")] > 0
        return self.pair(features).squeeze(-1).masked_fill(~legal, ILLEGAL_LOGIT)

    def pooled(self, features: Tensor) -> Tensor:
        """(..., HIDDEN) from (..., n, P, F): mean and spread of the features over the legal pairs."""
        legal = features[..., FEATURES.index("legal")].unsqueeze(-1)
        count = legal.sum(dim=(-3, -2)).clamp(min=1)
        mean = (features * legal).sum(dim=(-3, -2)) / count
        square = ((features - mean[..., None, None, :]) ** 2 * legal).sum(dim=(-3, -2)) / count
        return self.pool(torch.cat([mean, (square + 1e-8).sqrt()], dim=-1))


class _Unflattened(BaseFeaturesExtractor):
    """Hands the (n, P, F) observation on as it is."""

    def __init__(self, observation_space: gym.Space) -> None:
        super().__init__(observation_space, features_dim=int(np.prod(observation_space.shape or (1,))))

    def forward(self, observations: Tensor) -> Tensor:
        return observations.float()


class _Heads(nn.Module):
    """What Stable-Baselines3 calls the MLP extractor: latent of the policy (here the logits) and of the value."""

    def __init__(self) -> None:
        super().__init__()
        self.scorer = PairScorer()
        self.latent_dim_pi = self.latent_dim_vf = HIDDEN

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features: Tensor) -> Tensor:
        return self.scorer.logits(features).flatten(start_dim=-2)

    def forward_critic(self, features: Tensor) -> Tensor:
        return self.scorer.pooled(features)


class PairPolicy(ActorCriticPolicy):
    """Stable-Baselines3 policy on :class:`~agents.learned.features.PairFeatures`: one categorical a prompt."""

    def __init__(
        self,
        observation_space: gym.spaces.Space,
        action_space: gym.spaces.Space,
        lr_schedule: Callable[[float], float],
        **kwargs: Any,
    ) -> None:
        kwargs["features_extractor_class"] = _Unflattened
        kwargs["ortho_init"] = False
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = _Heads()  # type: ignore[assignment]

    def _build(self, lr_schedule: Callable[[float], float]) -> None:
        super()._build(lr_schedule)
        self.action_net = nn.Identity()  # type: ignore[assignment]  # the scorer's output is the logits
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    @property
    def scorer(self) -> PairScorer:
        """The part that an agent needs."""
        return self.mlp_extractor.scorer  # type: ignore[return-value]


def save_scorer(scorer: PairScorer, path: str | Path, note: str = "") -> None:
    """Write the weights as safetensors, with the format, the feature names and a note of how they came about."""
    about = json.dumps({"format": FORMAT, "features": FEATURES, "note": note})  # one entry: their order is not kept
    save_file({k: v.detach().cpu().contiguous() for k, v in scorer.state_dict().items()}, str(path), {"prefenv": about})


def load_scorer(path: str | Path) -> PairScorer:
    """Read weights; nothing is unpickled.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not weights of this network.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at '{path}': `prefenv train --out FOLDER` writes FOLDER/ppo.safetensors")
    try:
        with safe_open(str(path), framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("prefenv", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except SafetensorError as error:
        raise ValueError(f"'{path}' is no safetensors file: {error}") from error
    if about.get("format") != FORMAT or tuple(about.get("features", ())) != FEATURES:
        raise ValueError(f"'{path}' holds weights of format {about.get('format')}, this package reads {FORMAT}")
    scorer = PairScorer()
    scorer.load_state_dict(tensors)
    return scorer.eval()


def scorer_score(scorer: PairScorer) -> Score:
    """The network as a score: the logits, so that selection takes the likeliest pair."""

    def score(observation: Observation, rng: np.random.Generator) -> FloatArray:
        with torch.no_grad():
            logits = scorer.logits(torch.from_numpy(pair_features(observation)))
        return logits.numpy().astype(np.float64)

    return score


def load_score(path: str | Path) -> Score:
    """The score of saved weights; errors as in :func:`load_scorer`."""
    return scorer_score(load_scorer(path))
