"""PPO with a ratio for each prompt, by hand."""

import gymnasium as gym
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from agents.learned.features import FEATURES, feature_space, pair_features  # noqa: E402
from agents.learned.network import PairPolicy  # noqa: E402
from agents.learned.prompt_ppo import PromptPPO  # noqa: E402
from agents.learned.vec_env import SB3VecEnv  # noqa: E402


def make_model(**settings):
    envs = gym.make_vec("prefenv:PrefAcquire-v0", num_envs=2, n_prompts=3, n_candidates=3, budget=12)
    wrapped = SB3VecEnv(envs, pair_features, feature_space(envs.single_observation_space))
    arguments = {"n_steps": 4, "batch_size": 8, "n_epochs": 1, "seed": 0, "device": "cpu", "learning_rate": 1e-3}
    return PromptPPO(PairPolicy, wrapped, **(arguments | settings))


def batch(model, rows=4):
    """Rollouts of random numbers in which the last prompt is padding."""
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(size=(rows, 3, 3, len(FEATURES))).astype(np.float32))
    features[..., -1] = 1.0
    features[:, 2] = 0.0
    scorer = model.policy.scorer
    torch.nn.init.normal_(scorer.last.weight, generator=torch.Generator().manual_seed(0))
    return {
        "observations": features,
        "actions": torch.from_numpy(rng.integers(3, size=(rows, 3)).astype(np.float32)),
        "advantages": torch.from_numpy(rng.normal(size=rows).astype(np.float32)),
        "returns": torch.from_numpy(rng.normal(size=rows).astype(np.float32)),
        "log_probs": torch.from_numpy(rng.normal(size=(rows, 3), scale=0.3).astype(np.float32) - 1.0),
    }


def test_an_update_by_hand():
    model = make_model(ent_coef=0.3, vf_coef=0.7)
    before = batch(model)
    with torch.no_grad():
        logits = model.policy.scorer.logits(before["observations"])[:, :2].numpy().astype(np.float64)
        values = model.policy.predict_values(before["observations"]).flatten().numpy()
    weights = [value.clone() for value in model.policy.parameters()]
    logged = model._update(torch.arange(4), before, clip=0.2)
    chances = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    actions = before["actions"].numpy().astype(int)[:, :2]
    own = np.take_along_axis(chances, actions[..., None], axis=-1)[..., 0]
    ratio = own / np.exp(before["log_probs"].numpy()[:, :2])
    advantage = before["advantages"].numpy()
    advantage = ((advantage - advantage.mean()) / advantage.std(ddof=1))[:, None]
    surrogate = np.minimum(advantage * ratio, advantage * np.clip(ratio, 0.8, 1.2))
    assert (ratio > 1.2).any()
    assert (ratio < 0.8).any()
    assert logged["policy_gradient_loss"] == pytest.approx(-surrogate.mean(), rel=1e-4)
    assert logged["entropy_loss"] == pytest.approx((chances * np.log(chances)).sum(axis=-1).mean(), rel=1e-4)
    assert logged["value_loss"] == pytest.approx(((values - before["returns"].numpy()) ** 2).mean(), rel=1e-4)
    assert logged["clip_fraction"] == pytest.approx((np.abs(ratio - 1) > 0.2).mean())
    assert logged["approx_kl"] == pytest.approx((ratio - 1 - np.log(ratio)).mean(), rel=1e-3)
    assert any(not torch.equal(old, new) for old, new in zip(weights, model.policy.parameters(), strict=True))


@pytest.mark.parametrize(("coefficient", "sign"), [(100.0, 1), (-100.0, -1)])
def test_the_entropy_term_raises_entropy(coefficient, sign):
    model = make_model(ent_coef=coefficient)
    before = batch(model)

    def entropy():
        with torch.no_grad():
            return model.policy.prompt_log_probs(before["observations"], before["actions"])[1][:, :2].mean().item()

    start = entropy()
    for _ in range(5):
        model._update(torch.arange(4), before, clip=0.2)
    assert sign * (entropy() - start) > 0


def test_gradients_are_clipped_and_the_learning_rate_follows_its_schedule():
    model = make_model(max_grad_norm=1e-3, learning_rate=lambda left: 1e-3 * left)
    before = batch(model)
    before["returns"] = before["returns"] * 1e6
    model._update(torch.arange(4), before, clip=0.2)
    norm = sum((value.grad**2).sum() for value in model.policy.parameters() if value.grad is not None) ** 0.5
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)
    model.learn(16)
    assert model.policy.optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-9)  # of nothing left


def test_log_probabilities_before_are_those_of_the_rollouts():
    model = make_model()
    model.learn(8)
    kept = model._before()
    own, _ = model.policy.prompt_log_probs(kept["observations"], kept["actions"])
    torch.testing.assert_close(own, kept["log_probs"])
    assert kept["observations"].shape == (8, 3, 3, len(FEATURES))
    assert kept["returns"].shape == kept["advantages"].shape
