"""What is picked from scores, and what is remembered of it."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

import agents
from agents.scores import herding
from agents.select import best_of_each_prompt, best_of_pool, legal_pairs
from prefenv.forms import PrefAcquireBudgetEnv
from prefenv.spaces import n_pairs, pair_mask
from tests.agents.rounds import RULES, budget_agent, one_by_one
from tests.conftest import make_observation


def test_selected_pairs_are_open_again_only_where_a_whole_pool_is_selected():
    mask = np.array([[[1, 1, 1], [1, 1, 0]]] * 2)
    selected = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]])
    legal = legal_pairs({"mask": mask, "selected": selected})
    np.testing.assert_array_equal(legal[0], pair_mask(mask[0]))
    np.testing.assert_array_equal(legal[1], [[0, 0, 0], [1, 0, 0]])


def test_the_only_legal_pair_is_chosen_though_it_is_worth_nothing():
    legal = np.array([[False, True, False]])
    for seed in range(20):
        assert best_of_each_prompt(np.full((1, 3), -np.inf), legal, np.random.default_rng(seed)).tolist() == [1]


@pytest.mark.parametrize("k", [2, 6])
def test_equal_pairs_are_in_no_order(k):
    picks = best_of_pool(np.zeros((4000, 2, 3)), np.ones((4000, 2, 3), dtype=bool), k, np.random.default_rng(0))
    for place in range(k):
        np.testing.assert_allclose(np.bincount(picks[:, place], minlength=6) / 4000, 1 / 6, atol=0.03)


@pytest.mark.parametrize("k", [2, 6])
def test_a_nan_in_the_pool_is_an_error(k):
    score = np.array([[0.0, np.nan, 1.0], [2.0, 3.0, 4.0]])
    with pytest.raises(ValueError, match="NaN"):
        best_of_pool(score, np.ones((2, 3), dtype=bool), k, np.random.default_rng(0))


def test_the_memory_drops_what_no_episode_has():
    shown = make_observation(np.random.default_rng(0), batch=(2,), n=4, m=3)
    agent, state = budget_agent(RULES["coreset"], shown, 3), None
    for t in range(20):  # episodes of five rounds, two rounds apart
        _, state = agent.predict(shown, state, np.array([t % 5 == 0, t % 5 == 2]))
    assert state[1].shape[-1] <= 3 * 5


def test_what_is_not_legal_is_not_remembered():
    shown = make_observation(np.random.default_rng(0), n=2, m=3)
    shown["mask"][:, 2] = 0  # two legal pairs
    _, (_, known) = budget_agent(RULES["coreset"], shown, 5).predict(shown)
    assert known.tolist() == [True, True, False, False, False]


@pytest.mark.parametrize("state_of", [{"n": 3, "m": 3, "d": 4}, {"n": 3, "m": 3, "d": 5, "batch": (2,)}])
def test_a_memory_of_other_environments_is_told(state_of):
    rng = np.random.default_rng(0)
    shown, other = make_observation(rng, n=3, m=3, d=5), make_observation(rng, **state_of)
    state = budget_agent(RULES["coreset"], other, 2).predict(other)[1]
    with pytest.raises(ValueError, match="pass state=None"):
        budget_agent(RULES["coreset"], shown, 2).predict(shown, state)


@pytest.mark.parametrize("key", RULES)
def test_padding_means_nothing_where_all_pairs_of_a_prompt_are_selected(key):
    n, m = 6, 4
    shown = make_observation(np.random.default_rng(0), n=n, m=m)
    shown["mask"][:3, :2] = 0
    selected = np.zeros((n, n_pairs(m)), dtype=np.float32)
    selected[0] = pair_mask(shown["mask"])[0]
    shown["selected"] = selected.ravel()
    junk = {name: value.copy() for name, value in shown.items()}
    padded = shown["mask"] == 0
    for name in ("embedding", "implicit_reward"):
        junk[name][padded] = 1e15
    for seed in range(20):
        one, other = (agents.make(key, gym.spaces.Discrete(n * n_pairs(m)), seed).predict(o)[0] for o in (shown, junk))
        assert one == other


def test_u_herding_one_by_one_covers_as_all_at_once():
    shown = make_observation(np.random.default_rng(8), n=10, m=4)
    state = np.ones((1, 2, 5), dtype=np.float32), np.ones(1, dtype=bool)
    settings = {"oversample": 1, "bandwidth": 0.7}
    sequential = one_by_one(herding.u_herding, shown, 6, 0, state, **settings)
    together, _ = budget_agent(herding.u_herding, shown, 6, 0, **settings).predict(shown, state)
    assert set(sequential) == set(together.tolist())


def test_aliases():
    for alias, key in (("rmargin", "margin"), ("delta-generator", "deltaqwen"), ("adpo", "dopt")):
        assert agents.spec(alias).key == key


def test_memory_in_a_vector_whose_episodes_end_at_different_times():
    # the step after the last one of an episode ignores its action, so the memory of it has to be dropped a step later
    envs = SyncVectorEnv(
        [
            lambda budget=budget: PrefAcquireBudgetEnv(n_prompts=6, labels_per_round=2, budget=budget)
            for budget in (4, 10)
        ]
    )
    observation, info = envs.reset(seed=0)
    agent, state = agents.make("coreset", envs.single_action_space, seed=0), None
    start, over, apart = np.ones(2, dtype=bool), np.zeros(2, dtype=bool), 0
    for _ in range(14):
        action, state = agent.predict(observation, state, episode_start=start)
        observation, _, terminated, truncated, info = envs.step(action)
        remembered = state[1].sum(axis=1)
        np.testing.assert_array_equal(remembered[~over], info["labels"][~over])
        start, over = over, terminated | truncated
        apart += len(set(info["labels"])) == 2
    assert apart > 5
