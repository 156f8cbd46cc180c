"""The losses of the policy step, and their gradients, against torch and TRL."""

from types import SimpleNamespace

import numpy as np
import pytest

from prefenv.synthetic.policy import Labels, preference_loss, preference_slope
from prefenv.synthetic.settings import SyntheticSettings
from prefenv.synthetic.world import make_synthetic_world
from prefenv.types import Preferences
from prefenv.vector import PrefAcquireVectorEnv

LOSSES = {"dpo": 0.3, "ipo": 0.3, "simpo": 2.0}  # with a beta each


@pytest.mark.parametrize("loss", LOSSES)
def test_slope_is_the_derivative_of_the_loss(loss):
    margin, step = np.linspace(-9, 9, 37), 1e-6
    up, down = (preference_loss(loss, margin + s, LOSSES[loss], simpo_margin=0.7) for s in (step, -step))
    slope = preference_slope(loss, margin, LOSSES[loss], simpo_margin=0.7)
    np.testing.assert_allclose(slope, (up - down) / (2 * step), atol=1e-7)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_of_margins_without_bound_are_finite(loss):
    margin = np.array([-1e6, 0.0, 1e6])
    assert np.all(np.isfinite(preference_loss(loss, margin, 0.1)))
    assert np.all(np.isfinite(preference_slope(loss, margin, 0.1)))


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_those_of_trl_on_the_same_numbers(loss):
    torch = pytest.importorskip("torch")
    trainer = pytest.importorskip("trl.experimental.cpo").CPOTrainer
    rng = np.random.default_rng(0)
    chosen, rejected = rng.standard_normal((2, 9))
    # TRL's trainer without a reference, given log-ratios to the reference where the loss has one
    stub = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu"), beta=LOSSES[loss], label_smoothing=0.0, simpo_gamma=1.4,
        loss_type={"dpo": "sigmoid"}.get(loss, loss), alpha=0.0,
    )  # fmt: skip
    theirs = trainer.cpo_loss(stub, torch.tensor(chosen), torch.tensor(rejected))[0]
    ours = preference_loss(loss, chosen - rejected, LOSSES[loss], simpo_margin=1.4)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-12)


def one_step(loss, **changed):
    """A world after one gradient step from a random theta; the theta before, the pool and the labels."""
    settings = SyntheticSettings(
        n_prompts=5, n_generators=4, loss=loss, beta=LOSSES[loss], simpo_margin=0.7, gradient_steps=1, **changed
    )
    world = make_synthetic_world(settings)
    world.reset(np.random.default_rng(0))
    policies = world.learner.policies
    policies.theta = 0.3 * np.random.default_rng(2).standard_normal((1, 17))
    before = policies.theta[0].copy()
    pool = world.source.draw()
    labels = Preferences(np.array([0, 1, 1, 4]), np.array([0, 2, 3, 1]), np.array([3, 1, 0, 2]))
    world.learner.step(pool, labels)
    return before, policies.theta[0], pool, labels, settings


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_is_along_the_gradient_that_torch_finds_on_the_policy_itself(loss):
    torch = pytest.importorskip("torch")
    before, after, pool, labels, settings = one_step(loss, learning_rate=0.01)
    responses = pool.pools.responses
    theta = torch.tensor(before, requires_grad=True)
    logit, features = (torch.tensor(x[0].astype(np.float64)) for x in (responses.logit, responses.features))
    logprob = torch.log_softmax(logit + features @ theta, dim=-1)
    rows = torch.tensor(labels.prompt)
    chosen, rejected = (torch.tensor(pool.generator[labels.prompt, c]) for c in (labels.chosen, labels.rejected))
    if loss == "simpo":
        length = torch.tensor(pool.length.astype(np.float64) / np.exp(5.0))
        score = [
            logprob[rows, g] / length[rows, torch.tensor(c)]
            for g, c in ((chosen, labels.chosen), (rejected, labels.rejected))
        ]
    else:
        ratio = logprob - torch.log_softmax(logit, dim=-1)
        score = [ratio[rows, g] for g in (chosen, rejected)]
    margin = score[0] - score[1]
    if loss == "ipo":
        value = ((margin - 1 / (2 * settings.beta)) ** 2).mean()
    else:
        gamma = settings.simpo_margin if loss == "simpo" else 0.0
        value = -torch.nn.functional.logsigmoid(settings.beta * margin - gamma).mean()
    value.backward()
    rate = 0.01 * (settings.beta**2 if loss == "ipo" else 1.0)
    np.testing.assert_allclose(after - before, -rate * theta.grad.numpy(), atol=1e-8)


def test_steps_on_the_square_of_ipo_never_diverge():
    settings = SyntheticSettings(loss="ipo", beta=1.0, learning_rate=100.0, style_spread=3.0, embedding_size=64)
    envs = PrefAcquireVectorEnv(settings, 4, budget=50 * 8)
    envs.reset(seed=0)
    for _ in range(50):
        observation, *_, info = envs.step(envs.action_space.sample())
    assert np.all(np.isfinite(observation["logprob"]))
    assert np.abs(envs._policies.theta).max() < 10
    assert np.all(info["win_rate"] > 0.5)
    before, one, pool, labels, _ = one_step("ipo", learning_rate=1e6)  # the longest step: 1 / (2 mean |delta|²)
    delta = pool.features[labels.prompt, labels.chosen] - pool.features[labels.prompt, labels.rejected]
    slope = 2 * (delta @ before - 1 / (2 * 0.3))
    longest = 1 / (2 * (delta.astype(np.float64) ** 2).sum(axis=1).mean())
    np.testing.assert_allclose(one - before, -longest * (slope[:, None] * delta).mean(axis=0), rtol=1e-4)


def test_steps_and_rate_multiply_small_steps():
    small = {"learning_rate": 1e-4}
    before, one, *_ = one_step("dpo", **small)
    _, ten, *_ = one_step("dpo", learning_rate=1e-3)
    np.testing.assert_allclose(ten - before, 10 * (one - before), rtol=1e-4)


def test_labels_take_what_they_name_and_no_label_is_no_difference():
    array = np.arange(2 * 3 * 4).reshape(2, 3, 4).astype(np.float64)
    labels = Labels(
        prompt=np.array([[0, 2], [1, 1]]), chosen=np.array([[1, 3], [0, 2]]), rejected=np.array([[0, 0], [3, 2]]),
        valid=np.array([[True, True], [True, False]]),
    )  # fmt: skip
    assert labels.take(array, labels.chosen).tolist() == [[1.0, 11.0], [16.0, 18.0]]
    assert labels.difference(array).tolist() == [[1.0, 3.0], [-3.0, 0.0]]


def test_a_world_without_labels_keeps_its_policy_while_others_step():
    from prefenv.synthetic.policy import Policies

    settings = SyntheticSettings()
    policies = Policies(settings, 2, settings.embedding_size + 1)
    features = np.random.default_rng(0).standard_normal((2, 8, 4, 17)).astype(np.float32)
    told = np.array([[True], [False]])
    labels = Labels(np.zeros((2, 1), int), np.array([[1], [0]]), np.array([[0], [0]]), told)
    policies.step(features, labels, None)
    assert np.any(policies.theta[0] != 0)
    assert np.all(policies.theta[1] == 0)
