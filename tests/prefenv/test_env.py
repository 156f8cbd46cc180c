import dataclasses
import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence

import prefenv
from prefenv.env import PrefAcquireEnv
from prefenv.forms import PrefAcquireBudgetEnv, PrefAcquireSequentialEnv

SMALL = {"n_prompts": 3, "n_candidates": 3}
WARNINGS_THAT_DO_NOT_MATTER = (
    "observation space minimum value is -infinity",  # rewards and log-probabilities have no bounds
    "observation space maximum value is infinity",
)


def walk(env, steps, actions):
    """Observations, rewards, ends and infos of so many steps, through the ends of episodes."""
    trail = []
    for _, action in zip(range(steps), actions, strict=False):
        observation, reward, terminated, truncated, info = env.step(action)
        trail.append((observation, reward, terminated, truncated, info))
        if terminated:
            trail.append(env.reset())
    return trail


def sampled(env, steps, seed=0):
    env.action_space.seed(seed)
    return [env.action_space.sample() for _ in range(steps)]


@pytest.mark.parametrize("env_id", prefenv.ENV_IDS)
@pytest.mark.parametrize("privileged", [False, True])
def test_gymnasium_check_env_has_no_warning_that_matters(env_id, privileged):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(gym.make(env_id, privileged=privileged).unwrapped)
    messages = [str(w.message) for w in caught]
    assert [m for m in messages if not any(known in m for known in WARNINGS_THAT_DO_NOT_MATTER)] == []


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("env_id", prefenv.ENV_IDS)
def test_stable_baselines3_check_env(env_id):
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    checker.check_env(gym.make(env_id))


def test_qualified_id_registers_by_itself():
    assert gym.make("prefenv:PrefAcquire-v0").spec.id == "PrefAcquire-v0"


@pytest.mark.parametrize("env_id", prefenv.ENV_IDS)
def test_fifty_steps_are_deterministic_info_included(env_id):
    first, second = gym.make(env_id, budget=33, **SMALL), gym.make(env_id, budget=33, **SMALL)
    assert data_equivalence(first.reset(seed=5), second.reset(seed=5), exact=True)
    actions = sampled(first, 50)
    a, b = walk(first, 50, actions), walk(second, 50, actions)
    assert data_equivalence(a, b, exact=True)
    assert not data_equivalence(a, walk(second, 50, actions), exact=True)  # and the comparison can fail


@pytest.mark.parametrize("env_id", prefenv.ENV_IDS)
def test_state_saved_in_mid_episode_goes_on_bit_for_bit(env_id):
    env = gym.make(env_id, budget=31, **SMALL).unwrapped
    env.reset(seed=3)
    actions = sampled(env, 47)
    walk(env, 7, actions[:7])  # in the sequential form this is the middle of a round
    state = pickle.loads(pickle.dumps(env.state_dict()))
    expected = walk(env, 40, actions[7:])
    other = gym.make(env_id, budget=31, **SMALL).unwrapped
    other.reset(seed=99)
    other.load_state_dict(state)
    assert data_equivalence(expected, walk(other, 40, actions[7:]), exact=True)
    env.load_state_dict(state)  # the state was not touched by being used
    assert data_equivalence(expected, walk(env, 40, actions[7:]), exact=True)


def test_state_of_another_version_or_size_is_refused():
    env = gym.make("PrefAcquire-v0", **SMALL).unwrapped
    env.reset(seed=0)
    state = env.state_dict()
    with pytest.raises(ValueError, match="version 99"):
        env.load_state_dict(state | {"version": 99})
    other = gym.make("PrefAcquire-v0", n_prompts=4, n_candidates=3).unwrapped
    other.reset(seed=0)
    with pytest.raises(ValueError, match="n_prompts 3 there, 4 here"):
        other.load_state_dict(state)


@pytest.mark.parametrize("env_id", prefenv.ENV_IDS)
def test_rewards_sum_to_final_win_rate_less_one_half(env_id):
    env = gym.make(env_id, **SMALL)
    _, info = env.reset(seed=1)
    assert info["win_rate"] == pytest.approx(0.5)
    total, terminated = 0.0, False
    env.action_space.seed(0)
    while not terminated:
        _, reward, terminated, truncated, info = env.step(env.action_space.sample())
        total += reward
        assert not truncated
    assert total == pytest.approx(info["win_rate"] - 0.5)
    assert info["spent"] == 30
    with pytest.raises(RuntimeError, match="reset"):
        env.unwrapped.step(env.action_space.sample())


def test_the_last_round_spends_what_is_left():
    env = gym.make("PrefAcquire-v0", budget=7, **SMALL)
    env.reset(seed=0)
    spent = []
    for _ in range(3):
        observation, _, terminated, _, info = env.step(np.array([0, 1, 2]))
        spent.append((info["spent"], info["labels"], terminated, (info["preferences"] >= 0).all(1).sum()))
    assert spent == [(3, 3, False, 3), (6, 6, False, 3), (7, 7, True, 1)]
    assert info["preferences"].shape == (3, 3)  # whatever was spent, so that vector environments can stack it
    assert observation["budget"] == [0.0]


def test_forbidden_pairs_cost_but_are_not_labelled(ragged_world):
    env = PrefAcquireEnv(ragged_world, budget=6)
    env.reset(seed=0)
    masks = env.action_masks().reshape(3, 6)
    assert masks.sum(axis=1).tolist() == [3, 6, 3]
    forbidden = 2  # pair (0, 3)
    _, reward, terminated, _, info = env.step(np.array([forbidden, forbidden, 0]))
    assert (info["illegal"], info["labels"], info["spent"]) == (1, 2, 3)
    assert reward == pytest.approx(0.02)
    assert (info["preferences"][:, 0] >= 0).sum() == 2
    assert not terminated
    _, _, terminated, _, info = env.step(np.array([forbidden, 0, forbidden]))
    assert (info["illegal"], info["labels"], info["spent"], terminated) == (2, 3, 6, True)


def test_every_label_is_of_the_pair_that_was_asked(ragged_world):
    env = PrefAcquireEnv(ragged_world)
    first, second = prefenv.spaces.pair_table(4)
    observation, _ = env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(10):
        action = np.array([rng.choice(np.flatnonzero(row)) for row in env.action_masks().reshape(3, 6)])
        reward = observation["embedding"][..., 0]
        observation, _, _, _, info = env.step(action)
        for row, (prompt, chosen, rejected) in enumerate(info["preferences"]):
            assert prompt == row
            assert {chosen, rejected} == {first[action[row]], second[action[row]]}
            assert reward[prompt, chosen] > reward[prompt, rejected]  # the oracle is noiseless
        assert info["label_agreement"] == 1.0


def test_repeated_pair_is_labelled_once_and_counted(ragged_world):
    env = PrefAcquireBudgetEnv(ragged_world, labels_per_round=4, budget=8)
    assert env.action_space == gym.spaces.MultiDiscrete([18] * 4)
    env.reset(seed=0)
    _, _, _, _, info = env.step(np.array([7, 7, 2, 6]))  # 2 is prompt 0, pair (0, 3): forbidden
    assert (info["repeated"], info["illegal"], info["labels"], info["spent"]) == (1, 1, 2, 4)
    assert info["judged"] == 4
    assert env.action_masks().shape == (4 * 18,)


def test_sequential_round_is_the_budget_round(ragged_world):
    budget = PrefAcquireBudgetEnv(prefenv.make_world("synthetic", n_prompts=3), labels_per_round=4)
    sequential = PrefAcquireSequentialEnv(prefenv.make_world("synthetic", n_prompts=3), labels_per_round=4)
    assert sequential.action_space == gym.spaces.Discrete(18)
    budget.reset(seed=2)
    start, _ = sequential.reset(seed=2)
    expected, expected_reward, _, _, expected_info = budget.step(np.array([3, 17, 0, 8]))
    for count, action in enumerate([3, 17, 0], start=1):
        observation, reward, terminated, _, info = sequential.step(action)
        assert (reward, terminated, info["labels"], info["spent"]) == (0.0, False, 0, count)
        assert observation["selected"][action] == 1.0
        assert not sequential.action_masks()[action]
        assert observation["budget"] == pytest.approx(1 - count / 40)
        np.testing.assert_array_equal(observation["embedding"], start["embedding"])
    observation, reward, _, _, info = sequential.step(8)
    assert reward == expected_reward
    assert data_equivalence(info, expected_info, exact=True)
    assert observation.pop("selected").sum() == 0
    assert data_equivalence(observation, expected, exact=True)


def test_action_masks_never_forbid_everything():
    env = PrefAcquireSequentialEnv(n_prompts=1, n_candidates=2, labels_per_round=1, budget=3)
    env.reset(seed=0)
    assert env.action_masks().any()


def test_privileged_shows_the_reward_and_nothing_else_does():
    env = gym.make("PrefAcquire-v0", privileged=True, **SMALL)
    observation, info = env.reset(seed=0)
    np.testing.assert_allclose(observation["oracle_score"], env.unwrapped._pool.reward, rtol=1e-6)
    assert info["judged"] == 9
    plain, plain_info = gym.make("PrefAcquire-v0", **SMALL).reset(seed=0)
    assert plain_info["judged"] == 0
    assert observation["oracle_gain"].shape == (3, 3)
    del observation["oracle_score"], observation["oracle_gain"]
    assert data_equivalence(observation, plain, exact=True)  # the same world but for that entry
    for value in plain.values():
        assert not any(
            np.allclose(part, env.unwrapped._pool.reward) for part in np.atleast_3d(value) if part.shape == (3, 3)
        )


def test_same_seed_is_the_same_world_for_every_agent():
    a, b = gym.make("PrefAcquire-v0", **SMALL), gym.make("PrefAcquire-v0", **SMALL)
    a.reset(seed=4), b.reset(seed=4)
    after_a, *_ = a.step(np.zeros(3, dtype=np.int64))
    after_b, *_ = b.step(np.full(3, 2))
    np.testing.assert_array_equal(
        after_a["embedding"], after_b["embedding"]
    )  # many generators: pools do not depend on the policy
    assert not np.array_equal(after_a["reward_mean"], after_b["reward_mean"])


def test_seed_zero_is_a_seed():
    env = gym.make("PrefAcquire-v0", **SMALL)
    assert data_equivalence(env.reset(seed=0), env.reset(seed=0), exact=True)
    assert not data_equivalence(env.reset(seed=0), env.reset(seed=1), exact=True)
    assert not data_equivalence(env.reset(), env.reset(), exact=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"world": "sinthetic"}, "did you mean 'synthetic'"),
        ({"n_candidates": 1}, "n_candidates=1"),
        ({"n_candidates": 9}, "more generators"),
        ({"n_prompts": 0}, "n_prompts=0"),
        ({"budget": 0}, "budget=0"),
        ({"world": 3}, "make_world"),
    ],
)
def test_wrong_arguments_say_the_way_out(arguments, message):
    with pytest.raises(ValueError, match=message):
        gym.make("PrefAcquire-v0", **arguments)


def test_sizes_beside_a_world_must_agree(ragged_world):
    assert PrefAcquireEnv(ragged_world, n_prompts=3).world is ragged_world
    with pytest.raises(ValueError, match="set it where it is made"):
        PrefAcquireEnv(ragged_world, n_prompts=5)


@pytest.mark.parametrize("k", [0, 55])
def test_labels_per_round_must_fit(k):
    with pytest.raises(ValueError, match="labels_per_round"):
        gym.make("PrefAcquireBudget-v0", n_prompts=9, n_candidates=4, labels_per_round=k)


def test_action_outside_the_space_is_an_error():
    env = gym.make("PrefAcquire-v0", **SMALL).unwrapped
    env.reset(seed=0)
    with pytest.raises(ValueError, match="is not in"):
        env.step(np.array([0, 0, 3]))


@pytest.mark.parametrize("env_id", prefenv.ENV_IDS)
def test_gymnasium_vector_environments_of_unequal_episodes(env_id):
    envs = gym.vector.SyncVectorEnv([lambda b=b: gym.make(env_id, budget=b, **SMALL) for b in (4, 7)])
    envs.reset(seed=0)
    for _ in range(20):
        _, rewards, _, _, info = envs.step(envs.action_space.sample())
    assert rewards.shape == info["win_rate"].shape == (2,)
    assert info["preferences"].shape == (2, 3, 3)


def test_posterior_learns_and_the_last_observation_shows_it():
    env = gym.make("PrefAcquire-v0", budget=6, **SMALL).unwrapped
    observation, _ = env.reset(seed=0)
    assert np.all(observation["reward_mean"] == 0)
    observation, *_ = env.step(np.zeros(3, dtype=np.int64))
    assert np.any(observation["reward_mean"] != 0)
    last, _, terminated, _, _ = env.step(np.zeros(3, dtype=np.int64))
    assert terminated
    np.testing.assert_array_equal(last["embedding"], observation["embedding"])  # no pool is drawn for nobody
    np.testing.assert_allclose(last["reward_mean"], env.world.posterior.mean(last["embedding"]), rtol=1e-5)
    assert np.any(last["reward_mean"] != observation["reward_mean"])


def test_abstentions_are_counted_and_are_no_labels(ragged_world, monkeypatch):
    compare = ragged_world.oracle.compare

    def abstains_on_the_first(pool, pairs):
        labels = compare(pool, pairs)
        return type(labels)(labels.prompt[1:], labels.chosen[1:], labels.rejected[1:], abstained=1)

    monkeypatch.setattr(ragged_world.oracle, "compare", abstains_on_the_first)
    env = PrefAcquireEnv(ragged_world)
    env.reset(seed=0)
    info = env.step(np.zeros(3, dtype=np.int64))[-1]
    assert (info["abstained"], info["labels"], info["spent"], info["judged"]) == (1, 2, 3, 6)


def test_privileged_judges_every_candidate_shown_and_no_other(ragged_world):
    env = PrefAcquireEnv(ragged_world, budget=6, privileged=True)
    judged = [env.reset(seed=0)[1]["judged"]]
    judged += [env.step(np.zeros(3, dtype=np.int64))[-1]["judged"] for _ in range(2)]
    assert judged == [10, 20, 20]  # 4 + 3 + 3 in each of two pools


def test_a_state_is_not_changed_by_going_on():
    for env_id in prefenv.ENV_IDS:
        env = gym.make(env_id, **SMALL).unwrapped
        env.reset(seed=0)
        walk(env, 4, sampled(env, 4))
        state = env.state_dict()
        frozen = pickle.dumps(state)
        walk(env, 5, sampled(env, 5))
        assert pickle.dumps(state) == frozen


def test_a_world_serves_one_environment_at_a_time():
    world = prefenv.make_world("synthetic", n_prompts=3)
    first, second = PrefAcquireEnv(world), PrefAcquireEnv(world)
    first.reset(seed=0)
    first.step(np.zeros(3, dtype=np.int64))
    second.reset(seed=1)
    with pytest.raises(RuntimeError, match="another environment has reset this World"):
        first.step(np.zeros(3, dtype=np.int64))
    second.step(np.zeros(3, dtype=np.int64))
    first.reset(seed=0)  # taking turns is fine
    first.step(np.zeros(3, dtype=np.int64))


def test_a_state_of_another_environment_changes_nothing():
    env = PrefAcquireEnv(prefenv.make_world("synthetic", n_prompts=3))
    env.reset(seed=0)
    state = env.state_dict()
    others = {
        "budget": PrefAcquireEnv(prefenv.make_world("synthetic", n_prompts=3), budget=7),
        "beta": PrefAcquireEnv(prefenv.make_world("synthetic", n_prompts=3, beta=0.2)),
        "form": PrefAcquireSequentialEnv(prefenv.make_world("synthetic", n_prompts=3)),
        "privileged": PrefAcquireEnv(prefenv.make_world("synthetic", n_prompts=3), privileged=True),
    }
    for difference, other in others.items():
        other.reset(seed=1)
        before = pickle.dumps(other.state_dict())
        with pytest.raises(ValueError, match=difference):
            other.load_state_dict(state)
        assert pickle.dumps(other.state_dict()) == before


@pytest.mark.parametrize("call", ["action_masks", "state_dict"])
@pytest.mark.parametrize("env_id", prefenv.ENV_IDS)
def test_before_reset_there_is_no_episode(env_id, call):
    env = gym.make(env_id, **SMALL).unwrapped
    with pytest.raises(RuntimeError, match=r"reset\(\) first"):
        getattr(env, call)()
    with pytest.raises(RuntimeError, match=r"reset\(\) first"):
        env.step(env.action_space.sample())


@pytest.mark.parametrize("name", ["budget", "n_prompts", "n_candidates"])
@pytest.mark.parametrize("value", [2.5, "8", True, float("nan"), -1])
def test_sizes_are_whole_numbers(name, value):
    with pytest.raises(ValueError, match=f"{name}=.*whole number"):
        gym.make("PrefAcquire-v0", **{name: value})


def test_win_rate_interval_is_shown():
    env = gym.make("PrefAcquire-v0", **SMALL)
    env.reset(seed=0)
    info = env.step(np.zeros(3, dtype=np.int64))[-1]
    assert info["win_rate_low"] < info["win_rate"] < info["win_rate_high"]
    assert type(info["win_rate_low"]) is float


def test_hidden_reward_does_not_reach_the_observation(monkeypatch):
    plain = PrefAcquireEnv(prefenv.make_world("synthetic", n_prompts=3))
    twisted = PrefAcquireEnv(prefenv.make_world("synthetic", n_prompts=3))
    draw = twisted.world.source.draw

    def with_another_reward():
        pool = draw()
        return dataclasses.replace(pool, pools=dataclasses.replace(pool.pools, reward=-3.0 * pool.pools.reward))

    monkeypatch.setattr(twisted.world.source, "draw", with_another_reward)
    assert data_equivalence(plain.reset(seed=0)[0], twisted.reset(seed=0)[0], exact=True)
