"""Rules of dueling bandits by hand, by definition and by their chances."""

import itertools
import math

import numpy as np
import pytest
from scipy.special import expit

from agents.scores import duels
from agents.select import best_of_pool
from prefenv.spaces import n_pairs, pair_index, pair_mask, pair_table
from tests.conftest import make_observation

METHODS = [duels.infogain, duels.ids, duels.rucb]


def by_hand(mean, std, draws=None, mask=None):
    """An observation of one prompt with these numbers."""
    mean, std = np.array([mean], dtype=np.float64), np.array([std], dtype=np.float64)
    return {
        "mask": np.ones_like(mean, dtype=np.int8) if mask is None else np.array([mask], dtype=np.int8),
        "reward_mean": mean,
        "reward_std": std,
        "reward_samples": np.stack([mean] * 2) if draws is None else np.array(draws, dtype=np.float64)[:, None, :],
    }


def chances(method, observation, times=4000, **settings_):
    """How often each pair of one prompt is named."""
    batch = {name: np.broadcast_to(value, (times, *np.shape(value))) for name, value in observation.items()}
    score = method(batch, np.random.default_rng(0), **settings_)
    assert np.all(score.sum(axis=-1) == 1)
    return score[:, 0].mean(axis=0)


def of_pairs(m, **shares):
    """(P,) chances, from ``p01=0.5`` and the like."""
    expected = np.zeros(n_pairs(m))
    for name, share in shares.items():
        expected[pair_index(int(name[1]), int(name[2]), m)] = share
    return expected


def widths(mean, std, width):
    """By definition: the interval of the chance that i beats j."""
    high, low = mean + width * std, mean - width * std
    return expit(high[:, None] - low[None, :]) - expit(low[:, None] - high[None, :])


# infogain


@pytest.mark.parametrize("width", [0.5, 1.0, 3.0])
def test_infogain_is_its_definition(width):
    # each draw's best against the opponent with the widest interval
    observation = make_observation(np.random.default_rng(2), n=1, m=5, samples=6)
    expected = np.zeros(10)
    mean, std = (observation[name][0].astype(np.float64) for name in ("reward_mean", "reward_std"))
    for draw in observation["reward_samples"][:, 0]:
        first = int(draw.argmax())
        row = widths(mean, std, width)[first]
        row[first] = -1
        expected[pair_index(first, int(row.argmax()), 5)] += 1 / 6
    np.testing.assert_allclose(chances(duels.infogain, observation, width=width), expected, atol=0.03)


@pytest.mark.parametrize("width", [0.2, 1.0, 2.0])
def test_infogain_of_intervals_is_its_definition(width):
    mean, std = np.array([0.0, 0.4, 1.0, -2.0]), np.array([1.0, 0.3, 0.6, 2.0])
    draws = np.random.default_rng(9).uniform(mean - width * std, mean + width * std, size=(100_000, 4))
    expected = np.zeros(6)
    for first, share in enumerate(np.bincount(draws.argmax(axis=1), minlength=4) / 100_000):
        row = widths(mean, std, width)[first]
        row[first] = -1
        expected[pair_index(first, int(row.argmax()), 4)] += share
    share = chances(duels.infogain, by_hand(mean, std), draw="interval", width=width)
    np.testing.assert_allclose(share, expected, atol=0.04)


def test_infogain_starts_from_the_best_of_any_draw():
    # 2 is known least, so it is the second of either; 0 is first in three draws of four
    draws = [[9, 0, 0, 1]] * 3 + [[0, 9, 0, 1]]
    observation = by_hand([0] * 4, [0.1, 0.1, 5, 0.1], draws)
    np.testing.assert_allclose(chances(duels.infogain, observation), of_pairs(4, p02=0.75, p12=0.25), atol=0.03)


def test_infogain_spreads_ties():
    # any first; with width 0 any opponent
    share = chances(duels.infogain, by_hand([0] * 4, [1] * 4), times=6000, width=0.0)
    np.testing.assert_allclose(share, 1 / 6, atol=0.025)
    # 0 is first, 1 and 2 are known as little
    share = chances(duels.infogain, by_hand([9, 1, 1, 1], [0, 1, 1, 0.5]))
    np.testing.assert_allclose(share, of_pairs(4, p01=0.5, p02=0.5), atol=0.03)


def test_infogain_ranks_opponents_of_sure_outcomes():
    # 0 is first and far above: sig is 1 for both ends, and yet 2 is less sure than 1
    np.testing.assert_array_equal(
        chances(duels.infogain, by_hand([200, 0, 100], [1, 1, 1]), times=50), of_pairs(3, p02=1)
    )


# ids


def plain_ratio(stay, cost, information):
    """Over a grid of p; inf without information. Without regret it is only the order of the limit for small regret."""
    if information == 0:
        return math.inf
    if stay == 0:
        return cost / information
    p = np.geomspace(1e-6, 1, 400_001)
    return float(np.min((stay + p * cost) ** 2 / (p * information)))


def plain_ids(observation, row, width=1.0, noise=1.0):
    """The pair of a prompt without ties, by its definition."""
    present = np.flatnonzero(observation["mask"][row])
    mean = observation["reward_mean"][row].astype(np.float64)
    draws = observation["reward_samples"][:, row].astype(np.float64)
    greedy = max(present, key=lambda i: mean[i])
    others = [j for j in present if j != greedy]
    std = {j: float(np.std(draws[:, greedy] - draws[:, j])) for j in others}
    stay = max(0.0, *(mean[j] - mean[greedy] + width * std[j] for j in others))
    information = {j: math.log(1 + std[j] ** 2 / noise**2) for j in others}
    ratio = {j: plain_ratio(stay, mean[greedy] - mean[j], information[j]) for j in others}
    return pair_index(greedy, min(others, key=lambda j: ratio[j]), len(mean))


@pytest.mark.parametrize(("stay", "cost"), [(1, 0), (1, 0.5), (1, 1), (1, 3), (0.2, 7), (4, 1e-3), (1e-3, 1e-2)])
@pytest.mark.parametrize("information", [0.01, 1.0, 5.0])
def test_the_least_ratio_is_that_of_a_grid(stay, cost, information):
    least = duels.least_ratio(np.array([float(stay)]), np.array([float(cost)]), np.array([information]))
    np.testing.assert_allclose(least[0] * stay, plain_ratio(stay, cost, information), rtol=1e-6)


def test_the_least_ratio_without_information_or_regret():
    least = duels.least_ratio(np.array([[1.0]]), np.array([[0.0, 2.0]]), np.zeros((1, 2)))
    assert np.all(least == np.inf)
    # nothing to lose by staying: the limit for small regret, so the order does not jump at 0
    cost, information = np.array([[0.0, 1.0, 2.0, 3.0]]), np.array([[0.1, 0.3, 0.5, 2.0]])
    at_zero = duels.least_ratio(np.zeros((1, 1)), cost, information)
    np.testing.assert_allclose(at_zero, duels.least_ratio(np.full((1, 1), 1e-9), cost, information), atol=1e-7)
    np.testing.assert_allclose(at_zero, [[0, 4 / 0.3, 8 / 0.5, 12 / 2]])


@pytest.mark.parametrize("setting", [{}, {"width": 0.3}, {"width": 4.0}, {"noise": 0.1}, {"noise": 5.0}])
def test_ids_is_its_definition(setting):
    rng = np.random.default_rng(5)
    observation = make_observation(rng, n=25, m=6, samples=8)
    observation["mask"][::3, 2] = 0
    observation["mask"][1::3, 0] = 0
    score = duels.ids(observation, rng, **setting)
    for row in range(25):
        assert score[row].sum() == 1
        assert score[row].argmax() == plain_ids(observation, row, **setting)


def test_ids_divides_by_the_information():
    # 1 and 2 cost the same, and of 1 nothing is learnt but a little: who multiplies takes it
    draws = [[2, 1.01, 3], [2, 0.99, -1], [2, 1.01, -1], [2, 0.99, 3]]
    np.testing.assert_array_equal(chances(duels.ids, by_hand([2, 1, 1], [0, 0, 0], draws), 20), of_pairs(3, p02=1))
    # more information wins over a lower cost: 1 costs 0.5 for s = 0.1, 2 costs 1 for s = 2
    draws = [[2, 1.6, 3], [2, 1.4, -1]]
    np.testing.assert_array_equal(chances(duels.ids, by_hand([2, 1.5, 1], [0, 0, 0], draws), 20), of_pairs(3, p02=1))
    # and a lower cost wins where the information is equal
    draws = [[2, 2.5, 2], [2, 0.5, 0]]
    np.testing.assert_array_equal(chances(duels.ids, by_hand([2, 1.5, 1], [0, 0, 0], draws), 20), of_pairs(3, p01=1))


def test_ids_by_hand():
    # stds to 0 are 1, 3, 2, costs 1, 2.5, 1.5: staying may cost max(0, 0.5, 0.5). All costs are above it, so the ratio
    # is 2 cost / log(1 + s^2): 2.89, 2.17, 1.86; with noise 3 it is 2 cost / log(1 + s^2 / 9): 18.98, 7.21, 8.16
    draws = [[5, 5, 5.5, 5.5], [5, 3, -0.5, 1.5]]
    observation = by_hand([5, 4, 2.5, 3.5], [0] * 4, draws)
    np.testing.assert_array_equal(chances(duels.ids, observation, 20), of_pairs(4, p03=1))
    np.testing.assert_array_equal(chances(duels.ids, observation, 20, noise=3.0), of_pairs(4, p02=1))
    # with width 5 staying may cost 12.5, more than any duel, so p = 1: (12.5 + cost)^2 / log(1 + s^2) is 262.9, 97.7,
    # 121.8
    np.testing.assert_array_equal(chances(duels.ids, observation, 20, width=5.0), of_pairs(4, p02=1))


def test_ids_without_spread_takes_any_opponent():
    share = chances(duels.ids, by_hand([0, 3, 1, 2], [1] * 4))
    np.testing.assert_allclose(share, of_pairs(4, p01=1 / 3, p12=1 / 3, p13=1 / 3), atol=0.03)


def test_ids_without_spread_is_not_misled_by_rounding():
    # the mean of three times 0.1 is not 0.1
    share = chances(duels.ids, by_hand([0.1, 0.7, 0.3, 1.9], [0] * 4, [[0.1, 0.7, 0.3, 1.9]] * 3))
    np.testing.assert_allclose(share, of_pairs(4, p03=1 / 3, p13=1 / 3, p23=1 / 3), atol=0.03)


def test_ids_never_takes_an_opponent_without_information():
    # 1 is nearly as good, and its gap is known; of 2 and 3 something is learnt
    draws = [[5, 4.9, 1, 1], [5, 4.9, -1, -1]]
    share = chances(duels.ids, by_hand([5, 4.9, 0, 0], [0] * 4, draws))
    np.testing.assert_allclose(share, of_pairs(4, p02=0.5, p03=0.5), atol=0.03)


def test_ids_spreads_ties():
    draws = np.array([[1, -1, 0, 0], [-1, 1, 0, 0], [0, 0, 1, -1], [0, 0, -1, 1]])
    share = chances(duels.ids, by_hand([0] * 4, [1] * 4, draws), times=6000)
    # any is greedy, and meets the one that it is anticorrelated with
    np.testing.assert_allclose(share, of_pairs(4, p01=0.5, p23=0.5), atol=0.03)


def test_ids_sees_that_rewards_rise_together():
    # 1 has a large std, but shares it with 0: nothing is learnt from that duel
    draws = [[9, 8, 1], [-9, -10, 1], [9, 8, -1], [-9, -10, -1]]
    np.testing.assert_array_equal(chances(duels.ids, by_hand([0.1, -0.9, 0], [9, 9, 1], draws), 20), of_pairs(3, p02=1))


# rucb


def plain_rucb(mean, std, present, width):
    """Chances of a prompt's pairs by definition, ties among opponents included."""
    m = len(mean)
    high, low = mean + width * std, mean - width * std
    chance = expit(high[:, None] - low[None, :])
    champions = [c for c in present if all(chance[c, j] >= 0.5 for j in present if j != c)]
    share = np.zeros(n_pairs(m))
    for champion in champions:
        to_beat = {j: chance[j, champion] for j in present if j != champion}
        seconds = [j for j, value in to_beat.items() if value == max(to_beat.values())]
        for second in seconds:
            share[pair_index(champion, second, m)] += 1 / len(champions) / len(seconds)
    return share


@pytest.mark.parametrize("width", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("level", [0.0, 40.0, -40.0])
def test_rucb_is_its_definition_at_every_level(width, level):
    # a raw reward compared with 1/2 would make all champions at one level, and none at another
    rng = np.random.default_rng(3)
    for present in ([0, 1, 2, 3, 4], [0, 2, 4], [1, 3]):
        mean, std = rng.standard_normal(5), rng.random(5) + 0.1
        observation = by_hand(mean + level, std, mask=np.isin(np.arange(5), present))
        share = chances(duels.rucb, observation, times=3000, width=width)
        np.testing.assert_allclose(share, plain_rucb(mean, std, present, width), atol=0.04)


@pytest.mark.parametrize(
    ("width", "share"),
    [
        (0.0, {"p12": 1}),  # 2 is best, 1 is next
        # lb = -1, 0.5, 3 and ub = 1, 1.5, 3: only 2 reaches all lb
        (1.0, {"p12": 1}),
        # lb = -4, -1, 3 and ub = 4, 3, 3: all reach them. 0 has the highest ub; its own opponent is 1 or 2
        (4.0, {"p01": 1 / 3 + 1 / 6, "p02": 1 / 3 + 1 / 6}),
        # lb = -3, -0.5, 3 and ub = 3, 2.5, 3: 0 just reaches 3, and 1 does not
        (3.0, {"p02": 1}),
    ],
)
def test_rucb_by_hand(width, share):
    observation = by_hand([0, 1, 3], [1, 0.5, 0])
    np.testing.assert_allclose(chances(duels.rucb, observation, width=width), of_pairs(3, **share), atol=0.03)


def test_rucb_spreads_ties():
    np.testing.assert_allclose(chances(duels.rucb, by_hand([1] * 4, [1] * 4), times=6000), 1 / 6, atol=0.025)
    np.testing.assert_allclose(chances(duels.rucb, by_hand([1] * 4, [0] * 4), times=6000), 1 / 6, atol=0.025)


# all of them


@pytest.mark.parametrize(("method", "setting"), [(duels.infogain, {"width": 0.0}), (duels.ids, {})])
def test_the_ties_of_either_choice_are_apart(method, setting):
    # 0 and 1 tie for the first, and whichever it is, both others tie for the second
    share = chances(method, by_hand([1, 1, 0], [1, 1, 1]), **setting)
    np.testing.assert_allclose(share, of_pairs(3, p01=0.5, p02=0.25, p12=0.25), atol=0.03)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("junk", [1e30, -1e30, np.nan])
@pytest.mark.filterwarnings("error")
def test_masked_candidates_have_no_say(method, junk):
    observation = make_observation(np.random.default_rng(0), n=40, m=5)
    observation["mask"][:, 1] = 0
    observation["mask"][::2, 4] = 0
    spoilt = dict(observation)
    for name in ("reward_mean", "reward_std", "reward_samples"):
        spoilt[name] = np.where(observation["mask"].astype(bool), observation[name], np.float32(junk))
    spoilt["reward_std"] = np.abs(spoilt["reward_std"])
    before, after = (method(o, np.random.default_rng(1)) for o in (observation, spoilt))
    np.testing.assert_array_equal(before, after)
    assert np.all(after[~pair_mask(observation["mask"])] == 0)
    assert np.all(after.sum(axis=-1) == 1)


def test_masked_candidates_have_no_say_in_interval_draws():
    observation = by_hand([9, 0, 5, 9], [9, 1, 1, 0], mask=[0, 1, 1, 0])
    np.testing.assert_array_equal(chances(duels.infogain, observation, 50, draw="interval"), of_pairs(4, p12=1))


@pytest.mark.parametrize("method", METHODS)
def test_a_missing_number_is_named(method):
    observation = by_hand([np.nan, 1, 2], [1, 1, 1])
    with pytest.raises(ValueError, match="NaN"):
        method(observation, np.random.default_rng(0))


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_its_members_one_after_the_other(method):
    batch = make_observation(np.random.default_rng(0), batch=(2, 3), n=4, m=7)
    one, many = np.random.default_rng(5), np.random.default_rng(5)
    together = method(batch, many)
    assert together.shape == (2, 3, 4, n_pairs(7))
    for index in np.ndindex(2, 3):
        np.testing.assert_array_equal(
            together[index], method({name: value[index] for name, value in batch.items()}, one)
        )
    assert one.random() == many.random()


@pytest.mark.parametrize("method", METHODS)
def test_permuting_candidates_permutes_the_chances(method):
    observation = make_observation(np.random.default_rng(6), n=1, m=5, samples=6)
    order = np.array([3, 0, 4, 1, 2])
    names = ("reward_mean", "reward_std", "reward_samples")
    moved = observation | {name: observation[name][..., order] for name in names}
    i, j = pair_table(5)
    where = pair_index(order[i], order[j], 5)
    before, after = (chances(method, o) for o in (observation, moved))
    np.testing.assert_allclose(after, before[where], atol=0.04)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("level", [4.0, -300.0])
def test_a_level_changes_nothing(method, level):
    observation = make_observation(np.random.default_rng(0), n=60, m=6)
    moved = observation | {
        name: observation[name].astype(np.float64) + level for name in ("reward_mean", "reward_samples")
    }
    before, after = (method(o, np.random.default_rng(0)) for o in (observation, moved))
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    ("method", "setting"),
    [
        (duels.infogain, {"draw": "interval"}),
        (duels.infogain, {"width": 3.0}),
        (duels.ids, {"width": 5.0}),
        (duels.ids, {"noise": 0.05}),
        (duels.rucb, {"width": 0.2}),
    ],
)
def test_each_setting_is_read(method, setting):
    observation = make_observation(np.random.default_rng(0), n=100, m=8)
    default, changed = (method(observation, np.random.default_rng(0), **given) for given in ({}, setting))
    assert np.any(default != changed)


@pytest.mark.parametrize(
    ("method", "wrong", "message"),
    [
        (duels.infogain, {"draw": "both"}, "'joint' or 'interval'"),
        (duels.infogain, {"width": -1.0}, "width=-1.0"),
        (duels.ids, {"width": -1.0}, "width=-1.0"),
        (duels.ids, {"width": math.nan}, "width=nan"),
        (duels.ids, {"noise": 0.0}, "noise=0.0 must be above 0"),
        (duels.ids, {"noise": math.inf}, "noise=inf"),
        (duels.rucb, {"width": math.inf}, "width=inf"),
    ],
)
def test_settings_that_cannot_be(method, wrong, message):
    with pytest.raises(ValueError, match=message):
        method(make_observation(np.random.default_rng(0)), np.random.default_rng(0), **wrong)


@pytest.mark.parametrize("method", [duels.infogain, duels.ids])
def test_one_draw_is_too_few(method):
    with pytest.raises(ValueError, match="n_samples"):
        method(make_observation(np.random.default_rng(0), samples=1), np.random.default_rng(0))


@pytest.mark.parametrize("method", METHODS)
def test_two_candidates_make_the_one_pair(method):
    for observation in (by_hand([0, 1], [1, 2]), by_hand([0, 0], [0, 0])):
        np.testing.assert_array_equal(method(observation, np.random.default_rng(0)), [[1.0]])


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_takes_the_named_pairs_first(method):
    observation = make_observation(np.random.default_rng(0), n=4, m=5)
    score = method(observation, np.random.default_rng(0))
    taken = best_of_pool(score, np.ones((4, 10), dtype=bool), 6, np.random.default_rng(1))
    assert sorted((taken[:4] // 10).tolist()) == [0, 1, 2, 3]
    assert np.all(score.ravel()[taken[:4]] == 1)
    seeds = [best_of_pool(score, np.ones((4, 10), dtype=bool), 1, np.random.default_rng(s))[0] for s in range(200)]
    counts = np.bincount(np.array(seeds) // 10, minlength=4)
    assert counts.min() > 25  # one label: any of the four prompts


def test_three_ways_differ():
    # the same numbers, three rules: each asks another question
    observation = make_observation(np.random.default_rng(0), n=200, m=6)
    scores = [method(observation, np.random.default_rng(0)) for method in METHODS]
    for one, other in itertools.combinations(scores, 2):
        assert np.mean(np.any(one != other, axis=-1)) > 0.2
