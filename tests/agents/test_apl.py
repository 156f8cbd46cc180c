"""``apl`` by hand: which prompts come first, and one pair of each."""

import gymnasium as gym
import numpy as np
import pytest

import agents
from agents.scores.policy import apl
from agents.select import best_of_pool, legal_pairs
from tests.conftest import make_observation

# margins of the pairs (0, 1), (0, 2), (1, 2): 9 1 8; 1 0.25 0.75; 0.5 2 1.5; 5 1 4
FOUR_PROMPTS = {
    "implicit_reward": np.array([[0, 9, 1], [0, -1, -0.25], [0, 0.5, 2], [0, 5, 1]], dtype=np.float32),
    "entropy": np.array([1, 4, 3, 2], dtype=np.float32),
    "mask": np.ones((4, 3), dtype=np.int8),
}


def repeated(observation, times):
    """The observation ``times`` over, as a batch."""
    return {name: np.broadcast_to(value, (times, *np.shape(value))) for name, value in observation.items()}


def order_of(observation, **settings_):
    """The pairs of the pool from the best on, as (prompt, pair)."""
    score = apl(observation, np.random.default_rng(0), **settings_)
    legal = legal_pairs(observation)
    order = best_of_pool(score, legal, int(legal.sum()), np.random.default_rng(0))
    return [divmod(int(pair), 3) for pair in order]


def test_apl_by_hand():
    # prompts 1 and 2 have the highest entropy: their best pairs, then those of 0 and 3, then all others; by margin
    first, then = [(2, 1), (1, 0)], [(0, 0), (3, 0)]
    others = [(0, 2), (3, 2), (2, 2)]
    assert order_of(FOUR_PROMPTS)[:7] == first + then + others
    assert order_of(FOUR_PROMPTS, keep=0.51)[:4] == [(3, 0), (2, 1), (1, 0), (0, 0)]  # three of four prompts
    assert order_of(FOUR_PROMPTS, keep=0.01)[:4] == [(1, 0), (0, 0), (3, 0), (2, 1)]  # at least one
    assert order_of(FOUR_PROMPTS, keep=1.0)[:4] == [(0, 0), (3, 0), (2, 1), (1, 0)]


def test_apl_keeps_a_whole_number_of_prompts_in_spite_of_rounding():
    # 0.07 × 100 is 7.000000000000001 in floats
    observation = make_observation(np.random.default_rng(0), n=100, m=2)
    score = apl(observation, np.random.default_rng(0), keep=0.07)
    assert np.sum(score >= 4) == 7
    assert np.all(observation["entropy"][score[:, 0] >= 4] >= np.sort(observation["entropy"])[-7])


def test_apl_does_not_see_masked_candidates():
    observation = {name: value.copy() for name, value in FOUR_PROMPTS.items()}
    observation["mask"][:, 2] = 0
    observation["implicit_reward"][:, 2] = 1e30
    assert order_of(observation) == [(1, 0), (2, 0), (0, 0), (3, 0)]
    observation["implicit_reward"][:, 2] = np.nan
    assert order_of(observation) == [(1, 0), (2, 0), (0, 0), (3, 0)]


def test_apl_with_one_pair_a_prompt_is_margin():
    observation = make_observation(np.random.default_rng(0), batch=(20,), n=5, m=6)
    one, other = (agents.make(key, seed=0).predict(observation)[0] for key in ("margin", "apl"))
    np.testing.assert_array_equal(one, other)


def test_apl_spreads_ties_of_entropy():
    observation = repeated(FOUR_PROMPTS | {"entropy": np.array([2.0, 2.0, 5.0, 2.0])}, 3000)
    kept = (apl(observation, np.random.default_rng(0)) >= 4).any(axis=-1)
    np.testing.assert_allclose(kept.mean(axis=0), [1 / 3, 1 / 3, 1, 1 / 3], atol=0.04)


def test_apl_of_a_policy_that_is_the_reference_takes_one_pair_a_prompt():
    # the first round of an episode: all margins are 0
    observation = repeated(FOUR_PROMPTS | {"implicit_reward": np.zeros((4, 3))}, 2000)
    action, _ = agents.make("apl", gym.spaces.MultiDiscrete([12] * 4), seed=0).predict(observation)
    prompts = action // 3
    assert np.all(np.sort(prompts[:, :2], axis=-1) == [1, 2])
    assert np.all(np.sort(prompts, axis=-1) == np.arange(4))
    assert np.bincount((action % 3).ravel()) == pytest.approx([8000 / 3] * 3, abs=200)


def prompts_one_by_one(observation, seed):
    """The prompts of the first four pairs in the sequential form."""
    agent, selected, prompts = agents.make("apl", gym.spaces.Discrete(12), seed=seed), np.zeros(12), []
    for _ in range(4):
        action, _ = agent.predict(observation | {"selected": selected})
        selected[action] = 1
        prompts.append(int(action) // 3)
    return prompts


@pytest.mark.parametrize("margins", ["equal", "different"])
def test_apl_one_by_one_takes_one_pair_a_prompt_too(margins):
    observation = dict(FOUR_PROMPTS)
    if margins == "equal":
        observation["implicit_reward"] = np.zeros((4, 3), dtype=np.float32)
    for seed in range(20):
        order = prompts_one_by_one(observation, seed)
        assert sorted(order[:2]) == [1, 2]
        assert sorted(order[2:]) == [0, 3]


def test_apl_one_by_one_keeps_no_more_than_its_share():
    # prompt 1 and one of the equal others are kept: after these two, margin alone decides, as it does for four at once
    observation = FOUR_PROMPTS | {"entropy": np.array([2.0, 5.0, 2.0, 2.0])}
    for seed in range(20):
        order = prompts_one_by_one(observation, seed)
        assert order[1] == 1
        assert order[2:] == [prompt for prompt in (0, 3, 2) if prompt != order[0]]
