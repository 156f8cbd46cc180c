"""The one interface: registry, selection, predict."""

import gymnasium as gym
import numpy as np
import pytest

import agents
import prefenv
from agents.heuristic import ScoreAgent
from agents.select import best_of_each_prompt, best_of_pool, choose
from prefenv.env import PrefAcquireEnv
from prefenv.forms import PrefAcquireBudgetEnv, PrefAcquireSequentialEnv
from tests.conftest import make_observation


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Untrained weights of the learned agent."""
    network = pytest.importorskip("agents.learned.network")
    path = tmp_path_factory.mktemp("weights") / "ppo.safetensors"
    network.save_scorer(network.PairScorer(), path)
    return str(path)


def build(key, weights, **arguments):
    return agents.make(key, **arguments, **({"weights": weights} if agents.spec(key).learned else {}))


@pytest.mark.parametrize("key", agents.keys())
@pytest.mark.parametrize("env_id", prefenv.ENV_IDS)
def test_every_agent_walks_every_form_of_the_environment(key, env_id, weights):
    env = gym.make(env_id, n_prompts=3, n_candidates=3, budget=9, privileged=agents.spec(key).privileged)
    agent = build(key, weights, action_space=env.action_space, seed=0)
    observation, _ = env.reset(seed=0)
    terminated = False
    while not terminated:
        action, state = agent.predict(observation)
        assert (state is None) != agents.spec(key).design
        assert env.action_space.contains(action)
        observation, _, terminated, _, info = env.step(action)
        assert info["illegal"] == info["repeated"] == 0
    assert info["labels"] == 9


@pytest.mark.parametrize("form", [PrefAcquireEnv, PrefAcquireBudgetEnv, PrefAcquireSequentialEnv])
@pytest.mark.parametrize("key", agents.keys())
def test_ragged_pools_are_honoured(key, form, ragged_world, weights):
    env = form(ragged_world, budget=12, privileged=agents.spec(key).privileged)
    agent = build(key, weights, action_space=env.action_space, seed=0)
    observation, _ = env.reset(seed=0)
    terminated = False
    while not terminated:
        observation, _, terminated, _, info = env.step(agent.predict(observation)[0])
        assert info["illegal"] == info["repeated"] == 0


@pytest.mark.parametrize("key", agents.keys())
def test_stable_baselines3_evaluates_every_agent(key, weights):
    evaluation = pytest.importorskip("stable_baselines3.common.evaluation")
    env_util = pytest.importorskip("stable_baselines3.common.env_util")
    privileged = agents.spec(key).privileged
    envs = env_util.make_vec_env(
        "prefenv:PrefAcquire-v0", n_envs=3, seed=0, env_kwargs={"privileged": privileged, "n_prompts": 3, "budget": 9}
    )
    agent = build(key, weights, seed=0)
    returns, lengths = evaluation.evaluate_policy(agent, envs, n_eval_episodes=6, return_episode_rewards=True)
    assert lengths == [3] * 6
    assert np.all(np.abs(returns) < 0.5)
    again, _ = evaluation.evaluate_policy(
        build(key, weights, seed=0),
        env_util.make_vec_env(
            "prefenv:PrefAcquire-v0",
            n_envs=3,
            seed=0,
            env_kwargs={"privileged": privileged, "n_prompts": 3, "budget": 9},
        ),
        n_eval_episodes=6,
        return_episode_rewards=True,
    )
    assert returns == again


def test_maxmin_is_the_ceiling_and_random_the_floor():
    def final(key):
        rates = []
        for seed in range(20):
            env = gym.make("PrefAcquire-v0", privileged=agents.spec(key).privileged)
            agent = agents.make(key, seed=seed)
            observation, info = env.reset(seed=seed)
            for _ in range(10):
                observation, _, _, _, info = env.step(agent.predict(observation)[0])
            rates.append(info["win_rate"])
        return np.mean(rates)

    assert final("maxmin") > final("random") + 0.02


def test_unknown_names_are_told_the_closest():
    with pytest.raises(ValueError, match="unknown agent 'drst': did you mean 'drts'"):
        agents.make("drst")
    with pytest.raises(ValueError, match="unknown setting of agent 'deltaucb' 'widht': did you mean 'width'"):
        agents.make("deltaucb", widht=2.0)
    with pytest.raises(ValueError, match="prefenv train"):
        agents.make("ppo")
    for key in (None, ["random"], "DRTS", 3):
        with pytest.raises(ValueError, match="unknown agent"):
            agents.make(key)


class TestSelection:
    legal = np.ones((2, 3), dtype=bool)

    def test_best_of_each_prompt_by_hand(self):
        score = np.array([[0.0, 2.0, 1.0], [5.0, 4.0, 9.0]])
        rng = np.random.default_rng(0)
        assert best_of_each_prompt(score, self.legal, rng).tolist() == [1, 2]
        legal = np.array([[True, False, True], [True, True, False]])
        assert best_of_each_prompt(score, legal, rng).tolist() == [2, 0]

    def test_best_of_pool_by_hand(self):
        score = np.array([[0.0, 2.0, 1.0], [5.0, 4.0, 9.0]])
        assert best_of_pool(score, self.legal, 3, np.random.default_rng(0)).tolist() == [5, 3, 4]

    def test_ties_of_the_pool_are_spread(self):
        picks = best_of_pool(np.zeros((4000, 2, 3)), np.ones((4000, 2, 3), dtype=bool), 2, np.random.default_rng(0))
        assert np.all(picks[:, 0] != picks[:, 1])
        assert np.bincount(picks.ravel(), minlength=6) == pytest.approx([8000 / 6] * 6, abs=150)

    def test_infinite_scores_are_ranked_and_nan_is_an_error(self):
        rng = np.random.default_rng(0)
        score = np.array([[-np.inf, -np.inf, -np.inf], [0.0, np.inf, np.inf]])
        picks = best_of_each_prompt(score, np.array([[False, True, False], [True, True, False]]), rng)
        assert picks.tolist() == [1, 1]
        with pytest.raises(ValueError, match="NaN"):
            best_of_each_prompt(np.full((2, 3), np.nan), self.legal, rng)
        score[0, 0] = np.nan  # where no pair may be chosen, a NaN is of no account
        assert best_of_each_prompt(score, np.array([[False, True, False], [True, True, False]]), rng)[1] == 1

    def test_a_legal_pair_of_no_worth_comes_before_an_illegal_one(self):
        score, legal = np.array([[-np.inf, 0.0, 7.0]]), np.array([[True, False, False]])
        for seed in range(20):
            assert best_of_pool(score, legal, 2, np.random.default_rng(seed))[0] == 0

    def test_scores_of_another_shape(self):
        with pytest.raises(ValueError, match="shape"):
            best_of_each_prompt(np.zeros((2, 4)), self.legal, np.random.default_rng(0))

    def test_space_of_another_environment(self):
        observation = make_observation(np.random.default_rng(0), n=3, m=4)
        for space in (gym.spaces.Discrete(7), gym.spaces.MultiDiscrete([6, 6]), gym.spaces.Box(0, 1)):
            with pytest.raises(ValueError, match="another environment"):
                choose(np.zeros((3, 6)), observation, space, np.random.default_rng(0))

    def test_batch_of_budget_and_sequential_actions(self):
        observation = make_observation(np.random.default_rng(0), batch=(5,), n=3, m=4)
        score = np.random.default_rng(1).random((5, 3, 6))
        rng = np.random.default_rng(0)
        assert choose(score, observation, gym.spaces.MultiDiscrete([18] * 4), rng).shape == (5, 4)
        assert (
            choose(score, observation, gym.spaces.Discrete(18), rng).tolist() == score.reshape(5, -1).argmax(1).tolist()
        )


def test_random_does_not_repeat_itself_from_round_to_round():
    observation = make_observation(np.random.default_rng(0), n=50)
    agent = agents.make("random", seed=0)
    assert np.any(agent.predict(observation)[0] != agent.predict(observation)[0])
    assert isinstance(agent, ScoreAgent)
    assert np.array_equal(
        agents.make("random", seed=0).predict(observation)[0], agents.make("random", seed=0).predict(observation)[0]
    )
