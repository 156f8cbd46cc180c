"""``apl`` and its two variants by hand: which prompts come first, and one pair of each."""

import numpy as np
import pytest

from agents.heuristic import DesignAgent, ScoreAgent
from agents.scores import Plan
from agents.scores.policy import apl, apl_both, apl_neg, margin
from agents.select import best_of_pool, legal_pairs
from tests.agents.rounds import budget_agent, chosen_prompts, one_by_one, repeated
from tests.conftest import make_observation

# margins of the pairs (0, 1), (0, 2), (1, 2): 9 1 8; 1 0.25 0.75; 0.5 2 1.5; 5 1 4
FOUR_PROMPTS = {
    "implicit_reward": np.array([[0, 9, 1], [0, -1, -0.25], [0, 0.5, 2], [0, 5, 1]], dtype=np.float32),
    "entropy": np.array([1, 4, 3, 2], dtype=np.float32),
    "mask": np.ones((4, 3), dtype=np.int8),
    "embedding": np.zeros((4, 3, 1), dtype=np.float32),
}


def score_of(observation, rule=apl, **settings_):
    lead = observation["mask"].shape[:-2]
    empty, none = np.zeros((*lead, 0, 2, 1)), np.zeros((*lead, 0), dtype=bool)
    plan = Plan(4, False, empty, none, np.random.default_rng(0))
    return rule(observation, np.random.default_rng(0), plan, **settings_)


def order_of(observation, rule=apl, **settings_):
    """The pairs of the pool from the best on, as (prompt, pair)."""
    score = score_of(observation, rule, **settings_)
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
    score = score_of(observation, keep=0.07)
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
    one, _ = ScoreAgent(margin, seed=0).predict(observation)
    for rule in (apl, apl_neg, apl_both):
        np.testing.assert_array_equal(one, DesignAgent(rule, seed=0).predict(observation)[0])


def test_apl_spreads_ties_of_entropy():
    observation = repeated(FOUR_PROMPTS | {"entropy": np.array([2.0, 2.0, 5.0, 2.0])}, 3000)
    kept = (score_of(observation) >= 4).any(axis=-1)
    np.testing.assert_allclose(kept.mean(axis=0), [1 / 3, 1 / 3, 1, 1 / 3], atol=0.04)


def test_apl_of_a_policy_that_is_the_reference_takes_one_pair_a_prompt():
    # the first round of an episode: all margins are 0
    observation = repeated(FOUR_PROMPTS | {"implicit_reward": np.zeros((4, 3))}, 2000)
    action, _ = budget_agent(apl, observation, 4).predict(observation)
    prompts = action // 3
    assert np.all(np.sort(prompts[:, :2], axis=-1) == [1, 2])
    assert np.all(np.sort(prompts, axis=-1) == np.arange(4))
    assert np.bincount((action % 3).ravel()) == pytest.approx([8000 / 3] * 3, abs=200)


def prompts_one_by_one(observation, seed, rule=apl):
    """The prompts of the first four pairs in the sequential form."""
    return [pair // 3 for pair in one_by_one(rule, observation, 4, seed)]


@pytest.mark.parametrize("margins", ["equal", "different"])
@pytest.mark.parametrize(("rule", "first"), [(apl, {1, 2}), (apl_neg, {0, 3}), (apl_both, {0, 1})])
def test_apl_one_by_one_takes_one_pair_a_prompt_too(margins, rule, first):
    observation = dict(FOUR_PROMPTS)
    if margins == "equal":
        observation["implicit_reward"] = np.zeros((4, 3), dtype=np.float32)
    for seed in range(20):
        order = prompts_one_by_one(observation, seed, rule)
        assert set(order[:2]) == first
        assert set(order[2:]) == {0, 1, 2, 3} - first


def test_apl_one_by_one_keeps_no_more_than_its_share():
    # prompt 1 and one of the equal others are kept: after these two, margin alone decides, as it does for four at once
    observation = FOUR_PROMPTS | {"entropy": np.array([2.0, 5.0, 2.0, 2.0])}
    for seed in range(20):
        order = prompts_one_by_one(observation, seed)
        assert order[1] == 1
        assert order[2:] == [prompt for prompt in (0, 3, 2) if prompt != order[0]]


def test_apl_neg_and_apl_both_by_hand():
    # entropies 1 4 3 2, best margins 9 1 2 5: apl-neg keeps 0 and 3, apl-both 1 and 0
    assert order_of(FOUR_PROMPTS, apl_neg)[:4] == [(0, 0), (3, 0), (2, 1), (1, 0)]
    assert order_of(FOUR_PROMPTS, apl_both)[:4] == [(0, 0), (1, 0), (3, 0), (2, 1)]
    assert order_of(FOUR_PROMPTS, apl_neg, keep=0.01)[0] == (0, 0)
    assert order_of(FOUR_PROMPTS | {"entropy": np.array([3.0, 1, 2, 4])}, apl_neg, keep=0.3)[:3] == [
        (2, 1),
        (1, 0),
        (0, 0),
    ]


@pytest.mark.parametrize(("keep", "kept"), [(0.25, {1}), (0.5, {0, 1}), (0.75, {0, 1, 2}), (1.0, {0, 1, 2, 3})])
def test_apl_both_keeps_half_from_each_end_and_an_odd_one_from_the_top(keep, kept):
    assert set(np.flatnonzero((score_of(FOUR_PROMPTS, apl_both, keep=keep) >= 4).any(axis=-1))) == kept


def test_apl_both_spreads_ties_at_both_ends():
    observation = repeated(FOUR_PROMPTS | {"entropy": np.array([2.0, 2.0, 2.0, 2.0])}, 3000)
    kept = (score_of(observation, apl_both) >= 4).any(axis=-1)
    assert np.all(kept.sum(axis=-1) == 2)
    np.testing.assert_allclose(kept.mean(axis=0), 0.5, atol=0.04)


def test_apl_both_one_by_one_keeps_no_more_than_its_share():
    observation = FOUR_PROMPTS | {"entropy": np.array([2.0, 2.0, 2.0, 2.0])}
    for seed in range(30):
        order = prompts_one_by_one(observation, seed, apl_both)
        # two are kept; then margin alone decides
        assert order[2:] == sorted(order[2:], key=[0, 3, 2, 1].index)


def test_apl_ranks_by_the_margin_of_the_pair_that_is_asked_for():
    # the generator's gap would choose pair (0, 2); its margins are 1 0.25 2 1
    draws = np.zeros((2, 4, 3), dtype=np.float32)
    draws[0, :, 0], draws[1, :, 2] = 1.0, 1.0  # one draw's best is 0, the other's 2
    observation = FOUR_PROMPTS | {"reward_samples": draws}
    assert order_of(observation, pair="dts")[:2] == [(2, 1), (1, 1)]
    assert chosen_prompts(apl, observation, 2, pair="dts").tolist() == [2, 1]
