"""How labels are made and learned from where a method says more than which pairs to choose."""

import gymnasium as gym
import numpy as np
import pytest
import torch

import agents
import prefenv
from prefenv import make_vec
from prefenv.oracles.unjudged import label_by_generator, own_labels
from prefenv.synthetic.labellers import Labellers
from prefenv.synthetic.policy import Labels, Policies, PromptResponses
from prefenv.synthetic.settings import SyntheticSettings
from prefenv.types import Pairs, Recipe
from tests.conftest import RaggedSource


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labels": "judge"}, "oracle, generator"),
        ({"self_labelled": 1.0}, "self_labelled=1.0"),
        ({"self_labelled": -0.1}, "self_labelled=-0.1"),
        ({"self_labelled": float("nan")}, "self_labelled=nan"),
        ({"burn_in": -1}, "burn_in=-1"),
        ({"burn_in": 1.5}, "burn_in=1.5"),
        ({"exploration_bonus": -1e-3}, "exploration_bonus=-0.001"),
        ({"exploration_bonus": float("nan")}, "exploration_bonus=nan"),
        ({"exploration_bonus": float("inf")}, "exploration_bonus=inf"),
    ],
)
def test_recipes_that_cannot_be(wrong, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**wrong)


def test_the_share_is_one_of_all_labels():
    assert Recipe(self_labelled=0.3).self_labels(70) == 30
    assert Recipe(self_labelled=0.3).self_labels(16) == 6  # 6.86
    assert Recipe(self_labelled=0.5).self_labels(7) == 7
    assert Recipe().self_labels(7) == 0


def test_a_pool_needs_a_prompt_for_each_own_label():
    with pytest.raises(ValueError, match=r"adds 12 labels to 4.* a pool has 4"):
        gym.make("PrefAcquire-v0", n_prompts=4, recipe=Recipe(self_labelled=0.75))
    with pytest.raises(ValueError, match="take a smaller share"):
        gym.make_vec("PrefAcquire-v0", num_envs=2, n_prompts=4, recipe=Recipe(self_labelled=0.75))
    gym.make("PrefAcquireBudget-v0", n_prompts=4, labels_per_round=1, recipe=Recipe(self_labelled=0.75))


class TestOwnLabels:
    def test_best_against_worst_of_a_draw_of_each_prompts_own(self):
        draws = np.array([[[[0.0, 2.0, 1.0], [5.0, 4.0, 9.0]], [[1.0, 0.0, 3.0], [7.0, 8.0, 6.0]]]])  # (1, S, n, m)
        mask = np.ones((1, 2, 3), dtype=bool)
        # prompts in the order 1, 0; prompt 0 takes its second draw and prompt 1 its first
        prompt, chosen, rejected, valid = own_labels(draws, mask, np.array([[0.9, 0.1, 0.7, 0.2, *[0.5] * 6]]), 2)
        assert prompt.tolist() == [[1, 0]]
        assert chosen.tolist() == [[2, 2]]
        assert rejected.tolist() == [[1, 1]]
        assert valid.all()

    def test_missing_candidates_are_not_there(self):
        draws = np.array([[[[9.0, 2.0, 1.0, -9.0]]]])
        mask = np.array([[[False, True, True, False]]])
        _, chosen, rejected, valid = own_labels(draws, mask, np.zeros((1, 6)), 1)
        assert (chosen.item(), rejected.item(), valid.item()) == (1, 2, True)

    def test_a_draw_that_knows_no_difference_labels_nothing(self):
        assert not own_labels(np.ones((1, 2, 1, 3)), np.ones((1, 1, 3), dtype=bool), np.zeros((1, 5)), 1)[3].any()

    def test_equal_rewards_are_spread(self):
        draws = np.tile([0.0, 0.0, 0.0, -1.0], (3000, 1, 1, 1))
        share = np.random.default_rng(0).random((3000, 6))
        _, chosen, rejected, _ = own_labels(draws, np.ones((3000, 1, 4), dtype=bool), share, 1)
        np.testing.assert_allclose(np.bincount(chosen.ravel()) / 3000, 1 / 3, atol=0.04)
        assert (rejected == 3).all()

    def test_prompts_differ_and_all_prompts_and_draws_come_up(self):
        rng = np.random.default_rng(0)
        draws = np.zeros((400, 3, 5, 3))
        draws[:, np.arange(3), :, np.arange(3)] = 1.0  # draw s prefers candidate s
        prompt, chosen, _, _ = own_labels(draws, np.ones((400, 5, 3), dtype=bool), rng.random((400, 25)), 2)
        assert (prompt[:, 0] != prompt[:, 1]).all()
        np.testing.assert_allclose(np.bincount(prompt.ravel()) / 800, 0.2, atol=0.05)
        np.testing.assert_allclose(np.bincount(chosen.ravel()) / 800, 1 / 3, atol=0.06)


def walk(recipe, rounds=4, key="drts", **arguments):
    env = gym.make("PrefAcquire-v0", recipe=recipe, **{"n_prompts": 10} | arguments)
    agent = agents.make(key, env.action_space, seed=0)
    observation, info = env.reset(seed=0)
    observations, infos = [observation], [info]
    for _ in range(rounds):
        observation, _, _, _, info = env.step(agent.predict(observation)[0])
        observations.append(observation)
        infos.append(info)
    return observations, infos


def test_own_labels_come_after_the_burn_in_cost_nothing_and_move_the_policy():
    plain, own = walk(Recipe()), walk(Recipe(self_labelled=0.4, burn_in=2))
    assert [info["self_labelled"] for info in own[1]] == [0, 0, 0, 6, 6]
    assert [info["self_labelled"] for info in plain[1]] == [0] * 5
    for name in ("spent", "labels", "judged"):
        assert [info[name] for info in own[1]] == [info[name] for info in plain[1]]
    assert [info["win_rate"] for info in own[1]][:3] == [info["win_rate"] for info in plain[1]][:3]
    assert own[1][3]["win_rate"] != plain[1][3]["win_rate"]
    assert own[1][3]["preferences"].shape == (10, 3)
    np.testing.assert_array_equal(own[1][3]["preferences"], plain[1][3]["preferences"])


def test_the_posterior_does_not_learn_from_its_own_labels():
    plain, own = walk(Recipe()), walk(Recipe(self_labelled=0.5))
    for here, there in zip(*(run[0] for run in (plain, own)), strict=True):
        for name in ("embedding", "reward_mean", "reward_std"):
            np.testing.assert_array_equal(here[name], there[name])
    assert plain[1][-1]["kl"] != own[1][-1]["kl"]


def test_the_learner_gets_the_labels_of_the_belief_that_was_shown(monkeypatch):
    env = gym.make("PrefAcquire-v0", n_prompts=6, recipe=Recipe(self_labelled=0.5)).unwrapped
    seen = []
    monkeypatch.setattr(env.world.learner, "step", lambda *arguments: seen.append(arguments[1]))
    observation, _ = env.reset(seed=3)
    for _ in range(3):
        shown, (observation, *_, info) = observation, env.step(np.zeros(6, dtype=int))
        labels = seen[-1]
        assert len(labels) == 12
        np.testing.assert_array_equal(labels.prompt[:6], info["preferences"][:, 0])
        assert sorted(labels.prompt[6:]) == list(range(6))
        draws = shown["reward_samples"]
        for prompt, chosen, rejected in zip(labels.prompt[6:], labels.chosen[6:], labels.rejected[6:], strict=True):
            best_and_worst = list(zip(draws[:, prompt].argmax(axis=1), draws[:, prompt].argmin(axis=1), strict=True))
            assert (chosen, rejected) in best_and_worst


def test_own_labels_keep_the_mask(ragged_world):
    env = gym.make("PrefAcquire-v0", world=ragged_world, recipe=Recipe(self_labelled=0.5)).unwrapped
    assert isinstance(env.world.source, RaggedSource)
    observation, _ = env.reset(seed=0)
    for _ in range(3):
        mask = observation["mask"].astype(bool)
        action = agents.make("random", seed=0).predict(observation)[0]
        observation, *_ = env.step(action)
        labels = env.world.learner.seen[-1]
        assert len(labels) == 2 * len(mask)
        assert mask[labels.prompt, labels.chosen].all()
        assert mask[labels.prompt, labels.rejected].all()


@pytest.mark.parametrize("recipe", [Recipe(self_labelled=0.3), Recipe(labels="generator"), Recipe(exploration_bonus=1)])
def test_the_same_seed_is_the_same_world_whatever_the_recipe(recipe):
    plain, other = walk(Recipe(), rounds=0)[0][0], walk(recipe, rounds=0)[0][0]
    for name, value in plain.items():
        np.testing.assert_array_equal(value, other[name])


def test_generators_label_by_their_number():
    pool = RaggedSource(4, 3).draw()
    pool.generator[:] = np.array([[2, 0, 1], [0, 2, 1], [1, 1, 0], [0, 1, 2]])
    pairs = Pairs(np.array([0, 1, 2, 3]), np.array([0, 0, 0, 1]), np.array([1, 1, 1, 2]))
    labels = label_by_generator(pool, pairs)
    assert labels.prompt.tolist() == [0, 1, 3]
    assert labels.chosen.tolist() == [0, 1, 2]
    assert labels.rejected.tolist() == [1, 0, 1]
    assert labels.abstained == 1


def test_nobody_judges_what_the_generators_label():
    observations, infos = walk(Recipe(labels="generator"), key="deltaqwen")
    assert [info["judged"] for info in infos] == [0] * 5
    assert [info["labels"] for info in infos] == [0, 10, 20, 30, 40]
    for observation, info in zip(observations[:-1], infos[1:], strict=True):
        prompt, chosen, rejected = info["preferences"].T
        generator = observation["generator"]
        assert (generator[prompt, chosen] > generator[prompt, rejected]).all()


def bonus_by_torch(theta, features, logit, prompts, weight):
    """Gradient of the weighted mean of E_{y ~ reference} log policy(y) at the labels' prompts."""
    theta = torch.tensor(theta, requires_grad=True)
    features, logit = torch.tensor(features, dtype=torch.float64), torch.tensor(logit, dtype=torch.float64)
    policy = torch.log_softmax(logit + features @ theta, dim=-1)
    expected = (torch.softmax(logit, dim=-1) * policy).sum(dim=-1)
    (expected[torch.tensor(prompts)] * torch.tensor(weight)).sum().backward()
    return theta.grad.numpy()


@pytest.mark.parametrize("loss", ["dpo", "ipo", "simpo"])
def test_the_bonus_is_alpha_times_its_gradient(loss):
    rng = np.random.default_rng(1)
    settings = SyntheticSettings(embedding_size=3, gradient_steps=1, loss=loss, learning_rate=0.1)
    features = rng.standard_normal((1, 4, 5, 4)).astype(np.float32)
    responses = PromptResponses(
        features,
        rng.standard_normal((1, 4, 5)).astype(np.float32),
        np.tile(np.arange(5), (1, 4, 1)),
        np.ones((1, 4, 5), dtype=np.float32),
    )
    labels = Labels(
        np.array([[2, 0, 2, 1]]),
        np.array([[0, 1, 3, 2]]),
        np.array([[4, 2, 1, 2]]),
        np.array([[True, True, True, False]]),
    )
    start = rng.standard_normal(4)

    def after(alpha):
        policies = Policies(settings, 1, 4)
        policies.theta = start[None].copy()
        policies.step(features, labels, responses, alpha)
        return policies.theta[0]

    gradient = bonus_by_torch(start, features[0], responses.logit[0], [2, 0, 2], [1 / 3] * 3)
    moved = after(0.5) - after(0.0)
    rate = 0.1 if loss != "ipo" else -moved[0] / (0.5 * gradient[0])  # IPO's rate is its own; see test_policy
    assert rate > 0
    np.testing.assert_allclose(moved, -rate * 0.5 * gradient, rtol=1e-5)
    np.testing.assert_array_equal(after(0.0), _without_argument(settings, features, labels, responses, start))


def _without_argument(settings, features, labels, responses, start):
    policies = Policies(settings, 1, 4)
    policies.theta = start[None].copy()
    policies.step(features, labels, responses)
    return policies.theta[0]


def test_the_bonus_leads_away_from_the_reference():
    plain, away = (walk(Recipe(exploration_bonus=alpha))[1][-1]["kl"] for alpha in (0.0, 0.05))
    assert away > plain * 1.01


def test_states_go_on_exactly_with_a_recipe():
    recipe = Recipe("generator", self_labelled=0.3, burn_in=2, exploration_bonus=0.01)

    def make():
        return gym.make("PrefAcquireSequential-v0", n_prompts=4, labels_per_round=7, recipe=recipe).unwrapped

    env, other = make(), make()
    env.reset(seed=5)
    rng = np.random.default_rng(0)
    for _ in range(17):
        env.step(rng.integers(env.action_space.n))
    other.load_state_dict(env.state_dict())
    for _ in range(11):
        action = rng.integers(env.action_space.n)
        (ours, *_, info), (theirs, *_, other_info) = env.step(action), other.step(action)
        assert info["win_rate"] == other_info["win_rate"]
        assert info["self_labelled"] == other_info["self_labelled"]
        np.testing.assert_array_equal(ours["reward_samples"], theirs["reward_samples"])
    with pytest.raises(ValueError, match="recipe"):
        gym.make("PrefAcquireSequential-v0", n_prompts=4, labels_per_round=7).unwrapped.load_state_dict(
            env.state_dict()
        )


def test_the_package_shows_it():
    assert prefenv.Recipe is Recipe


def test_own_labels_that_know_no_difference_are_not_counted_in_a_vector():
    settings = SyntheticSettings(n_prompts=4, n_candidates=3)
    labellers = Labellers(settings, Recipe(self_labelled=0.5), anywhere=False, ahead=1)
    labellers.reset([np.random.PCG64(0)], [np.random.PCG64(1)])
    labels = Labels(*np.zeros((3, 1, 4), dtype=np.int64), np.ones((1, 4), dtype=bool))
    both, count = labellers.with_own(labels, np.ones((1, 2, 4, 3)), asked=4)
    assert count.tolist() == [0]
    assert both.valid.tolist() == [[True] * 4 + [False] * 4]


def test_no_labels_come_last_when_labels_are_joined():
    def some(valid, first):
        numbers = np.arange(first, first + len(valid))[None]
        return Labels(numbers, numbers, numbers, np.array([valid]))

    both = some([True, False], 0).and_also(some([True, True], 2))
    assert both.valid.tolist() == [[True, True, True, False]]
    assert both.prompt.tolist() == [[0, 2, 3, 1]]


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_vector_goes_on_exactly_within_the_burn_in(rounds):
    def make():
        return gym.make_vec("PrefAcquire-v0", num_envs=2, recipe=Recipe(self_labelled=0.5, burn_in=2)).unwrapped

    envs, twin = make(), make()
    envs.reset(seed=0)
    envs.action_space.seed(0)
    for _ in range(rounds):
        envs.step(envs.action_space.sample())
    twin.load_state_dict(envs.state_dict())
    for _ in range(3):
        actions = envs.action_space.sample()
        one, other = envs.step(actions)[4], twin.step(actions)[4]
        np.testing.assert_array_equal(one["self_labelled"], other["self_labelled"])
        np.testing.assert_array_equal(one["win_rate"], other["win_rate"])


@pytest.mark.parametrize(
    ("name", "changed"),
    [("recipe", {"recipe": Recipe("generator")}), ("labels_per_round", {"labels_per_round": 3, "budget": 80})],
)
def test_a_state_of_another_recipe_or_form_is_refused(name, changed):
    envs = gym.make_vec("PrefAcquireBudget-v0", num_envs=2, budget=80).unwrapped
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=name):
        gym.make_vec("PrefAcquireBudget-v0", **{"num_envs": 2, "budget": 80} | changed).unwrapped.load_state_dict(
            envs.state_dict()
        )


def test_own_labels_need_a_prompt_each():
    Recipe(self_labelled=0.5).require_prompts(10, 10)
    with pytest.raises(ValueError, match="adds 10 labels"):
        Recipe(self_labelled=0.5).require_prompts(9, 10)


def test_self_labels_do_not_lose_one_to_rounding():
    for percent in range(1, 100):
        for asked in range(1, 300):
            assert Recipe(self_labelled=percent / 100).self_labels(asked) == percent * asked // (100 - percent)


@pytest.mark.parametrize("make", [make_vec.make_vector_env, make_vec.make_budget_vector_env])
def test_other_worlds_get_the_recipe_too(make, monkeypatch):
    monkeypatch.setattr(make_vec, "_simulated", lambda *_: None)
    monkeypatch.setattr(make_vec, "SyncVectorEnv", lambda makers: [one() for one in makers])
    for name in ("PrefAcquireEnv", "PrefAcquireBudgetEnv"):
        monkeypatch.setattr(make_vec, name, lambda *arguments: arguments)
    assert all(Recipe("generator") in arguments for arguments in make(2, "llm", recipe=Recipe("generator")))
