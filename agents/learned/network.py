"""The network in torch, and as Stable-Baselines3 policies: one small scorer shared by all pairs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from safetensors.torch import save_file
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import Tensor, nn

from agents.learned.features import EVEN, FEATURES, ODD
from agents.learned.scorer import FORMAT, HIDDEN, read_weights

ILLEGAL_LOGIT = -1e8  # softmax weight 0 in float32, and no NaN
ILLEGAL_VALUE = -10.0  # worse than any return, and no number that swamps a loss


class PairScorer(nn.Module):
    """Logits of pairs, and what the value of a pool is read from.

    :func:`agents.learned.scorer.pair_logits` has the formula: a pair's logit depends on its own F features alone, and
    not on the order of its candidates. The value depends on mean and spread of the features over the pool.
    """

    def __init__(self) -> None:
        super().__init__()
        self.odd = nn.Linear(len(ODD), HIDDEN, bias=False)
        self.even = nn.Linear(len(EVEN), HIDDEN)
        self.middle = nn.Linear(HIDDEN, HIDDEN)
        self.last = nn.Linear(HIDDEN, 1, bias=False)
        self.pool = nn.Sequential(nn.Linear(2 * len(FEATURES), HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh())
        nn.init.zeros_(self.last.weight)  # begins as the random agent

    def logits(self, features: Tensor) -> Tensor:
        """(..., n, P) from (..., n, P, F)."""
        legal = features[..., -1] > 0
        logits = features.new_full(legal.shape, ILLEGAL_LOGIT)
        logits[legal] = self._scores(features[legal])  # of padded pools most is padding, and need not be worked out
        return logits

    def _scores(self, features: Tensor) -> Tensor:
        """(rows,) from (rows, F)."""
        odd, even = self.odd(features[:, : len(ODD)]), self.even(features[:, len(ODD) : -1])
        hidden = torch.relu(self.middle(torch.relu(even + odd))) + torch.relu(self.middle(torch.relu(even - odd)))
        return self.last(hidden).squeeze(-1)

    def pooled(self, features: Tensor) -> Tensor:
        """(..., HIDDEN) from (..., n, P, F): mean and spread of the features over the legal pairs."""
        legal = features[..., -1:]
        count = legal.sum(dim=(-3, -2)).clamp(min=1)
        mean = features.sum(dim=(-3, -2)) / count
        square = (features * features).sum(dim=(-3, -2)) / count - mean * mean
        return self.pool(torch.cat([mean, (square.clamp(min=0) + 1e-8).sqrt()], dim=-1))


class _AsItIs(BaseFeaturesExtractor):
    """Hands the (n, P, F) observation on."""

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


class _ActorCritic:
    """What the actor-critic policies here have in common: one categorical a prompt, or one over all pairs."""

    mlp_extractor: _Heads

    def __init__(
        self,
        observation_space: gym.spaces.Space,
        action_space: gym.spaces.Space,
        lr_schedule: Callable[[float], float],
        **kwargs: Any,
    ) -> None:
        kwargs["features_extractor_class"] = _AsItIs
        kwargs["ortho_init"] = False
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)  # type: ignore[call-arg]

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = _Heads()

    def _build(self, lr_schedule: Callable[[float], float]) -> None:
        super()._build(lr_schedule)  # type: ignore[misc]
        self.action_net = nn.Identity()  # the scorer's output is the logits
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[attr-defined]

    @property
    def scorer(self) -> PairScorer:
        """The part that an agent needs."""
        return self.mlp_extractor.scorer


class PairPolicy(_ActorCritic, ActorCriticPolicy):  # type: ignore[misc]  # its own kind of extractor
    """Of PPO and A2C, on the features of pairs."""

    def prompt_log_probs(self, features: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability (rows, n) of each prompt's pair, and entropy (rows, n) of its choice, nats.

        Args:
            features: (rows, n, P, F).
            actions: (rows, n) pairs.
        """
        log_probs = self.scorer.logits(features).log_softmax(dim=-1)
        own = log_probs.gather(-1, actions.long()[..., None]).squeeze(-1)
        return own, -(log_probs.exp() * log_probs).sum(dim=-1)


class MaskablePairPolicy(_ActorCritic, MaskableActorCriticPolicy):  # type: ignore[misc]
    """Of MaskablePPO: likewise, with the environment's masks on top."""


class _PairQ(QNetwork):
    """Values of pairs: the logits."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.q_net = nn.Sequential(_Heads())

    def forward(self, obs: Any) -> Tensor:
        heads = self.q_net[0]
        assert isinstance(heads, _Heads)
        return heads.forward_actor(self.extract_features(obs, self.features_extractor)).clamp(min=ILLEGAL_VALUE)


class PairQPolicy(DQNPolicy):
    """Of DQN, on the features of pairs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["features_extractor_class"] = _AsItIs
        super().__init__(*args, **kwargs)

    def make_q_net(self) -> QNetwork:
        """A network of values."""
        arguments = self._update_features_extractor(self.net_args, features_extractor=None)
        return _PairQ(**arguments).to(self.device)

    @property
    def scorer(self) -> PairScorer:
        """The part that an agent needs."""
        return self.q_net.q_net[0].scorer  # type: ignore[return-value]


def save_scorer(scorer: PairScorer, path: str | Path, note: str = "") -> None:
    """Write the weights as safetensors, with the format, the feature names and a note of how they came about."""
    about = json.dumps({"format": FORMAT, "features": FEATURES, "note": note})  # one entry: their order is not kept
    save_file({k: v.detach().cpu().contiguous() for k, v in scorer.state_dict().items()}, str(path), {"prefenv": about})


def load_scorer(path: str | Path) -> PairScorer:
    """The network with saved weights; errors as in :func:`agents.learned.scorer.read_weights`."""
    scorer = PairScorer()
    scorer.load_state_dict({name: torch.from_numpy(value) for name, value in read_weights(path).items()})
    return scorer.eval()
