"""``deltaquantile`` and ``least_confidence`` by hand, and the bounds that all intervals share."""

import itertools
import math

import numpy as np
import pytest
from scipy.special import expit

from agents.scores import intervals
from agents.select import best_of_each_prompt, best_of_pool
from prefenv.spaces import n_pairs, pair_index, pair_mask, pair_table
from tests.conftest import make_observation

METHODS = [intervals.deltaquantile, intervals.least_confidence]


def by_hand(mean, std, mask=None):
    """An observation of one prompt with these numbers."""
    mean, std = np.array([mean], dtype=np.float64), np.array([std], dtype=np.float64)
    return {
        "mask": np.ones_like(mean, dtype=np.int8) if mask is None else np.array([mask], dtype=np.int8),
        "reward_mean": mean,
        "reward_std": std,
    }


def named(score):
    """The pairs of the first prompt that score highest, as (i, j)."""
    first, second = pair_table(round((1 + math.sqrt(1 + 8 * score.shape[-1])) / 2))
    return {(int(first[p]), int(second[p])) for p in np.flatnonzero(score[0] == score[0].max())}


def plain_deltaquantile(mean, std, present, width, quantile, epsilon):
    """The pairs that may be taken, by sorting a list; ties at the window's edges are in."""
    high, low = mean + width * std, mean - width * std
    gaps = {(i, j): high[i] - low[j] for i, j in itertools.permutations(present, 2)}
    ranked = sorted(gaps.values(), reverse=True)
    start = min(int(len(ranked) * (quantile - epsilon)), len(ranked) - 1)
    stop = max(int(len(ranked) * (quantile + epsilon)), start + 1)
    window = [pair for pair, gap in gaps.items() if ranked[stop - 1] <= gap <= ranked[start]]
    highest = max(high[i] for i, _ in window)
    return {tuple(sorted(pair)) for pair in window if high[pair[0]] == highest}


# ub = 1, 1.5, 3 and lb = -1, 0.5, 3. Gaps from the largest: (2, 0) 4, (2, 1) 2.5, (1, 0) 2.5, (0, 1) 0.5, (1, 2) -1.5,
# (0, 2) -2
THREE = by_hand([0, 1, 3], [1, 0.5, 0])


@pytest.mark.parametrize(
    ("quantile", "epsilon", "pairs"),
    [
        (0.0, 0.0, {(0, 2)}),
        (0.05, 0.0, {(0, 2)}),  # less than one of six pairs: the largest
        (0.17, 0.0, {(1, 2)}),  # rank 1; (1, 0) has the same gap, and a lower ub
        (0.34, 0.0, {(1, 2)}),  # rank 2 has the gap of rank 1
        (0.5, 0.0, {(0, 1)}),  # rank 3
        (0.7, 0.0, {(1, 2)}),  # rank 4
        (0.85, 0.0, {(0, 2)}),  # rank 5
        (1.0, 0.0, {(0, 2)}),  # the last
        (0.6, 0.1, {(0, 1)}),  # rank 3 only: 0.5 to 0.7
        (0.75, 0.25, {(1, 2)}),  # ranks 3, 4, 5 have firsts 0, 1, 0: 1 has the higher ub
        (0.2, 0.2, {(0, 2), (1, 2)}),  # ranks 0, 1: both of them 2, so either
        (0.5, 0.5, {(0, 2), (1, 2)}),  # all
    ],
)
def test_deltaquantile_by_hand(quantile, epsilon, pairs):
    score = intervals.deltaquantile(THREE, np.random.default_rng(0), quantile=quantile, epsilon=epsilon)
    assert named(score) == pairs
    assert set(score.ravel().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("width", [0.0, 0.7, 2.0])
@pytest.mark.parametrize(("quantile", "epsilon"), [(0.05, 0.0), (0.1, 0.1), (0.3, 0.2), (0.5, 0.0), (0.9, 0.1), (1, 0)])
def test_deltaquantile_is_its_definition(width, quantile, epsilon):
    rng = np.random.default_rng(7)
    observation = make_observation(rng, n=30, m=6)
    observation["reward_mean"][15:] = np.round(observation["reward_mean"][15:])  # with ties
    observation["reward_std"][15:] = np.round(observation["reward_std"][15:])
    observation["mask"] = rng.random((30, 6)) < 0.7
    observation["mask"][:, [1, 4]] = True
    score = intervals.deltaquantile(observation, rng, width=width, quantile=quantile, epsilon=epsilon)
    for row in range(30):
        mean, std = (observation[name][row].astype(np.float64) for name in ("reward_mean", "reward_std"))
        present = np.flatnonzero(observation["mask"][row])
        assert named(score[[row]]) == plain_deltaquantile(mean, std, present, width, quantile, epsilon)


def test_deltaquantile_reads_each_setting():
    observation = make_observation(np.random.default_rng(0), n=50, m=8)
    default = intervals.deltaquantile(observation, np.random.default_rng(0))
    for setting in ({"width": 3.0}, {"quantile": 0.3}, {"epsilon": 0.05}):
        assert np.any(intervals.deltaquantile(observation, np.random.default_rng(0), **setting) != default), setting


def test_deltaquantile_of_the_largest_gap_is_deltaucb():
    observation = make_observation(np.random.default_rng(0), n=50, m=8)
    score = intervals.deltaquantile(observation, np.random.default_rng(0), quantile=0.0)
    expected = intervals.deltaucb(observation, np.random.default_rng(0))
    np.testing.assert_array_equal(score.argmax(axis=-1), expected.argmax(axis=-1))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"quantile": -0.1}, r"quantile=-0.1 ± epsilon=0.0"),
        ({"quantile": 1.1}, "quantile=1.1"),
        ({"epsilon": -0.01}, "epsilon=-0.01"),
        ({"epsilon": 0.06}, "epsilon=0.06"),
        ({"quantile": 0.95, "epsilon": 0.06}, "window within"),
        ({"quantile": math.nan}, "quantile=nan"),
        ({"epsilon": math.nan}, "epsilon=nan"),
        ({"width": -1.0}, "width=-1.0"),
        ({"width": math.inf}, "width=inf"),
    ],
)
def test_deltaquantile_of_settings_that_cannot_be(wrong, message):
    with pytest.raises(ValueError, match=message):
        intervals.deltaquantile(THREE, np.random.default_rng(0), **wrong)


def test_deltaquantile_names_a_missing_number():
    with pytest.raises(ValueError, match="NaN"):
        intervals.deltaquantile(by_hand([0, np.nan, 1], [1, 1, 1]), np.random.default_rng(0))


def test_least_confidence_by_hand():
    score = intervals.least_confidence(THREE, np.random.default_rng(0))
    np.testing.assert_allclose(score, [[0.5 - expit(1), 0.5 - expit(3), 0.5 - expit(2)]])
    # nearly equal rewards keep their order: 1e-9 from one another, and 3e-9
    score = intervals.least_confidence(by_hand([0, 1e-9, 4e-9], [1, 1, 1]), np.random.default_rng(0))
    np.testing.assert_allclose(score, [[-0.25e-9, -1e-9, -0.75e-9]])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("junk", [1e30, -1e30, np.nan])
def test_masked_candidates_have_no_say(method, junk):
    observation = make_observation(np.random.default_rng(0), n=6, m=5)
    observation["mask"][:, 1] = 0
    observation["mask"][::2, 4] = 0
    spoilt = observation | {"reward_mean": np.where(observation["mask"], observation["reward_mean"], np.float32(junk))}
    legal = pair_mask(observation["mask"])
    before, after = (method(o, np.random.default_rng(0)) for o in (observation, spoilt))
    np.testing.assert_array_equal(before[legal], after[legal])
    if method is intervals.deltaquantile:
        assert np.all(after[~legal] == 0)


@pytest.mark.parametrize("method", METHODS)
def test_permuting_candidates_permutes_the_scores(method):
    observation = make_observation(np.random.default_rng(0), n=20, m=5)
    order = np.array([3, 0, 4, 1, 2])
    moved = observation | {name: observation[name][..., order] for name in ("reward_mean", "reward_std")}
    i, j = pair_table(5)
    before, after = (method(o, np.random.default_rng(0)) for o in (observation, moved))
    np.testing.assert_array_equal(after, before[..., pair_index(order[i], order[j], 5)])


@pytest.mark.parametrize("method", METHODS)
def test_a_level_changes_nothing(method):
    observation = make_observation(np.random.default_rng(0), n=20, m=5)
    moved = observation | {"reward_mean": observation["reward_mean"].astype(np.float64) + 4 * np.arange(20)[:, None]}
    before, after = (method(o, np.random.default_rng(0)) for o in (observation, moved))
    np.testing.assert_allclose(before, after, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_its_members(method):
    batch = make_observation(np.random.default_rng(0), batch=(2, 3), n=4, m=7)
    together = method(batch, np.random.default_rng(0))
    assert together.shape == (2, 3, 4, n_pairs(7))
    for index in np.ndindex(2, 3):
        alone = method({name: value[index] for name, value in batch.items()}, np.random.default_rng(0))
        np.testing.assert_array_equal(together[index], alone)


@pytest.mark.parametrize("method", METHODS)
def test_equal_candidates_are_chosen_equally_often(method):
    observation = by_hand([1] * 4, [0.5] * 4)
    score = np.broadcast_to(method(observation, np.random.default_rng(0)), (6000, 6))
    chosen = best_of_each_prompt(score, np.ones(score.shape, dtype=bool), np.random.default_rng(1))
    np.testing.assert_allclose(np.bincount(chosen, minlength=6) / 6000, 1 / 6, atol=0.025)


@pytest.mark.parametrize("method", METHODS)
def test_a_pool_of_one_pair(method):
    assert method(by_hand([0, 1], [0, 0]), np.random.default_rng(0)).shape == (1, 1)


def test_a_budget_takes_the_named_pairs_or_the_closest():
    observation = make_observation(np.random.default_rng(0), n=4, m=5)
    legal = np.ones((4, 10), dtype=bool)
    named_pairs = intervals.deltaquantile(observation, np.random.default_rng(0))
    taken = best_of_pool(named_pairs, legal, 4, np.random.default_rng(1))
    assert sorted((taken // 10).tolist()) == [0, 1, 2, 3]
    score = intervals.least_confidence(observation, np.random.default_rng(0))
    assert best_of_pool(score, legal, 2, np.random.default_rng(1)).tolist() == score.ravel().argsort()[:-3:-1].tolist()


def test_interval_width_is_a_difference_of_chances():
    low, high = np.array([-3.0, 0.0, 1.0, -800.0]), np.array([-1.0, 0.0, 5.0, 800.0])
    np.testing.assert_allclose(intervals.interval_width(low, high), expit(high) - expit(low))
    # sure outcomes keep their order on either side: e^-40 - e^-50, where 1 - 1 is 0
    expected = np.exp(-40) - np.exp(-50)
    both = intervals.interval_width(np.array([40.0, -50.0]), np.array([50.0, -40.0]))
    np.testing.assert_allclose(both, expected, rtol=1e-12)


def test_infomax_keeps_the_order_of_sure_outcomes():
    # every gap is far beyond the bounds; that of (0, 1) is the least and so the least sure
    score = intervals.infomax(by_hand([0, 60, 130], [1, 1, 1]), np.random.default_rng(0))[0]
    assert score[0] > score[2] > score[1] > 0


def test_bounds_by_hand():
    low, high = intervals.bounds(by_hand([0, 1], [1, 0.25]), width=2.0)
    np.testing.assert_array_equal(low, [[-2, 0.5]])
    np.testing.assert_array_equal(high, [[2, 1.5]])
