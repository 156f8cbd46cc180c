"""``dopt`` by hand, against a loop with inverses and determinants, and where numbers are bad."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest

import agents
from agents.heuristic import DesignAgent
from agents.scores import Plan
from agents.scores.design import dopt
from prefenv.spaces import pair_table
from tests.agents.rounds import budget_agent, one_by_one, repeated
from tests.conftest import make_observation


def differences(observation):
    """(n·P, d) float64, and which are legal."""
    first, second = pair_table(observation["mask"].shape[-1])
    embedding = observation["embedding"].astype(np.float64)
    legal = observation["mask"][:, first] * observation["mask"][:, second]
    return (embedding[:, first] - embedding[:, second]).reshape(-1, embedding.shape[-1]), legal.ravel() > 0


def greedy_by_determinants(observation, k, ridge, labelled=(), each_prompt=False):
    """The k pairs that one after the other make log det A largest, each time from scratch."""
    z, open_ = differences(observation)
    pairs = len(z) // len(observation["mask"])
    rows = [np.asarray(one, dtype=np.float64) - other for one, other in labelled]
    picks = []
    for _ in range(k):
        precision = ridge * np.eye(z.shape[1]) + sum((np.outer(row, row) for row in rows), np.zeros((z.shape[1],) * 2))
        inverse = np.linalg.inv(precision)
        before = np.linalg.slogdet(precision)[1]
        gain = np.array([np.linalg.slogdet(precision + np.outer(row, row))[1] - before for row in z])
        np.testing.assert_allclose(gain, np.log1p(np.einsum("pd,de,pe->p", z, inverse, z)), rtol=1e-6, atol=1e-9)
        pick = int(np.where(open_, gain, -np.inf).argmax())
        picks.append(pick)
        rows.append(z[pick])
        open_[pick] = False
        if each_prompt:
            open_[pick // pairs * pairs : (pick // pairs + 1) * pairs] = False
    return picks


def by_place(observation, k, each_prompt=False, labelled=None, **settings):
    """The pairs that score above 0, best first."""
    plan = Plan.at_start(k, observation["embedding"].shape[-1], each_prompt=each_prompt)
    if labelled is not None:
        plan = Plan(k, each_prompt, labelled, np.ones(len(labelled), dtype=bool), plan.pair_rng)
    score = dopt(observation, np.random.default_rng(0), plan, **settings).ravel()
    order = np.argsort(-score)
    picks = order[score[order] > 0]
    np.testing.assert_array_equal(score[picks], np.arange(len(picks), 0, -1))
    assert score.min() >= -1
    return picks.tolist()


def test_dopt_by_hand():
    # differences (0, 1), (0, 2), (1, 2): prompt 0 (4 0), (0 3), (-4 3); prompt 1 (1 0), (0 2), (-1 2).
    # A = I: 16 9 25; 1 4 5. After (-4 3): w = z / 26, values 16 - 16²/26 = 6.15, 9 - 81/26 = 5.88;
    # 1 - 16/26 = 0.38, 4 - 36/26 = 2.62, 5 - 100/26 = 1.15
    embedding = [[[4.0, 0], [0, 0], [4, -3]], [[1, 0], [0, 0], [1, -2]]]
    observation = {"embedding": np.array(embedding, dtype=np.float32), "mask": np.ones((2, 3), dtype=np.int8)}
    assert by_place(observation, 1) == [2]
    assert by_place(observation, 2) == [2, 0]
    assert by_place(observation, 2, each_prompt=True) == [2, 4]
    score = dopt(observation, np.random.default_rng(0), Plan.at_start(1, d=2)).ravel()
    np.testing.assert_allclose(score[[0, 1, 3, 4, 5]], np.array([160, 153, 10, 68, 30]) / 160 - 1)


@pytest.mark.parametrize("ridge", [1.0, 1e-3, 30.0])
@pytest.mark.parametrize("each_prompt", [False, True])
@pytest.mark.parametrize("memory", [0, 7])
def test_dopt_is_the_greedy_choice_for_the_determinant(ridge, each_prompt, memory):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        observation = make_observation(rng, n=6, m=5, d=4)
        observation["mask"][::2, 3:] = 0
        labelled = rng.standard_normal((memory, 2, 4)).astype(np.float32)
        k = 6 if each_prompt else 12
        expected = greedy_by_determinants(observation, k, ridge, labelled, each_prompt)
        observation["embedding"][::2, 3:] = 1e30
        assert by_place(observation, k, each_prompt, labelled, ridge=ridge) == expected


def test_dopt_stays_exact_over_many_picks_and_far_from_zero():
    # 60 updates with a small ridge; and a common part a million times the differences
    observation = make_observation(np.random.default_rng(0), n=15, m=4, d=6)
    expected = greedy_by_determinants(observation, 60, 1e-2)
    assert by_place(observation, 60, ridge=1e-2) == expected
    near = make_observation(np.random.default_rng(0), n=5, m=4, d=3)
    near["embedding"] = (4 * near["embedding"]).round()
    far = near | {"embedding": near["embedding"] + np.float32(2**22)}
    scores = [dopt(shown, np.random.default_rng(0), Plan.at_start(3, d=3)) for shown in (near, far)]
    np.testing.assert_allclose(scores[0], scores[1], rtol=0, atol=1e-12)


def test_dopt_in_the_per_prompt_form_gives_each_prompt_one():
    observation = make_observation(np.random.default_rng(0), n=6, m=4, d=3)
    action, _ = DesignAgent(partial(dopt), gym.spaces.MultiDiscrete([6] * 6), seed=0).predict(observation)
    expected = greedy_by_determinants(observation, 6, 1.0, each_prompt=True)
    assert sorted(action + 6 * np.arange(6)) == sorted(expected)
    score = dopt(observation, np.random.default_rng(0), Plan.at_start(6, d=3, each_prompt=True))
    assert np.all((score > 0).sum(axis=-1) == 1)


def test_dopt_one_by_one_is_all_at_once():
    observation = make_observation(np.random.default_rng(3), n=4, m=4, d=3)
    expected = greedy_by_determinants(observation, 10, 1.0)
    assert one_by_one(dopt, observation, 10) == expected
    assert budget_agent(dopt, observation, 10).predict(observation)[0].tolist() == expected


def test_dopt_does_not_ask_again_for_a_direction_that_it_knows():
    embedding = np.zeros((2, 2, 2), dtype=np.float32)
    embedding[0, 0, 0], embedding[1, 0, 1] = 3.0, 2.0  # the longer difference is along the first axis
    observation = {"embedding": embedding, "mask": np.ones((2, 2), dtype=np.int8)}
    agent = budget_agent(dopt, observation, 1)
    one, state = agent.predict(observation)
    other, state = agent.predict(observation, state)
    assert (one, other) == ([0], [1])
    assert agent.predict(observation, state, episode_start=np.array(True))[0] == [0]


def test_an_unknown_pair_of_the_memory_is_nothing():
    observation = make_observation(np.random.default_rng(0), n=4, m=3, d=3)
    labelled = np.full((2, 2, 3), 50.0, dtype=np.float32)
    labelled[:, 0] = np.nan
    for plan in (Plan.at_start(4, d=3), Plan(4, False, labelled, np.zeros(2, dtype=bool), np.random.default_rng(0))):
        score = dopt(observation, np.random.default_rng(0), plan)
        np.testing.assert_array_equal(score, dopt(observation, np.random.default_rng(0), Plan.at_start(4, d=3)))
    labelled[0] = [[1, 2, 3], [0, 0, 0]]
    known = np.array([True, False])
    both = Plan(4, False, labelled, known, np.random.default_rng(0))
    one = Plan(4, False, labelled[:1], known[:1], np.random.default_rng(0))
    np.testing.assert_array_equal(
        dopt(observation, np.random.default_rng(0), both), dopt(observation, np.random.default_rng(0), one)
    )


def test_dopt_spreads_pairs_that_are_equal_but_for_rounding():
    row = np.random.default_rng(0).standard_normal(12).astype(np.float32)
    shifts = np.stack([np.roll(row, shift) for shift in range(12)])  # sums are taken in other orders
    observation = {"embedding": np.stack([shifts, np.zeros_like(shifts)], axis=1), "mask": np.ones((12, 2))}
    # something labelled, as long in every shift: coordinates in which A is the identity round too
    ends = np.stack([np.full((1, 12), 0.7), np.zeros((1, 12))], axis=1).astype(np.float32)
    state = np.broadcast_to(ends, (6000, *ends.shape)), np.ones((6000, 1), dtype=bool)
    action, _ = budget_agent(dopt, observation, 1).predict(repeated(observation, 6000), state)
    np.testing.assert_allclose(np.bincount(action.ravel(), minlength=12) / 6000, 1 / 12, atol=0.02)


def test_dopt_spreads_equal_pairs():
    # an equilateral triangle in each of two prompts: all six differences are as long, in coordinates that round
    triangle = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float32) / 3
    observation = {"embedding": np.stack([triangle, triangle[[2, 0, 1]]]), "mask": np.ones((2, 3), dtype=np.int8)}
    action, _ = budget_agent(dopt, observation, 2).predict(repeated(observation, 6000))
    for t in range(2):
        counts = np.bincount(action[:, t], minlength=6)
        assert counts.min() > 850, counts  # 1000 each, standard deviation 29
        assert counts.max() < 1150, counts


@pytest.mark.parametrize(("ridge", "scale"), [(1e-16, 1.0), (1.0, 1e8)])
def test_a_ridge_that_is_lost_beside_the_labels_does_not_break_it(ridge, scale):
    shown = make_observation(np.random.default_rng(0), n=6, m=4)
    shown["embedding"] = np.float32(scale) * shown["embedding"]
    agent, state = agents.make("dopt", seed=0, ridge=ridge), None
    for _ in range(3):
        action, state = agent.predict(shown, state)
        assert action.shape == (6,)
