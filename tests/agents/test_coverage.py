"""Coverage rules against loops written for the purpose, by hand, and where points are equal."""

import numpy as np
import pytest

from agents.scores import coverage, herding
from agents.scores.points import squared_distances
from prefenv.spaces import pair_table
from tests.agents.rounds import budget_agent, chosen_prompts, memory_of, points_observation, prompts_of, repeated
from tests.conftest import make_observation


def picks(rule, points, k, labelled=(), seed=0, entries=None, **settings):
    """The prompts of k labels in order, of one pair each at these points."""
    observation = points_observation(points, **(entries or {}))
    state = memory_of(labelled) if len(labelled) else None
    return budget_agent(rule, observation, k, seed, **settings).predict(observation, state)[0].tolist()


def cloud(seed, n, d=4, labelled=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)).astype(np.float32), rng.standard_normal((labelled, d)).astype(np.float32)


def unit(points):
    points = np.asarray(points, dtype=np.float64)
    return points / np.linalg.norm(points, axis=-1, keepdims=True)


def rbf(one, other, bandwidth):
    return np.exp(-((np.linalg.norm(one - other) / bandwidth) ** 2))


# ------------------------------------------------------------------------------------------------ k-centre


def k_centre(points, k, labelled):
    centres, chosen = [np.asarray(point, dtype=np.float64) for point in labelled], []
    for _ in range(k):
        distance = [
            -1.0 if i in chosen else min(np.linalg.norm(point - centre) for centre in centres)
            for i, point in enumerate(points.astype(np.float64))
        ]
        chosen.append(int(np.argmax(distance)))
        centres.append(points[chosen[-1]].astype(np.float64))
    return chosen


@pytest.mark.parametrize("seed", range(5))
def test_coreset_is_k_centre(seed):
    points, labelled = cloud(seed, 15, labelled=3)
    assert picks(coverage.coreset, points, 10, labelled) == k_centre(points, 10, labelled)
    first = picks(coverage.coreset, points, 10, seed=seed)
    assert first[1:] == k_centre(np.delete(points, [], axis=0), 10, points[first[:1]])[:9]


def test_coreset_by_hand_and_first_at_random():
    line = [[0.0], [1.0], [4.0], [10.0]]
    assert picks(coverage.coreset, line, 4, labelled=[[-1.0]]) == [3, 2, 1, 0]  # 11; 5 against 1 and 2; 2 against 1
    assert picks(coverage.coreset, line, 2, labelled=[[9.0], [10.5]]) == [0, 2]
    first = chosen_prompts(coverage.coreset, repeated(points_observation(line), 4000), 1)
    np.testing.assert_allclose(np.bincount(first.ravel(), minlength=4) / 4000, 0.25, atol=0.03)


def test_coreset_spreads_equal_distances():
    square = [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [0.5, 0.0]]
    batch = repeated(points_observation(square), 4000)
    agent = budget_agent(coverage.coreset, points_observation(square), 1)
    ends, _ = memory_of([[0.0, 0.0]])
    chosen, _ = agent.predict(batch, (np.broadcast_to(ends, (4000, *ends.shape)), np.ones((4000, 1), dtype=bool)))
    np.testing.assert_allclose(np.bincount(chosen.ravel(), minlength=5) / 4000, [0.25] * 4 + [0], atol=0.03)


def test_a_prompt_stands_at_the_midpoint_of_its_pair():
    # margins say pair (0, 2) of prompt 0 and (1, 2) of prompt 1; midpoints 5 and -1 are at 5 and 1 from the label at 0
    observation = {
        "embedding": np.array([[[2.0], [99.0], [8.0]], [[-99.0], [-5.0], [3.0]]], dtype=np.float32),
        "implicit_reward": np.array([[0.0, 1.0, 3.0], [0.0, 1.0, -3.0]], dtype=np.float32),
        "mask": np.ones((2, 3), dtype=np.int8),
    }
    for far, near, label in ((0, 1, 0.0), (1, 0, 4.0)):
        action, _ = budget_agent(coverage.coreset, observation, 2, pair="margin").predict(
            observation, memory_of([[label]])
        )
        assert action.tolist() == [[1, 5][far] + [0, 0][far], [1, 5][near]]


# ------------------------------------------------------------------------------------------------ k-means


def test_kmeans_takes_the_middle_of_each_of_three_far_groups():
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]])
    offsets = np.array([[0.0, 0.1], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])  # the first is nearest the mean
    points = (centres[:, None] + offsets).reshape(15, 2)
    order = rng.permutation(15)
    for seed in range(10):
        assert sorted(order[picks(coverage.kmeans, points[order], 3, seed=seed)]) == [0, 5, 10]


def test_kmeans_ends_where_lloyd_does():
    # from any seeds: each taken prompt is the member nearest to its cluster's mean, clusters being those of the means
    points = cloud(1, 40, d=2)[0].astype(np.float64)
    seeds = np.array([[3, 17, 22, 30, 8]])
    cluster, own = coverage._lloyd(points[None], seeds, np.ones((1, 40), dtype=bool), 100)
    means = np.array([points[cluster[0] == c].mean(axis=0) for c in range(5)])
    squared = ((points[:, None] - means) ** 2).sum(axis=-1)
    np.testing.assert_array_equal(cluster[0], squared.argmin(axis=-1))
    np.testing.assert_allclose(own[0], squared.min(axis=-1), atol=1e-12)
    first = coverage._first_of_each(cluster, own, np.zeros((1, 40)))[0]
    expected = [min(np.flatnonzero(cluster[0] == c), key=lambda i: own[0, i]) for c in range(5)]
    assert sorted(np.flatnonzero(first)) == sorted(expected)


def test_one_step_of_lloyd_by_hand():
    # seeds at 0 and 1: 0 | 1 2 9; means 0 and 4. The next step moves 1 and 2 (to 0): 0 1 2 | 9
    line = np.array([[[0.0], [1.0], [2.0], [9.0]]])
    counted = np.ones((1, 4), dtype=bool)
    cluster, own = coverage._lloyd(line, np.array([[0, 1]]), counted, 1)
    assert (cluster.tolist(), own.tolist()) == ([[0, 1, 1, 1]], [[0, 9, 4, 25]])
    cluster, own = coverage._lloyd(line, np.array([[0, 1]]), counted, 9)
    assert (cluster.tolist(), own.tolist()) == ([[0, 0, 0, 1]], [[1, 0, 1, 0]])
    cluster, own = coverage._lloyd(line, np.array([[0, 1]]), np.array([[True, True, True, False]]), 1)
    assert own.tolist() == [[0, 0.25, 0.25, 7.5**2]]  # 9 has no part in the mean


def test_an_empty_cluster_keeps_its_centre():
    # both seeds at 10: all points join the first, whose mean is then 6.25, and the tens go to the other
    line = np.array([[[2.0], [3.0], [10.0], [10.0]]])
    cluster, own = coverage._lloyd(line, np.array([[2, 3]]), np.ones((1, 4), dtype=bool), 9)
    assert (cluster.tolist(), own.tolist()) == ([[0, 0, 1, 1]], [[0.25, 0.25, 0, 0]])


def test_kmeans_of_few_distinct_points_takes_each_once_and_fills_up():
    points = [[0.0]] * 4 + [[5.0]] * 3 + [[9.0]]
    for seed in range(20):
        taken = picks(coverage.kmeans, points, 5, seed=seed)
        assert len(set(taken)) == 5
        assert {np.float64(points[i][0]) for i in taken[:3]} == {0.0, 5.0, 9.0}


def test_kmeans_spreads_the_two_of_a_cluster():
    # a cluster of two is a tie, whatever rounding says
    points = np.array([[0.1, 0.7], [0.3, 0.2], [7.1, 7.3]], dtype=np.float32)
    chosen = chosen_prompts(coverage.kmeans, repeated(points_observation(points), 3000), 2)
    np.testing.assert_allclose(np.bincount(chosen.ravel(), minlength=3) / 3000, [0.5, 0.5, 1.0], atol=0.08)


def test_kmeans_seeds_by_squared_distance():
    # with k = 2 and one step: from 0 the far point is drawn 99 times in 100, from the far point both are likely
    points = coverage.Points(
        np.tile([[[0.0], [1.0], [10.0]]], (6000, 1, 1)), np.zeros((6000, 0, 1)), np.zeros((6000, 0))
    )
    observation = repeated(points_observation([[0.0], [1.0], [10.0]]), 6000)
    plan = coverage.Plan(2, False, np.zeros((6000, 0, 2, 1)), np.zeros((6000, 0), dtype=bool), np.random.default_rng(0))
    firsts = coverage.first_pairs(observation, np.random.default_rng(0), plan, coverage.pair_score("random"), columns=2)
    nearest = np.full((6000, 3), np.inf)
    seeds = coverage._drawn(points, nearest, np.ones((6000, 3)), coverage.Taken(firsts, 2), firsts.noise[..., 1])
    np.testing.assert_allclose(np.bincount(seeds[:, 0]) / 6000, 1 / 3, atol=0.03)
    after = {start: np.bincount(seeds[seeds[:, 0] == start, 1], minlength=3) for start in range(3)}
    np.testing.assert_allclose(after[0] / after[0].sum(), [0, 1 / 101, 100 / 101], atol=0.01)
    np.testing.assert_allclose(after[2] / after[2].sum(), [100 / 181, 81 / 181, 0], atol=0.04)


# ------------------------------------------------------------------------------------------------ div-reward


def test_div_reward_draws_by_distance_and_margin():
    # a label at 0, points at 1, 2, 4 with margins 4, 1, 0.25: (D sqrt(w))² = 4, 4, 4; with gamma = 0: 1, 4, 16
    shown = points_observation([[1.0], [2.0], [4.0]], implicit_reward=[[0, 4], [0, 1], [0.25, 0]])
    ends, _ = memory_of([[0.0]])
    state = np.broadcast_to(ends, (9000, *ends.shape)), np.ones((9000, 1), dtype=bool)
    unsure = shown | {"implicit_reward": np.zeros((3, 2))}  # all margins 0: by distance alone
    first, _ = budget_agent(coverage.div_reward, unsure, 1, oversample=1).predict(repeated(unsure, 9000), state)
    np.testing.assert_allclose(np.bincount(first.ravel(), minlength=3) / 9000, [1 / 21, 4 / 21, 16 / 21], atol=0.02)
    for gamma, chances in ((0.5, [1 / 3] * 3), (0.0, [1 / 21, 4 / 21, 16 / 21]), (1.0, [16 / 21, 4 / 21, 1 / 21])):
        agent = budget_agent(coverage.div_reward, shown, 1, oversample=1, gamma=gamma)
        first, _ = agent.predict(repeated(shown, 9000), state)
        np.testing.assert_allclose(np.bincount(first.ravel(), minlength=3) / 9000, chances, atol=0.02)


def test_div_reward_with_nothing_labelled_draws_first_by_the_margin_alone():
    shown = points_observation([[0.0], [50.0], [51.0]], implicit_reward=[[0, 3], [1, 0], [0, 0]])
    first = chosen_prompts(coverage.div_reward, repeated(shown, 6000), 1, oversample=1)
    np.testing.assert_allclose(np.bincount(first.ravel(), minlength=3) / 6000, [0.75, 0.25, 0], atol=0.02)
    shown = points_observation([[0.0], [50.0], [51.0]], implicit_reward=np.zeros((3, 2)))
    first = chosen_prompts(coverage.div_reward, repeated(shown, 6000), 1, oversample=1)
    np.testing.assert_allclose(np.bincount(first.ravel(), minlength=3) / 6000, 1 / 3, atol=0.03)


def test_div_reward_measures_to_what_it_has_drawn():
    # two groups far apart: after one of a group the other group is nearly sure
    shown = points_observation([[0.0], [0.1], [100.0], [100.1]])
    both = chosen_prompts(coverage.div_reward, repeated(shown, 500), 2, oversample=1) // 2
    assert np.mean(both[:, 0] != both[:, 1]) > 0.99


def test_div_reward_takes_the_largest_margins_of_those_drawn():
    points, _ = cloud(0, 30)
    shown = points_observation(points, implicit_reward=np.random.default_rng(0).standard_normal((30, 2)))
    margins = np.abs(shown["implicit_reward"][:, 0] - shown["implicit_reward"][:, 1])
    agent = budget_agent(coverage.div_reward, shown, 5)
    plan = coverage.Plan.at_start(5, d=4)
    score = coverage.div_reward(shown, np.random.default_rng(0), plan)[:, 0]
    assert np.sum(score >= 4) == 10
    drawn = np.flatnonzero(score >= 4)
    np.testing.assert_array_equal(np.argsort(-score)[:10], drawn[np.argsort(-margins[drawn])])
    all_drawn = budget_agent(coverage.div_reward, shown, 5, oversample=6).predict(shown)[0]
    assert all_drawn.tolist() == np.argsort(-margins)[:5].tolist()
    assert np.all(np.diff(margins[agent.predict(shown)[0]]) <= 0)


# ------------------------------------------------------------------------------------------------ herdings


def as_good(values, told, step):
    """The best; or what was told, if it is as good (two that would cover each other and nothing else are equal)."""
    best = int(np.argmax(values))
    return told[step] if told is not None and values[told[step]] > values[best] - 1e-8 else best


def herd(points, k, labelled, bandwidth, weight=None, told=None):
    """Greedy picks; where told what another chose, those of its choices that no other beats by more than rounding."""
    points, known = unit(points), list(unit(labelled)) if len(labelled) else []
    weight = np.ones(len(points)) if weight is None else weight
    chosen = []
    for step in range(k):
        gains = []
        for i, z in enumerate(points):
            gain = 0.0
            for x, times in zip(points, weight, strict=True):
                covered = max((rbf(x, c, bandwidth) for c in known), default=0.0)
                gain += times * max(rbf(x, z, bandwidth) - covered, 0.0)
            gains.append(-1.0 if i in chosen else gain)
        chosen.append(as_good(gains, told, step))
        known.append(points[chosen[-1]])
    return chosen


@pytest.mark.parametrize("bandwidth", [1.0, 0.4])
@pytest.mark.parametrize("memory", [0, 4])
def test_max_herding_is_greedy_coverage(bandwidth, memory):
    for seed in range(4):
        points, labelled = cloud(seed, 16, d=3, labelled=memory)
        chosen = picks(herding.max_herding, points, 7, labelled, bandwidth=bandwidth)
        assert chosen == herd(points, 7, labelled, bandwidth, told=chosen)


def test_max_herding_updates_its_coverage():
    # three near each other and one apart: without the update the three cover most, and are taken first
    angles = np.array([0.0, 0.05, -0.05, 2.0])
    points = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    assert picks(herding.max_herding, points, 2) == [0, 3]


def test_max_herding_with_a_label_looks_elsewhere():
    angles = np.array([0.0, 0.05, -0.05, 2.0])
    points = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    assert picks(herding.max_herding, points, 1, labelled=[[7.0, 0.0]]) == [3]  # its length does not matter


@pytest.mark.parametrize("memory", [0, 4])
def test_u_herding_is_greedy_coverage_of_entropy_then_margin(memory):
    for seed in range(4):
        points, labelled = cloud(seed, 16, d=3, labelled=memory)
        rng = np.random.default_rng(seed)
        entries = {"entropy": rng.random(16) + 0.1, "implicit_reward": rng.standard_normal((16, 2))}
        entries["entropy"][:3] = [-5.0, -0.1, 0.0]
        weight = np.maximum(entries["entropy"].astype(np.float32).astype(np.float64), 0.0)
        margins = np.abs(np.diff(entries["implicit_reward"].astype(np.float32), axis=-1))[:, 0]
        for oversample in (1, 3):
            covering = herd(points, 4 * oversample, labelled, 0.7, weight)
            expected = sorted(covering, key=lambda i: -margins[i])[:4]
            chosen = picks(
                herding.u_herding, points, 4, labelled, entries=entries, bandwidth=0.7, oversample=oversample
            )
            assert chosen == expected


def test_u_herding_with_no_entropy_above_0_covers_at_random():
    shown = points_observation(cloud(0, 4)[0], entropy=[-1.0, -2.0, -0.5, 0.0], implicit_reward=np.zeros((4, 2)))
    chosen = chosen_prompts(herding.u_herding, repeated(shown, 4000), 1, oversample=1)
    np.testing.assert_allclose(np.bincount(chosen.ravel(), minlength=4) / 4000, 0.25, atol=0.03)


def gp_coverage(x, known, neighbours, bandwidth):
    """sqrt(k' (K + 1e-6)^-1 k) of x, with the nearest few of the known points."""
    near = sorted(known, key=lambda c: -rbf(x, c, bandwidth))[:neighbours]
    kernel = np.array([[rbf(a, b, bandwidth) for b in near] for a in near]) + 1e-6 * np.eye(len(near))
    to_x = np.array([rbf(x, c, bandwidth) for c in near])
    return np.sqrt(to_x @ np.linalg.solve(kernel, to_x))


def knn_herd(points, k, labelled, neighbours, bandwidth, told):
    points, known, chosen = unit(points), list(unit(labelled)) if len(labelled) else [], []
    for step in range(k):
        values = [
            -1.0 if i in chosen else np.mean([gp_coverage(x, [*known, z], neighbours, bandwidth) for x in points])
            for i, z in enumerate(points)
        ]
        chosen.append(as_good(values, told, step))
        known.append(points[chosen[-1]])
    return chosen


@pytest.mark.parametrize(("neighbours", "bandwidth"), [(3, 1.0), (1, 1.0), (2, 0.5), (5, 1.5)])
@pytest.mark.parametrize("memory", [0, 2, 8])
def test_knn_herding_is_greedy_coverage_by_neighbours(neighbours, bandwidth, memory):
    for seed in range(2):
        points, labelled = cloud(seed, 12, d=3, labelled=memory)
        chosen = picks(herding.knn_herding, points, 8, labelled, neighbours=neighbours, bandwidth=bandwidth)
        assert chosen == knn_herd(points, 8, labelled, neighbours, bandwidth, told=chosen)


def test_knn_herding_covers_what_lies_between_two():
    # in the middle of two labelled points x is covered well by both together, not by either
    angles = np.array([-0.8, 0.8])
    both = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    x = np.array([1.0, 0.0])
    one = gp_coverage(x, list(both), 1, 1.0)
    two = gp_coverage(x, list(both), 2, 1.0)
    points = herding.Points(x[None, None], both[None], np.ones((1, 2), dtype=bool))
    for neighbours, expected in ((1, one), (2, two), (3, two)):
        pool = herding._Neighbourhoods(points, neighbours, 1.0)
        pool._kernel[:, 2:] = 0.0  # no z nears x, as for a pool elsewhere
        pool._cover(np.array([0]), np.array([0]))
        if neighbours < 3:
            assert pool.coverage[0, 0, 0] == pytest.approx(expected, abs=1e-9)
    assert two > one + 0.1


def test_knn_herding_survives_points_that_are_labelled_many_times():
    points, _ = cloud(0, 6, d=3)
    chosen = picks(herding.knn_herding, np.repeat(points, 3, axis=0), 12, labelled=np.repeat(points, 5, axis=0))
    assert len(set(chosen)) == 12


def test_worlds_that_know_different_numbers_of_labels():
    rng = np.random.default_rng(0)
    batch = make_observation(rng, batch=(3,), n=7, m=2)
    labelled = rng.standard_normal((3, 5, 2, 5)).astype(np.float32)
    known = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]], dtype=bool)
    labelled[~known] = 1e30
    for rule in (coverage.coreset, coverage.div_reward, herding.max_herding, herding.knn_herding, herding.u_herding):
        together, alone = (budget_agent(rule, batch, 4) for _ in range(2))
        action, _ = together.predict(batch, (labelled, known))
        for world in range(3):
            one = {name: value[world] for name, value in batch.items()}
            state = labelled[world, known[world]], np.ones(known[world].sum(), dtype=bool)
            np.testing.assert_array_equal(alone.predict(one, state)[0], action[world])


def test_squared_distances_are_exact_far_from_zero():
    rng = np.random.default_rng(0)
    one, other = (2.0**20 + np.round(64 * rng.standard_normal((2, 5, 3))) / 64 for _ in range(2))
    expected = ((one[:, :, None] - other[:, None]) ** 2).sum(axis=-1)
    np.testing.assert_allclose(squared_distances(one, other), expected, rtol=1e-10, atol=1e-10)
    assert np.all(np.diagonal(squared_distances(one / 3, one / 3), axis1=1, axis2=2) == 0)


def test_points_of_margin_pairs_feed_the_herding():
    # m > 2: the same picks as of the midpoints of the largest margins, computed here
    observation = make_observation(np.random.default_rng(1), n=8, m=4)
    first, second = pair_table(4)
    implicit = observation["implicit_reward"]
    best = np.abs(implicit[:, first] - implicit[:, second]).argmax(axis=-1)
    rows = np.arange(8)
    points = (
        observation["embedding"][rows, first[best]].astype(np.float64) + observation["embedding"][rows, second[best]]
    ) / 2
    action, _ = budget_agent(herding.max_herding, observation, 4, pair="margin", bandwidth=0.8).predict(observation)
    assert prompts_of(action, observation).tolist() == herd(points, 4, (), 0.8)


@pytest.mark.parametrize(
    "rule", [coverage.coreset, coverage.kmeans, herding.max_herding, herding.knn_herding, herding.u_herding]
)
def test_what_is_equal_but_for_rounding_is_equal(rule):
    # cyclic shifts of one row, and a label at 0: by symmetry all are as good, but sums are taken in other orders
    row = np.random.default_rng(0).standard_normal(5).astype(np.float32)
    shown = points_observation([np.roll(row, shift) for shift in range(5)])
    ends, _ = memory_of(np.zeros((1, 5)))
    state = np.broadcast_to(ends, (4000, *ends.shape)), np.ones((4000, 1), dtype=bool)
    chosen, _ = budget_agent(rule, shown, 1).predict(repeated(shown, 4000), state)
    np.testing.assert_allclose(np.bincount(chosen.ravel(), minlength=5) / 4000, 0.2, atol=0.03)
