"""The adapter between gymnasium's vector environments and Stable-Baselines3."""

import gymnasium as gym
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from gymnasium.utils.env_checker import data_equivalence  # noqa: E402
from gymnasium.vector import AutoresetMode, SyncVectorEnv  # noqa: E402
from stable_baselines3 import PPO  # noqa: E402
from stable_baselines3.common.env_util import make_vec_env  # noqa: E402
from stable_baselines3.common.evaluation import evaluate_policy  # noqa: E402

import agents  # noqa: E402
import prefenv  # noqa: E402
from agents.learned.features import feature_space, pair_features  # noqa: E402
from agents.learned.vec_env import SB3VecEnv  # noqa: E402

SMALL = {"n_prompts": 3, "n_candidates": 3, "budget": 7}


def adapted(n=3, **changed):
    return SB3VecEnv(gym.make_vec("prefenv:PrefAcquire-v0", num_envs=n, **SMALL | changed))


def test_is_what_stable_baselines3_makes_of_single_environments():
    ours, theirs = adapted(), make_vec_env(lambda: gym.make("prefenv:PrefAcquire-v0", **SMALL), n_envs=3)
    for envs in (ours, theirs):
        envs.seed(5)
    assert data_equivalence(dict(ours.reset()), dict(theirs.reset()), exact=True)
    rng = np.random.default_rng(0)
    ended = 0
    for _ in range(8):  # two episodes and two steps
        actions = rng.integers(3, size=(3, 3))
        (a, r, done, infos), (b, s, done_too, infos_too) = ours.step(actions), theirs.step(actions)
        assert data_equivalence(dict(a), dict(b), exact=True)
        np.testing.assert_array_equal(r, s)
        np.testing.assert_array_equal(done, done_too)
        for info, info_too in zip(infos, infos_too, strict=True):
            assert ("terminal_observation" in info) == ("terminal_observation" in info_too)
            if "terminal_observation" in info:
                ended += 1
                assert data_equivalence(info["terminal_observation"], info_too["terminal_observation"], exact=True)
                assert info["TimeLimit.truncated"] == info_too["TimeLimit.truncated"] is False
                assert info["episode"]["l"] == info_too["episode"]["l"] == 3
                assert info["episode"]["r"] == pytest.approx(info_too["episode"]["r"], abs=1e-6)
                assert info["win_rate"] == info_too["win_rate"]
                assert 0 <= info["episode"]["t"] < 60
    assert ended == 6


def test_seeds_are_used_once():
    envs = adapted()
    envs.seed(5)
    first, second = envs.reset()["embedding"], envs.reset()["embedding"]
    assert not np.allclose(first, second)
    envs.seed(5)
    np.testing.assert_array_equal(envs.reset()["embedding"], first)


def test_evaluates_agents_and_trains():
    envs = adapted(budget=9)
    for agent in (agents.make("drts", seed=0), agents.make("random", seed=0)):
        mean, _ = evaluate_policy(agent, envs, n_eval_episodes=6)
        assert -0.5 < mean < 0.5
    model = PPO("MultiInputPolicy", envs, n_steps=6, batch_size=18, n_epochs=1, device="cpu", seed=0).learn(36)
    assert model.ep_info_buffer[0]["l"] == 3


def test_observations_can_be_made_into_features():
    envs = gym.make_vec("prefenv:PrefAcquire-v0", num_envs=2, **SMALL)
    space = feature_space(envs.single_observation_space)
    adapter = SB3VecEnv(envs, pair_features, space)
    assert adapter.observation_space == space
    for _ in range(4):
        adapter.reset()
        features, _, _, infos = adapter.step(np.zeros((2, 3), dtype=int))
        assert features.shape == (2, *space.shape)
    adapter.step(np.zeros((2, 3), dtype=int))
    *_, infos = adapter.step(np.zeros((2, 3), dtype=int))
    assert infos[1]["terminal_observation"].shape == space.shape


def test_worlds_without_labels_have_no_agreement():
    world = prefenv.world_settings("synthetic", n_prompts=1, oracle_tie=2.0)
    envs = SB3VecEnv(gym.make_vec("PrefAcquire-v0", num_envs=40, world=world, budget=1))
    envs.reset()
    *_, infos = envs.step(np.zeros((40, 1), dtype=int))
    assert {"label_agreement" in info for info in infos} == {True, False}
    assert all(("label_agreement" in info) == (info["labels"] == 1) for info in infos)


def test_masks_reach_maskable_ppo():
    maskable = pytest.importorskip("sb3_contrib")
    envs = adapted()
    assert np.shape(envs.env_method("action_masks")) == (3, 9)
    assert np.shape(envs.env_method("action_masks", indices=[0])) == (1, 9)
    maskable.MaskablePPO("MultiInputPolicy", envs, n_steps=6, batch_size=18, n_epochs=1, device="cpu").learn(18)


class Countdown(gym.Env):
    """Ends after as many steps as its seed says."""

    observation_space = gym.spaces.Box(0, 9, (1,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.left = seed or 1
        return np.array([self.left], dtype=np.float32), {}

    def step(self, action):
        self.left -= 1
        return np.array([self.left], dtype=np.float32), 1.0, self.left == 0, False, {}


def test_episodes_of_different_length_are_refused():
    envs = SB3VecEnv(SyncVectorEnv([Countdown] * 2))
    envs.seed(1)  # lengths 1 and 2
    envs.reset()
    with pytest.raises(RuntimeError, match="different steps"):
        envs.step(np.zeros(2, dtype=int))
    with pytest.raises(ValueError, match="NEXT_STEP"):
        SB3VecEnv(SyncVectorEnv([Countdown] * 2, autoreset_mode=AutoresetMode.SAME_STEP))


def test_attributes_are_shared_and_cannot_be_set():
    envs = adapted()
    assert envs.get_attr("budget") == [7, 7, 7]
    assert envs.get_attr("budget", [1]) == [7]
    assert envs.get_attr("action_space", [0]) == [envs.action_space]
    envs.envs.unwrapped.rows = lambda: ["a", "b", "c"]
    assert envs.env_method("rows", indices=[2, 0]) == ["c", "a"]
    assert envs.env_is_wrapped(gym.Wrapper) == [False] * 3
    with pytest.raises(NotImplementedError, match="share"):
        envs.set_attr("budget", 8)
    envs.close()


def test_members_of_a_sync_vector_answer_for_themselves():
    envs = SB3VecEnv(gym.make_vec("prefenv:PrefAcquireSequential-v0", num_envs=2, n_prompts=2, n_candidates=3))
    envs.reset()
    envs.step(np.array([1, 4]))
    first, second = envs.env_method("action_masks")
    assert np.flatnonzero(~first).tolist() == [1]
    assert np.flatnonzero(~second).tolist() == [4]
    assert np.flatnonzero(~envs.env_method("action_masks", indices=1)[0]).tolist() == [4]
    assert envs.has_attr("action_masks")
    assert envs.get_attr("privileged", indices=[0]) == [False]
    with pytest.raises(AttributeError):
        envs.get_attr("nothing_of_the_kind")
    assert not envs.has_attr("nothing_of_the_kind")


def test_infos_of_a_reset_are_those_of_the_new_episode():
    envs = adapted(n=2)
    envs.reset()
    before = envs.reset_infos
    for _ in range(3):
        _, _, done, infos = envs.step(np.zeros((2, 3), dtype=np.int64))
    assert done.all()
    assert [info["labels"] for info in infos] == [7, 7]
    assert [info["labels"] for info in envs.reset_infos] == [0, 0]
    assert envs.reset_infos != before
