"""The twelve defects seen in public code of these methods, by their numbers: none of them is here.

Some are looked for where their part is tested, too: 1 (texts under other prompts) in tests/llm/test_generation.py and
tests/llm/test_learner.py, and so is 9 (padding in a log-probability); 8 against brute force in
tests/agents/test_coverage.py; 11 (labels that nobody gave) in tests/prefenv/test_oracles.py.
"""

import gymnasium as gym
import numpy as np
import pytest
from scipy.special import expit

import agents
import prefenv  # noqa: F401  # registers the environments
from agents.scores import Plan, baseline, duels, herding, intervals, policy
from prefenv.oracles.bradley_terry import BradleyTerryOracle
from prefenv.spaces import n_pairs, pair_table
from prefenv.types import Pairs
from tests.conftest import make_observation, make_pool

METHODS = [key for key, spec in agents.AGENTS.items() if not spec.learned]
N, M, K = 24, 4, 6
ANYWHERE = gym.spaces.MultiDiscrete([N * n_pairs(M)] * K)


def anything(**changed):
    return make_observation(np.random.default_rng(0), n=N, m=M) | changed


def nothing_to_tell():
    """A pool in which no number differs."""
    return {name: np.ones_like(value) for name, value in anything().items()}


def test_1_a_label_is_about_two_candidates_of_its_prompt():
    env = gym.make("PrefAcquireBudget-v0", n_prompts=5, n_candidates=3, labels_per_round=4, budget=10).unwrapped
    observation, _ = env.reset(seed=0)
    agent = agents.make("random", env.action_space, seed=0)
    for asked in (4, 4, 2):  # three batches, the last one ragged
        action = agent.predict(observation)[0]
        prompt, pair = np.divmod(action[:asked], 3)
        observation, *_, info = env.step(action)
        told = {(prompt, *sorted(pair)) for prompt, *pair in info["preferences"][:asked].tolist()}
        first, second = (side[pair].tolist() for side in pair_table(3))
        assert told == set(zip(prompt.tolist(), first, second, strict=True))


def test_2_random_never_pairs_a_candidate_with_itself():
    score = baseline.random(anything(), np.random.default_rng(0))
    assert score.shape == (N, M * (M - 1) // 2)
    first, second = pair_table(M)
    assert (first < second).all()
    with pytest.raises(ValueError, match="two different candidates"):
        Pairs(np.array([0]), np.array([1]), np.array([1]))


@pytest.mark.parametrize("key", [key for key in METHODS if "width" in agents.spec(key).settings()])
def test_3_a_width_is_read(key):
    shown = make_observation(np.random.default_rng(1), n=200, m=6)
    common = {"draw": "interval"} if "draw" in agents.spec(key).settings() else {}
    narrow, wide = (agents.make(key, seed=0, width=width, **common).predict(shown)[0] for width in (0.3, 3.0))
    assert np.any(narrow != wide)


@pytest.mark.parametrize("key", METHODS)
def test_4_ties_are_not_broken_to_the_first_index(key):
    agent = agents.make(key, ANYWHERE, seed=0)
    slots = np.concatenate([agent.predict(nothing_to_tell())[0] for _ in range(600)])
    pairs, prompts = np.bincount(slots % n_pairs(M)), np.bincount(slots // n_pairs(M))
    np.testing.assert_allclose(pairs, 600, atol=110)  # standard deviation 22
    np.testing.assert_allclose(prompts, 150, atol=60)  # 12


def test_5_pruned_arms_do_not_turn_into_the_first_index():
    # 0 and 1 cannot be best; in the public code their bounds become NaN, then infinite, then index 0
    shown = anything(
        reward_mean=np.tile(np.float32([-9.0, -8.0, 0.0, 0.1]), (N, 1)), reward_std=np.full((N, M), np.float32(0.2))
    )
    choice = agents.make("maxminlcb", seed=0).predict(shown)[0]
    first, second = pair_table(M)
    assert set(zip(first[choice], second[choice], strict=True)) == {(2, 3)}


def test_6_ids_divides_by_the_information():
    # 1 and 2 cost as much against 0; of 2 there is more to learn
    draws = np.array([[2.0, 1.0, 3.0], [2.0, 1.1, 1.0], [2.0, 0.9, -1.0], [2.0, 1.0, 1.0]])
    shown = {
        "mask": np.ones((1, 3)), "reward_mean": np.array([[2.0, 1.0, 1.0]]), "reward_samples": draws[:, None],
        "reward_std": np.ones((1, 3)),
    }  # fmt: skip
    np.testing.assert_array_equal(duels.ids(shown, np.random.default_rng(0)), [[0, 1, 0]])


@pytest.mark.parametrize("level", [-40.0, 0.0, 0.5, 40.0])
def test_7_rucb_compares_rewards_with_rewards(level):
    shown = anything()
    moved = shown | {"reward_mean": shown["reward_mean"] + np.float32(level)}
    low, high = intervals.bounds(moved, 0.3)
    duel = duels.rucb(moved, np.random.default_rng(0), width=0.3)
    champions = expit(high[:, :, None] - low[:, None, :]).min(axis=2) >= 0.5 - 1e-9
    first, second = pair_table(M)
    pair = duel.argmax(axis=1)
    assert (champions[np.arange(N), first[pair]] | champions[np.arange(N), second[pair]]).all()
    assert not champions.all()
    np.testing.assert_array_equal(duel, duels.rucb(shown, np.random.default_rng(0), width=0.3))


@pytest.mark.parametrize("rule", [herding.max_herding, herding.u_herding, herding.knn_herding])
def test_8_coverage_is_updated_within_a_round(rule):
    # two clusters, the larger one first: the top two of one score are both in it
    points = np.array([[1.0, 0.0], [1.0, 0.01], [1.0, -0.01], [1.0, 0.02], [0.0, 1.0], [0.01, 1.0]])
    shown = {
        "embedding": np.repeat(points[:, None], 2, axis=1).astype(np.float32),
        "mask": np.ones((6, 2)),
        "implicit_reward": np.tile([0.0, 1.0], (6, 1)),
        "entropy": np.ones(6),
    }
    settings = {} if rule is not herding.u_herding else {"oversample": 1}
    score = rule(shown, np.random.default_rng(0), Plan.at_start(2, d=2), **settings)[:, 0]
    best = np.argsort(-score)[:2]
    assert sorted(best < 4) == [False, True]


def test_9_entropy_has_its_sign_and_its_prompt():
    shown = anything(entropy=np.arange(N, dtype=np.float32))
    for rule, best in ((policy.entropy, N - 1), (policy.entropy_neg, 0)):
        score = rule(shown, np.random.default_rng(0), Plan.at_start(K, d=shown["embedding"].shape[-1]))
        assert score.max(axis=1).argmax() == best
    kept = policy.apl(shown, np.random.default_rng(0), Plan.at_start(K, d=shown["embedding"].shape[-1])).max(axis=1)
    assert kept[N // 2 :].min() > kept[: N // 2].max()


@pytest.mark.parametrize("key", METHODS)
def test_10_rounds_do_not_draw_the_same_again(key):
    agent = agents.make(key, ANYWHERE, seed=0)
    rounds = [frozenset(agent.predict(nothing_to_tell())[0].tolist()) for _ in range(4)]
    assert len(set(rounds)) == 4


def test_11_what_cannot_be_judged_is_no_label():
    rng = np.random.default_rng(0)
    pool = make_pool(np.ones((3, 2), dtype=bool), rng)
    pairs = Pairs(np.arange(3), np.zeros(3, dtype=int), np.ones(3, dtype=int))
    unsure = BradleyTerryOracle(lambda pool: np.zeros(pool.mask.shape), tie=1e3)
    answers = unsure.compare(pool, pairs)
    assert (len(answers), answers.abstained) == (0, 3)
    unreadable = BradleyTerryOracle(lambda pool: np.full(pool.mask.shape, np.nan))
    with pytest.raises(ValueError, match="no label can be given"):
        unreadable.compare(pool, pairs)


@pytest.mark.parametrize("key", METHODS)
def test_12_seed_0_is_a_seed_and_nothing_is_global(key):
    def walk(seed, disturbed):
        env = gym.make("PrefAcquireBudget-v0", n_prompts=6, labels_per_round=3, budget=9, privileged=True)
        agent, (observation, _) = agents.make(key, env.action_space, seed=seed), env.reset(seed=0)
        state, actions = None, []
        for _ in range(3):
            np.random.seed(disturbed)  # noqa: NPY002  # that is the point
            before = np.random.get_state()[1].copy()  # noqa: NPY002
            action, state = agent.predict(observation, state)
            observation, *_ = env.step(action)
            assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
            actions.append(action.tolist())
        ties = agent.predict(_all_equal(observation), None)[0].tolist()
        return actions, ties

    assert walk(0, disturbed=1) == walk(0, disturbed=2)
    assert walk(0, disturbed=1)[1] != walk(1, disturbed=1)[1]


def test_12_seed_0_of_an_environment_is_a_seed():
    first, again, other, fresh = (
        gym.make("PrefAcquire-v0").reset(seed=seed)[0]["embedding"] for seed in (0, 0, 1, None)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    assert not np.allclose(first, fresh)


def _all_equal(observation):
    return {name: np.ones_like(value) for name, value in observation.items()}
