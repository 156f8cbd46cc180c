"""Many worlds at once walk exactly like single ones."""

import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import agents
import prefenv
from prefenv.synthetic.simulator import CHUNK
from prefenv.vector import PrefAcquireVectorEnv

B = 5
SEEDS = [3, 1, 4, 1, 5]
EVERYTHING = prefenv.world_settings(
    "synthetic", n_prompts=11, oracle_tie=1.0, oracle_flip=0.1, loss="ipo", posterior="ensemble", warm_labels=13,
    consistency_spread=0.3, reference_strength=1.0, embedding_size=7, style_bias=0.5, n_samples=5,
)  # fmt: skip
KINDS = {
    "default": {},
    "active-ultrafeedback": {"world": "active-ultrafeedback", "n_prompts": 4},
    "on-policy, privileged": {"world": "on-policy", "privileged": True},
    "a budget that no round divides": {"n_prompts": 3, "budget": 7},
    "smallest": {"n_prompts": 1, "n_candidates": 2},
    "smallest everything": {
        "world": prefenv.world_settings(
            "synthetic", n_prompts=1, n_candidates=2, n_generators=2, embedding_size=1, n_eval_prompts=1, n_samples=1
        )
    },
    "ties and SimPO": {"world": prefenv.world_settings("synthetic", oracle_tie=1.0, loss="simpo")},
    "everything": {"world": EVERYTHING, "privileged": True},
    "one round": {"n_prompts": 4, "budget": 3},
    "hardly any label": {"world": prefenv.world_settings("synthetic", n_prompts=1, oracle_tie=3.0)},
    "SEA": {"recipe": prefenv.Recipe(self_labelled=0.3, burn_in=2)},
    "XPO": {"recipe": prefenv.Recipe(exploration_bonus=0.01)},
    "labels by generators": {"recipe": prefenv.Recipe(labels="generator")},
    "all at once": {
        "world": EVERYTHING, "budget": 60,
        "recipe": prefenv.Recipe("generator", self_labelled=0.5, exploration_bonus=0.5),
    },
    "anywhere": {"id": "PrefAcquireBudget-v0"},
    "anywhere, one label": {"id": "PrefAcquireBudget-v0", "labels_per_round": 1, "budget": 7, "privileged": True},
    "anywhere, most asked twice": {
        "id": "PrefAcquireBudget-v0", "world": EVERYTHING, "n_prompts": 2, "n_candidates": 3, "labels_per_round": 5,
        "budget": 23, "recipe": prefenv.Recipe(self_labelled=0.25, burn_in=1),
    },
}  # fmt: skip


def pair(kind):
    one, other = (
        gym.make_vec(**{"id": "PrefAcquire-v0"} | KINDS[kind], num_envs=B, vectorization_mode=mode)
        for mode in (None, "sync")
    )
    assert isinstance(one, PrefAcquireVectorEnv)
    assert isinstance(other, SyncVectorEnv)
    return one, other


@pytest.mark.parametrize("kind", KINDS)
def test_walks_exactly_like_single_environments(kind):
    one, other = pair(kind)
    assert one.observation_space == other.observation_space
    assert one.action_space == other.action_space
    assert data_equivalence(one.reset(seed=SEEDS), other.reset(seed=SEEDS), exact=True)
    one.action_space.seed(0)
    for _ in range(23):  # through two autoresets at the least
        actions = one.action_space.sample()
        ours, theirs = one.step(actions), other.step(actions)
        assert data_equivalence(ours, theirs, exact=True)
        assert one.observation_space.contains(ours[0])


def test_more_worlds_than_are_drawn_together():
    sizes = {"n_prompts": 1, "budget": 2, "num_envs": CHUNK + 3}
    one, other = (gym.make_vec("PrefAcquire-v0", vectorization_mode=mode, **sizes) for mode in (None, "sync"))
    assert data_equivalence(one.reset(seed=0), other.reset(seed=0), exact=True)
    actions = one.action_space.sample()
    assert data_equivalence(one.step(actions), other.step(actions), exact=True)


@pytest.mark.parametrize("key", ["drts", "random", "oracle-greedy"])
def test_an_agent_chooses_alike_in_both(key):
    def walk(mode):
        envs = gym.make_vec("PrefAcquire-v0", num_envs=3, vectorization_mode=mode, privileged=True, n_prompts=3)
        agent, (observation, info) = agents.make(key, seed=0), envs.reset(seed=0)
        rates = []
        for _ in range(12):
            observation, _, _, _, info = envs.step(agent.predict(observation)[0])
            rates.append(info["win_rate"])
        return np.array(rates)

    np.testing.assert_array_equal(walk(None), walk("sync"))


def test_resets_in_the_step_after_the_last_whatever_the_action():
    envs = gym.make_vec("PrefAcquire-v0", num_envs=2, n_prompts=3, budget=6)
    assert envs.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    envs.reset(seed=0)
    actions = envs.action_space.sample()
    assert not envs.step(actions)[2].any()
    _, rewards, terminated, truncated, info = envs.step(actions)
    assert terminated.all()
    assert not truncated.any()
    assert info["spent"].tolist() == [6, 6]
    observation, rewards, terminated, _, info = envs.step(np.full((2, 3), 10**6))
    assert rewards.tolist() == [0.0, 0.0]
    assert not terminated.any()
    assert info["spent"].tolist() == [0, 0]
    assert info["win_rate"] == pytest.approx(0.5, abs=1e-5)
    assert observation["budget"].tolist() == [[1.0], [1.0]]


def test_rewards_sum_to_the_final_win_rate_less_one_half():
    envs = gym.make_vec("PrefAcquire-v0", num_envs=4)
    envs.reset(seed=0)
    steps = [envs.step(envs.action_space.sample()) for _ in range(10)]
    assert steps[-1][2].all()
    np.testing.assert_allclose(sum(step[1] for step in steps), steps[-1][4]["win_rate"] - 0.5, atol=1e-5)


def test_worlds_do_not_touch_each_other():
    envs = gym.make_vec("PrefAcquire-v0", num_envs=2, n_prompts=3)
    runs = []
    for other_seed, other_action in ((1, 0), (2, 5)):
        observation, _ = envs.reset(seed=[0, other_seed])
        trail = [observation]
        for _ in range(3):
            observation, *_ = envs.step(np.array([[0, 1, 2], [other_action] * 3]))
            trail.append(observation)
        runs.append([{name: value[0] for name, value in o.items()} for o in trail])
    assert data_equivalence(*runs, exact=True)


def test_seeds():
    envs = gym.make_vec("PrefAcquire-v0", num_envs=3, n_prompts=2)
    by_list, _ = envs.reset(seed=[7, 8, 9])
    by_first, _ = envs.reset(seed=7)
    assert data_equivalence(by_list, by_first, exact=True)
    assert envs.unwrapped.np_random_seed == (7, 8, 9)
    on, _ = envs.reset()
    assert not np.allclose(on["embedding"], by_list["embedding"])
    envs.reset(seed=[7, 8, 9])
    mixed, _ = envs.reset(seed=[None, 8, None])
    np.testing.assert_array_equal(mixed["embedding"][0], on["embedding"][0])  # goes on with its generator
    np.testing.assert_array_equal(mixed["embedding"][1], by_list["embedding"][1])
    for numpys in (np.int64(7), np.arange(7, 10)):
        assert data_equivalence(envs.reset(seed=numpys)[0], by_list, exact=True)
    with pytest.raises(Exception, match="-1"):
        envs.reset(seed=[1, 2, -1])
    assert envs.unwrapped.np_random_seed == (7, 8, 9)  # a wrong seed has changed nothing
    with pytest.raises(ValueError, match="2 seeds for 3 environments"):
        envs.reset(seed=[1, 2])
    with pytest.raises(ValueError, match="reset together"):
        envs.reset(options={"reset_mask": np.array([True, False, False])})
    fresh = [gym.make_vec("PrefAcquire-v0", num_envs=2, n_prompts=2).reset()[0]["embedding"] for _ in range(2)]
    assert not np.allclose(fresh[0], fresh[1])
    assert not np.allclose(fresh[0][0], fresh[0][1])


def test_nothing_returned_is_changed_later_or_changes_the_environment():
    walks = []
    for spoil in (False, True):
        envs = gym.make_vec("PrefAcquire-v0", num_envs=2, n_prompts=2, budget=6, privileged=True)
        returned = [envs.reset(seed=0)]
        kept = copy.deepcopy(returned)
        for _ in range(4):
            step = envs.step(np.array([[0, 1], [2, 3]]))
            returned.append((step[0], step[4], {"rewards": step[1], "terminated": step[2]}))
            kept.append(copy.deepcopy(returned[-1]))
            if spoil:
                for values in returned[-1]:
                    for array in values.values():
                        array[...] = 0
            elif len({id(value) for value in step[4].values()}) < len(step[4]):
                raise AssertionError("two entries of info are one array")
        if not spoil:
            assert data_equivalence(returned, kept, exact=True)
        walks.append(kept)
    assert data_equivalence(*walks, exact=True)


@pytest.mark.parametrize("steps", [0, 2, 10, 13])
@pytest.mark.parametrize("how", ["state", "pickle", "deepcopy"])
def test_a_restored_environment_goes_on_exactly(steps, how):
    def make():
        return gym.make_vec("PrefAcquire-v0", num_envs=2, world=EVERYTHING).unwrapped

    envs = make()
    envs.reset(seed=0)
    envs.action_space.seed(0)
    actions = [envs.action_space.sample() for _ in range(steps + 14)]
    for index in range(steps):
        envs.step(actions[index])
    if how == "state":
        state = copy.deepcopy(envs.state_dict())
        twin = make()
        twin.load_state_dict(state)
    else:
        twin = pickle.loads(pickle.dumps(envs)) if how == "pickle" else copy.deepcopy(envs)
    assert twin.np_random_seed == envs.np_random_seed
    expected = [envs.step(action) for action in actions[steps:]]
    assert data_equivalence(expected, [twin.step(action) for action in actions[steps:]], exact=True)
    if how == "state":  # using a state does not change it
        twin.load_state_dict(state)
        assert data_equivalence(expected, [twin.step(action) for action in actions[steps:]], exact=True)


def test_a_state_of_another_environment_is_refused():
    envs = gym.make_vec("PrefAcquire-v0", num_envs=2).unwrapped
    with pytest.raises(RuntimeError, match="reset"):
        envs.state_dict()
    envs.reset(seed=0)
    state = envs.state_dict()
    different = {
        "num_envs": {"num_envs": 3}, "budget": {"budget": 9}, "settings": {"n_prompts": 3},
        "privileged": {"privileged": True},
    }  # fmt: skip
    for name, changed in different.items():
        other = gym.make_vec("PrefAcquire-v0", **{"num_envs": 2} | changed).unwrapped
        with pytest.raises(ValueError, match=name):
            other.load_state_dict(state)
    with pytest.raises(ValueError, match="version"):
        envs.load_state_dict(state | {"version": 0})


@pytest.mark.parametrize(
    "actions",
    [
        np.zeros((2, 4), dtype=int), np.zeros((3, 3), dtype=int), np.full((2, 3), 6), np.full((2, 3), -1),
        np.zeros((2, 3)), [0, 0],
    ],
)  # fmt: skip
def test_wrong_actions_are_told_and_cost_nothing(actions):
    envs = gym.make_vec("PrefAcquire-v0", num_envs=2, n_prompts=3)
    with pytest.raises(RuntimeError, match="reset"):
        envs.step(np.zeros((2, 3), dtype=int))
    envs.reset(seed=0)
    with pytest.raises(ValueError, match="actions must be"):
        envs.step(actions)
    assert envs.step(np.zeros((2, 3), dtype=int))[4]["spent"].tolist() == [3, 3]


def test_wrong_arguments_are_told():
    for wrong, message in (
        ({"world": "sinthetic"}, "did you mean 'synthetic'"), ({"num_envs": 0}, "num_envs=0"),
        ({"budget": 0}, "budget=0"),
        ({"world": prefenv.make_world()}, "serves one environment"), ({"n_candidates": 1}, "n_candidates=1"),
        ({"n_prompts": 2.5}, "n_prompts"), ({"world": 3}, "give a key"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            gym.make_vec("PrefAcquire-v0", **{"num_envs": 2} | wrong)


def test_other_forms_and_wrappers_use_gymnasiums_own_vectors():
    assert isinstance(gym.make_vec("PrefAcquireSequential-v0", num_envs=2), SyncVectorEnv)
    wrapped = gym.wrappers.vector.RecordEpisodeStatistics(gym.make_vec("PrefAcquire-v0", num_envs=2, budget=16))
    wrapped.reset(seed=0)
    for _ in range(2):
        *_, info = wrapped.step(wrapped.action_space.sample())
    assert info["episode"]["l"].tolist() == [2, 2]
    assert info["episode"]["r"] == pytest.approx(info["win_rate"] - 0.5, abs=1e-5)


def test_every_world_knows_its_alias_and_presets_are_frozen():
    assert prefenv.make_world("default").name == "synthetic"
    for key in prefenv.WORLDS:
        if key not in ("llm", "replay"):
            assert prefenv.make_world(key).name == key
    with pytest.raises(ValueError, match="did you mean 'synthetic'"):
        prefenv.make_world("synth")
    settings = prefenv.world_settings("on-policy", n_prompts=3)
    assert settings.on_policy
    assert settings.n_prompts == 3
    assert prefenv.world_settings("on-policy").n_prompts != 3
    with pytest.raises(AttributeError):
        settings.n_prompts = 4
    env = gym.make("PrefAcquire-v0", world=settings)
    assert env.unwrapped.world.n_prompts == 3
    assert gym.make("PrefAcquire-v0", world=settings, n_prompts=2).unwrapped.world.n_prompts == 2
    assert env.reset(seed=0)[0]["mask"].shape == (3, settings.n_candidates)


def test_a_long_episode_does_not_grow():
    import tracemalloc

    envs = gym.make_vec("PrefAcquire-v0", num_envs=2, n_prompts=1, budget=10_000).unwrapped
    envs.reset(seed=0)
    action = np.zeros((2, 1), dtype=int)
    tracemalloc.start()
    sizes = []
    for index in range(800):
        envs.step(action)
        if index % 400 == 399:
            sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert sizes[1] - sizes[0] < 50_000
