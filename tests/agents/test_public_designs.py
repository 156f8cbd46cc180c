"""Our designs beside the public ones, on the same numbers.

``public_designs.json`` holds what the selection loops of github.com/BootsofLagrangian/random-vs-apl answered for these
points, run once; where ours mean to differ, the test says how.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from agents.scores import Plan, coverage, design, herding
from agents.scores.points import Points
from agents.scores.policy import PAIR_SCORES
from agents.scores.prompts import first_pairs
from tests.agents.rounds import budget_agent, memory_of, points_observation, repeated

PUBLIC = json.loads(Path(__file__).with_name("public_designs.json").read_text())
N = len(PUBLIC["points"])


def shown():
    margins = np.array(PUBLIC["margins"])
    return points_observation(
        PUBLIC["points"], entropy=PUBLIC["entropy"], implicit_reward=np.stack([margins, np.zeros(N)], axis=-1)
    )


def picks(rule, k, known, **settings):
    state = memory_of(PUBLIC["labelled"]) if known else None
    return budget_agent(rule, shown(), k, **settings).predict(shown(), state)[0].tolist()


def test_coreset_is_the_public_k_centre():
    assert picks(coverage.coreset, 8, known=True) == PUBLIC["k_centre"]


@pytest.mark.parametrize(("state", "known"), [("empty", False), ("labelled", True)])
def test_max_herding_is_the_public_one_up_to_the_update_that_it_lacks(state, known):
    public = PUBLIC[f"max_herding_{state}"]
    assert picks(herding.max_herding, 1, known) == public["one"]
    assert sorted(picks(herding.max_herding, 5, known)) != public["five"]


@pytest.mark.parametrize(("state", "known"), [("empty", False), ("labelled", True)])
def test_u_herding_is_the_public_one_up_to_the_update_that_it_lacks(state, known):
    public = PUBLIC[f"u_herding_{state}"]
    assert picks(herding.u_herding, 1, known, oversample=1) == public["one"]
    assert (sorted(picks(herding.u_herding, 5, known, oversample=1)) == public["five"]) == known  # by chance


@pytest.mark.parametrize(("state", "known"), [("empty", False), ("labelled", True)])
def test_knn_herding_is_the_public_one(state, known):
    assert picks(herding.knn_herding, 8, known) == PUBLIC[f"knn_herding_{state}"]


@pytest.mark.parametrize("ridge", [0.001, 1.0])
def test_dopt_is_the_public_greedy_order_where_nothing_is_labelled(ridge):
    # one pair a prompt whose difference is the public feature
    observation = shown()
    observation["embedding"][:, 1] = 0.0
    chosen = budget_agent(design.dopt, observation, 10, ridge=ridge).predict(observation)[0]
    assert chosen.tolist() == PUBLIC[f"d_optimal_{ridge}"]


def test_div_reward_draws_with_the_public_chances():
    worlds = 20_000
    ends, _ = memory_of(PUBLIC["labelled"])
    state = np.broadcast_to(ends, (worlds, *ends.shape)), np.ones((worlds, len(ends)), dtype=bool)
    first, _ = budget_agent(coverage.div_reward, shown(), 1, oversample=1).predict(repeated(shown(), worlds), state)
    np.testing.assert_allclose(
        np.bincount(first.ravel(), minlength=N) / worlds, PUBLIC["div_reward_first_chances_labelled"], atol=0.012
    )


def test_div_reward_weighs_with_the_public_chances_after_the_point_that_the_public_code_begins_with():
    first = PUBLIC["div_reward_first_empty"]  # the largest norm; ours begins with any point, by its margin
    firsts = first_pairs(shown(), np.random.default_rng(0), Plan.at_start(1, d=4), PAIR_SCORES["margin"])
    chance = Points.of(shown(), firsts, Plan.at_start(1, d=4)).distances_to(np.array([first]))[0] * PUBLIC["margins"]
    np.testing.assert_allclose(chance / chance.sum(), PUBLIC["div_reward_second_chances_empty"], rtol=1e-5, atol=1e-8)
