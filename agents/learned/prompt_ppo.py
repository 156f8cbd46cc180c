"""PPO for actions that are a pair of every prompt: the ratio of each prompt is clipped by itself."""

from __future__ import annotations

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.utils import explained_variance
from torch import Tensor
from torch.nn import functional

from agents.learned.features import FEATURES
from agents.learned.network import PairPolicy

LEGAL = FEATURES.index("legal")


class PromptPPO(PPO):
    """Stable-Baselines3's PPO with another surrogate.

    The chance of an action is the product of n chances, one a prompt. PPO clips the ratio of products, so that with
    many prompts a step that moves every prompt a little is cut off as one that moves far. Here the ratio of every
    prompt is clipped by itself, and the surrogate is the mean over the prompts that there are. Rollouts, advantages
    (always normalised), value loss (never clipped), gradient clipping and schedules are SB3's; ``target_kl`` is not
    read.
    """

    policy: PairPolicy

    def train(self) -> None:
        """Update the policy on the rollouts that are there."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        clip = self.clip_range(self._current_progress_remaining)  # type: ignore[operator]
        logs: dict[str, list[float]] = {}
        before = self._before()
        for _ in range(self.n_epochs):
            for index in torch.randperm(self.n_steps * self.n_envs).split(self.batch_size):
                for name, value in self._update(index, before, clip).items():
                    logs.setdefault(name, []).append(value)
            self._n_updates += 1
        for name, values in logs.items():
            self.logger.record(f"train/{name}", float(np.mean(values)))
        buffer = self.rollout_buffer
        explained = explained_variance(buffer.values.flatten(), buffer.returns.flatten())
        self.logger.record("train/explained_variance", explained)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _before(self) -> dict[str, Tensor]:
        """The rollouts, a row a step, and the log-probabilities (rows, n) that their actions had."""
        buffer = self.rollout_buffer
        flat = {
            name: torch.from_numpy(buffer.swap_and_flatten(getattr(buffer, name))).to(self.device)
            for name in ("observations", "actions", "advantages", "returns")
        }
        with torch.no_grad():
            rows = [
                self.policy.prompt_log_probs(features, actions)[0]
                for features, actions in zip(
                    flat["observations"].split(self.batch_size), flat["actions"].split(self.batch_size), strict=True
                )
            ]
        return flat | {"log_probs": torch.cat(rows)}

    def _update(self, index: Tensor, before: dict[str, Tensor], clip: float) -> dict[str, float]:
        """One gradient step on some rows; what is logged of it."""
        batch = {name: values[index] for name, values in before.items()}
        features = batch["observations"]
        real = (features[..., LEGAL].amax(dim=-1) > 0).float()  # (rows, n)
        log_prob, entropy = self.policy.prompt_log_probs(features, batch["actions"])
        advantage = batch["advantages"].flatten()
        advantage = ((advantage - advantage.mean()) / (advantage.std() + 1e-8))[:, None]
        ratio = torch.exp(log_prob - batch["log_probs"])
        surrogate = torch.min(advantage * ratio, advantage * ratio.clamp(1 - clip, 1 + clip))
        policy_loss = -(surrogate * real).sum() / real.sum()
        entropy_loss = -(entropy * real).sum() / real.sum()
        value_loss = functional.mse_loss(self.policy.predict_values(features).flatten(), batch["returns"].flatten())
        loss = policy_loss + self.ent_coef * entropy_loss + self.vf_coef * value_loss
        self.policy.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.policy.optimizer.step()
        outside = (((ratio - 1).abs() > clip) * real).sum() / real.sum()
        return {
            "policy_gradient_loss": policy_loss.item(),
            "value_loss": value_loss.item(),
            "entropy_loss": entropy_loss.item(),
            "clip_fraction": outside.item(),
            "approx_kl": (((ratio - 1) - ratio.log()) * real).sum().item() / real.sum().item(),
        }
