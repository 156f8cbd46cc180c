"""Each score by hand, and what must hold for all."""

import itertools

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

import agents
from agents.scores import baseline, intervals, picks, thompson
from prefenv.spaces import n_pairs, pair_index, pair_table
from tests.conftest import make_observation

METHODS = [key for key, spec in agents.AGENTS.items() if not spec.learned]
HEURISTICS = [key for key in METHODS if not agents.spec(key).design]  # those with a score of their own
# the others are functions of the observation, but for ties
SAMPLED = ["random", "xpo", "dts", "drts", "infogain", "sea", "rucb", "ultrafeedback"]


def score_of(key, observation, seed=0, **settings_):
    return agents.spec(key).method(observation, np.random.default_rng(seed), **settings_)


def by_hand(mean, std, samples=None):
    """An observation of one prompt with these numbers."""
    mean, std = np.array([mean], dtype=np.float32), np.array([std], dtype=np.float32)
    return {
        "mask": np.ones_like(mean, dtype=np.int8),
        "reward_mean": mean,
        "reward_std": std,
        "reward_samples": np.zeros((2, *mean.shape)) if samples is None else np.array(samples)[:, None, :],
    }


def test_deltaucb_by_hand():
    score = intervals.deltaucb(by_hand([0, 1, 3], [1, 0.5, 0]), np.random.default_rng(), width=2.0)
    # |r_i - r_j| + 2 (s_i + s_j) for (0,1), (0,2), (1,2)
    np.testing.assert_allclose(score, [[1 + 3, 3 + 2, 2 + 1]])


def test_infomax_by_hand():
    score = intervals.infomax(by_hand([0, 1, 3], [1, 0.5, 0]), np.random.default_rng(), width=1.0)
    expected = [
        expit((0 + 1) - (1 - 0.5)) - expit((0 - 1) - (1 + 0.5)),
        expit((0 + 1) - 3) - expit((0 - 1) - 3),
        expit((1 + 0.5) - 3) - expit((1 - 0.5) - 3),
    ]
    np.testing.assert_allclose(score, [expected], rtol=1e-6)


def test_maxmin_by_hand_and_without_its_privilege():
    observation = by_hand([0, 0, 0], [1, 1, 1]) | {"oracle_score": np.array([[2.0, -1.0, 0.5]])}
    np.testing.assert_allclose(baseline.maxmin(observation, np.random.default_rng()), [[3.0, 1.5, 1.5]])
    del observation["oracle_score"]
    with pytest.raises(ValueError, match="privileged=True"):
        baseline.maxmin(observation, np.random.default_rng())


def test_oracle_greedy_without_its_privilege():
    with pytest.raises(ValueError, match="privileged=True"):
        baseline.oracle_greedy(by_hand([0, 0], [1, 1]), np.random.default_rng())


def chosen_pair(score):
    first, second = pair_table(3)
    index = int(score[0].argmax())
    return first[index], second[index]


def test_dts_takes_the_two_best_and_drts_best_and_worst():
    # in every draw 2 > 1 > 0, but for one draw in which 1 is best: then dts can only choose (1, 2)
    samples = [[0, 1, 2], [0, 2, 1]] * 4
    observation = by_hand([0, 1, 2], [1, 1, 1], samples)
    for seed in range(20):
        assert chosen_pair(thompson.dts(observation, np.random.default_rng(seed))) == (1, 2)
        assert chosen_pair(thompson.drts(observation, np.random.default_rng(seed))) in {(0, 1), (0, 2)}


def test_a_sure_dts_takes_its_opponent_uniformly():
    observation = by_hand([0, 1, 9], [0.1, 0.1, 0.1], [[0, 1, 9]] * 8)
    pairs = [chosen_pair(thompson.dts(observation, np.random.default_rng(seed))) for seed in range(400)]
    assert set(pairs) == {(0, 2), (1, 2)}
    assert pairs.count((0, 2)) == pytest.approx(200, abs=45)


def test_interval_draws_stay_in_their_intervals():
    # intervals [-1, 1], [0, 2], [5, 7]: the best is sure, the worst is 0 or 1
    observation = by_hand([0, 1, 6], [1, 1, 1])
    pairs = [chosen_pair(thompson.drts(observation, np.random.default_rng(s), draw="interval")) for s in range(400)]
    assert set(pairs) == {(0, 2), (1, 2)}
    # P(u0 > u1) for u0 in [-1, 1], u1 in [0, 2] is 1/8
    assert pairs.count((1, 2)) == pytest.approx(50, abs=25)
    sure = [
        chosen_pair(thompson.drts(observation, np.random.default_rng(s), draw="interval", width=0.4)) for s in range(50)
    ]
    assert set(sure) == {(0, 2)}


@pytest.mark.parametrize("key", HEURISTICS)
@pytest.mark.parametrize(("n", "m"), [(1, 2), (3, 4), (2, 9)])
def test_shape_and_batch(key, n, m):
    rng = np.random.default_rng(0)
    assert score_of(key, make_observation(rng, n=n, m=m)).shape == (n, n_pairs(m))
    assert score_of(key, make_observation(rng, batch=(2, 5), n=n, m=m)).shape == (2, 5, n, n_pairs(m))


@pytest.mark.parametrize("key", METHODS)
def test_a_batch_is_its_members_one_after_the_other(key):
    batch = make_observation(np.random.default_rng(0), batch=(6,))
    one, many = agents.make(key, seed=3), agents.make(key, seed=3)
    together, _ = many.predict(batch)
    alone = [one.predict({name: value[b] for name, value in batch.items()})[0] for b in range(6)]
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("key", [key for key in HEURISTICS if key not in SAMPLED])
@given(permutation=st.permutations(range(5)), seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_permuting_candidates_permutes_the_scores(key, permutation, seed):
    observation = make_observation(np.random.default_rng(seed), m=5)
    permutation = np.array(permutation)
    moved = {
        name: value[..., permutation] if value.shape[-1] == 5 and name not in ("embedding", "entropy") else value
        for name, value in observation.items()
    }
    i, j = pair_table(5)
    where = pair_index(permutation[i], permutation[j], 5)
    moved["oracle_gain"] = observation["oracle_gain"][..., where]
    np.testing.assert_allclose(score_of(key, moved), score_of(key, observation)[..., where], rtol=1e-5)


@pytest.mark.parametrize("key", ["dts", "drts"])
@pytest.mark.parametrize("draw", ["joint", "interval"])
def test_permuting_candidates_permutes_the_chances(key, draw):
    observation = make_observation(np.random.default_rng(4), n=1, m=3)
    permutation = np.array([2, 0, 1])
    moved = observation | {
        name: observation[name][..., permutation] for name in ("reward_mean", "reward_std", "reward_samples")
    }
    i, j = pair_table(3)
    where = pair_index(permutation[i], permutation[j], 3)
    repeats = 3000

    def chances(obs):
        batch = {name: np.broadcast_to(value, (repeats, *value.shape)) for name, value in obs.items()}
        return score_of(key, batch, draw=draw)[:, 0].mean(axis=0)

    np.testing.assert_allclose(chances(moved), chances(observation)[where], atol=0.04)


@pytest.mark.parametrize("key", HEURISTICS)
def test_shifting_all_rewards_changes_nothing(key):
    observation = make_observation(np.random.default_rng(0))
    shifted = observation | {
        name: observation[name] + np.float32(4.0) for name in ("reward_mean", "reward_samples", "oracle_score")
    }
    before, after = score_of(key, observation), score_of(key, shifted)
    if key == "eubo":  # has the level of the rewards, for every pair alike
        before += 4.0
    np.testing.assert_allclose(before, after, atol=1e-5)


@pytest.mark.parametrize("key", METHODS)
def test_equal_candidates_are_chosen_equally_often(key):
    observation = make_observation(np.random.default_rng(0), n=1, m=4)
    for name in ("reward_mean", "reward_std", "reward_samples", "implicit_reward", "generator", "oracle_score",
                 "oracle_gain", "embedding"):  # fmt: skip
        observation[name] = np.ones_like(observation[name])
    observation = {name: np.broadcast_to(value, (6000, *value.shape)) for name, value in observation.items()}
    action, _ = agents.make(key, seed=0).predict(observation)
    counts = np.bincount(action[:, 0], minlength=6)
    assert counts.min() > 850, counts  # 1000 each, standard deviation 29
    assert counts.max() < 1150, counts


@pytest.mark.parametrize("key", METHODS)
def test_masked_candidates_are_never_chosen(key):
    rng = np.random.default_rng(0)
    observation = make_observation(rng, batch=(200,), n=2, m=5)
    for present in itertools.combinations(range(5), 2):
        mask = np.zeros(5, dtype=np.int8)
        mask[list(present)] = 1
        observation["mask"] = np.broadcast_to(mask, (200, 2, 5))
        action, _ = agents.make(key, seed=1).predict(observation)
        assert np.all(action == pair_index(*present, 5))
    observation["mask"] = np.broadcast_to(np.array([1, 0, 1, 1, 0], dtype=np.int8), (200, 2, 5))
    allowed = {int(pair_index(a, b, 5)) for a, b in itertools.combinations([0, 2, 3], 2)}
    assert set(agents.make(key, seed=1).predict(observation)[0].ravel().tolist()) <= allowed


OTHER = {
    "width": 3.0, "draw": "interval", "redraws": 1, "candidates": 2, "keep": 0.1, "quantile": 0.3, "epsilon": 0.05,
    "noise": 0.05, "iterations": 1, "gamma": 3.0, "oversample": 4, "bandwidth": 0.2, "neighbours": 1, "ridge": 100.0,
}  # fmt: skip
CHOICES = [
    (key, name) for key in METHODS for name in agents.spec(key).settings() if name not in ("share", "burn_in", "alpha")
]


@pytest.mark.parametrize(("key", "name"), CHOICES)
def test_every_setting_changes_some_choice(key, name):
    observation = make_observation(np.random.default_rng(0), batch=(50,), n=8, m=6)
    common = {"draw": "interval"} if key in ("dts", "drts") and name == "width" else {}
    if agents.spec(key).family == "prompts":  # has no say where every prompt gets a pair
        common["action_space"] = gym.spaces.MultiDiscrete([8 * 15] * 3)
    default = agents.make(key, seed=0, **common).predict(observation)[0]
    value = OTHER[name] if name != "pair" else "drts"
    changed = agents.make(key, seed=0, **common, **{name: value}).predict(observation)[0]
    assert np.any(default != changed)


@pytest.mark.parametrize(
    ("key", "name", "value"), [("sea", "share", 0.1), ("sea", "burn_in", 0), ("xpo", "alpha", 1e-2)]
)
def test_every_setting_of_a_recipe_changes_what_is_learned(key, name, value):
    def win_rate(**settings_):
        recipe = agents.recipe(key, **settings_)
        envs = gym.make_vec("PrefAcquire-v0", num_envs=2, n_prompts=6, recipe=recipe)
        agent, (observation, _) = agents.make(key, seed=0, **settings_), envs.reset(seed=0)
        for _ in range(7):
            observation, _, _, _, info = envs.step(agent.predict(observation)[0])
        return info["win_rate"]

    assert np.all(win_rate() != win_rate(**{name: value}))
    assert agents.spec(key).settings()[name] != value


@pytest.mark.parametrize(
    ("key", "wrong", "message"),
    [
        ("dts", {"draw": "both"}, "'joint' or 'interval'"),
        ("drts", {"redraws": 0}, "redraws=0"),
        ("dts", {"redraws": 2.5}, "redraws=2.5"),
        ("dts", {"width": float("nan")}, "width=nan"),
        ("sea", {"share": 7}, "self_labelled=7"),
        ("xpo", {"alpha": -1.0}, "exploration_bonus=-1.0"),
        ("deltaucb", {"width": -1.0}, "width=-1"),
        ("dts", {"draw": "interval", "width": -1.0}, "width=-1"),
        ("maxminlcb", {"width": -1.0}, "width=-1"),
        ("ultrafeedback", {"candidates": 1}, "candidates=1 must be a whole number of at least 2"),
        ("ultrafeedback", {"candidates": 2.5}, "candidates=2.5"),
        ("apl", {"keep": 0.0}, "keep=0.0"),
        ("apl", {"keep": 1.5}, "keep=1.5"),
        ("apl", {"keep": float("nan")}, "keep=nan"),
    ],
)
def test_settings_that_cannot_be(key, wrong, message):
    with pytest.raises(ValueError, match=message):
        agents.make(key, **wrong).predict(make_observation(np.random.default_rng(0)))


def test_one_joint_draw_makes_no_thompson_pair():
    with pytest.raises(ValueError, match="n_samples"):
        score_of("dts", make_observation(np.random.default_rng(0), samples=1))


def masked_by_hand(mean, std, samples, mask):
    return by_hand(mean, std, samples) | {"mask": np.array([mask], dtype=np.int8)}


@pytest.mark.parametrize("draw", ["joint", "interval"])
def test_thompson_methods_do_not_see_masked_candidates(draw):
    # of 0 < 1 < 2 < 3 the best and the worst are missing: the pair can only be (1, 2), and it is drawn, not a fallback
    observation = masked_by_hand([0, 3, 6, 9], [0.1] * 4, [[0, 3, 6, 9]] * 4, [0, 1, 1, 0])
    for method in (thompson.dts, thompson.drts):
        score = method(observation, np.random.default_rng(0), draw=draw)
        assert score[0].argmax() == pair_index(1, 2, 4)
        assert score.sum() == 1


def test_a_joint_draw_is_one_reward_function():
    # the draws differ by far more between than within: only a draw kept whole tells that 2 > 1 > 0
    samples = [[level, level + 1, level + 2] for level in (0, 100, 300, 700, 1500)]
    observation = by_hand([0, 1, 2], [500, 500, 500], samples)
    for seed in range(30):
        assert chosen_pair(thompson.drts(observation, np.random.default_rng(seed))) == (0, 2)


def test_joint_draws_are_taken_in_any_order():
    samples = np.eye(3) * 9.0  # each candidate is best in one of three draws
    pairs = [
        chosen_pair(thompson.dts(by_hand([0] * 3, [1] * 3, samples), np.random.default_rng(s))) for s in range(600)
    ]
    for pair in itertools.combinations(range(3), 2):
        assert pairs.count(pair) == pytest.approx(200, abs=50)


@pytest.mark.parametrize("draw", ["joint", "interval"])
def test_redraws_are_read(draw):
    # candidate 0 beats 1 and 2 nearly always: with one redraw the uniform fallback chooses, with many 1 is drawn
    samples = [[9, 0, 0]] * 38 + [[0, 9, 0]] * 2
    observation = by_hand([4.6, 0, -50], [5, 5, 5], samples)

    def share_of_2(redraws):
        batch = {name: np.broadcast_to(value, (400, *value.shape)) for name, value in observation.items()}
        score = thompson.dts(batch, np.random.default_rng(0), draw=draw, redraws=redraws)
        return score[:, 0, pair_index(0, 2, 3)].mean()

    assert share_of_2(1) > share_of_2(39) + 0.15


def repeated(observation, times):
    """The observation ``times`` over, as a batch."""
    return {name: np.broadcast_to(value, (times, *np.shape(value))) for name, value in observation.items()}


def test_best_spreads_ties_by_noise_and_names_a_nan():
    allowed, noise = np.array([True, True, False]), np.array([0.2, 0.6, 0.9])
    assert picks.best(np.array([1.0, 1.0, np.nan]), allowed, noise) == 1
    assert picks.best(np.array([-np.inf, -np.inf, 5.0]), allowed, noise) == 1
    with pytest.raises(ValueError, match="NaN"):
        picks.best(np.array([1.0, np.nan, 0.0]), allowed, noise)


@pytest.mark.parametrize(
    ("width", "pair"),
    [
        (0.0, (1, 2)),  # the two best means
        # lb = -1, 0.5, 3 and ub = 1, 1.5, 3: worst lcb -1 - 3 = -4, 0.5 - 3 = -2.5, 3 - 1.5 = 1.5 (against 1)
        (1.0, (1, 2)),
        # lb = -4, -1, 3 and ub = 4, 3, 3: worst lcb -7, -5, 3 - 4 = -1 (against 0)
        (4.0, (0, 2)),
    ],
)
def test_maxminlcb_by_hand(width, pair):
    score = intervals.maxminlcb(by_hand([0, 1, 3], [1, 0.5, 0]), np.random.default_rng(0), width=width)
    assert chosen_pair(score) == pair
    assert score.sum() == 1


def test_maxminlcb_is_its_formula():
    # by loops: argmax over i of the least of (r_i - r_j) - b (s_i + s_j), and the j of that least
    observation = make_observation(np.random.default_rng(7), n=40, m=6)
    score = intervals.maxminlcb(observation, np.random.default_rng(0), width=1.3)
    for row, mean, std in zip(score, observation["reward_mean"], observation["reward_std"], strict=True):
        lcb = {(i, j): mean[i] - mean[j] - 1.3 * (std[i] + std[j]) for i, j in itertools.permutations(range(6), 2)}
        worst = [min(value for (i, _), value in lcb.items() if i == first) for first in range(6)]
        first = int(np.argmax(worst))
        second = min((j for j in range(6) if j != first), key=lambda j: lcb[first, j])
        assert row.argmax() == pair_index(first, second, 6)


def test_maxminlcb_does_not_see_masked_candidates():
    # candidates that do not exist hold what would win, or what no comparison survives
    for junk in (99.0, -99.0, np.nan):
        observation = by_hand([0, junk, 1, junk, 3], [1, 0, 0.5, 0, 0])
        observation["mask"] = np.array([[1, 0, 1, 0, 1]], dtype=np.int8)
        score = intervals.maxminlcb(observation, np.random.default_rng(0))
        assert score[0].argmax() == pair_index(2, 4, 5)
        assert np.all(np.isfinite(score))
        assert score.sum() == 1


def test_maxminlcb_spreads_the_ties_of_either_choice():
    # 3 is best and meets any of the equal others
    score = intervals.maxminlcb(repeated(by_hand([0, 0, 0, 3], [1, 1, 1, 1]), 3000), np.random.default_rng(0))
    shares = score[:, 0].mean(axis=0)
    np.testing.assert_allclose(shares[pair_index(np.arange(3), 3, 4)], 1 / 3, atol=0.04)
    # 1 and 2 are as good and surest, and 0 is the opponent of either: two first choices, one second
    score = intervals.maxminlcb(repeated(by_hand([0, 0, 0], [5, 0, 0]), 3000), np.random.default_rng(0))
    np.testing.assert_allclose(score[:, 0].mean(axis=0), [0.5, 0.5, 0], atol=0.04)


def test_deltaqwen_by_hand_and_by_its_alias():
    observation = by_hand([0, 0, 0], [1, 1, 1]) | {"generator": np.array([[3.0, 7.0, 1.0]], dtype=np.float32)}
    np.testing.assert_array_equal(score_of("deltaqwen", observation), [[4, 2, 6]])
    np.testing.assert_array_equal(score_of("delta-generator", observation), [[4, 2, 6]])


def test_ultrafeedback_takes_the_best_of_those_drawn():
    # of 3 > 2 > 1 > 0 two are drawn: each pair is as likely. Three: 3 is missing once in four times, and then 2 is best
    observation = by_hand([0] * 4, [1] * 4) | {"oracle_score": np.array([[0.0, 1.0, 2.0, 3.0]])}
    many = repeated(observation, 6000)
    expected = {
        2: {(0, 1): 1 / 6, (0, 2): 1 / 6, (0, 3): 1 / 6, (1, 2): 1 / 6, (1, 3): 1 / 6, (2, 3): 1 / 6},
        3: {(0, 2): 1 / 8, (1, 2): 1 / 8, (0, 3): 1 / 4, (1, 3): 1 / 4, (2, 3): 1 / 4},
        4: {(0, 3): 1 / 3, (1, 3): 1 / 3, (2, 3): 1 / 3},
    }
    for candidates, chances in expected.items():
        score = baseline.ultrafeedback(many, np.random.default_rng(0), candidates=candidates)
        assert np.all(score.sum(axis=-1) == 1)
        wanted = np.zeros(6)
        for (i, j), chance in chances.items():
            wanted[pair_index(i, j, 4)] = chance
        np.testing.assert_allclose(score[:, 0].mean(axis=0), wanted, atol=0.025)


def test_ultrafeedback_draws_what_exists_and_needs_its_privilege():
    observation = by_hand([0] * 5, [1] * 5) | {"oracle_score": np.array([[9.0, 1.0, 0.0, 2.0, np.nan]])}
    observation["mask"] = np.array([[0, 1, 1, 1, 0]], dtype=np.int8)
    score = baseline.ultrafeedback(repeated(observation, 2000), np.random.default_rng(0))
    shares = score[:, 0].mean(axis=0)
    np.testing.assert_allclose(shares[[pair_index(1, 3, 5), pair_index(2, 3, 5)]], 0.5, atol=0.04)
    del observation["oracle_score"]
    with pytest.raises(ValueError, match=r"ultrafeedback .* privileged=True"):
        score_of("ultrafeedback", observation)


def test_margin_by_hand_and_by_its_alias():
    observation = by_hand([0, 0, 0], [1, 1, 1]) | {"implicit_reward": np.array([[0.5, -1.0, 0.25]], dtype=np.float32)}
    np.testing.assert_array_equal(score_of("margin", observation), [[1.5, 0.25, 1.25]])
    np.testing.assert_array_equal(score_of("rmargin", observation), [[1.5, 0.25, 1.25]])


def test_aliases_are_no_keys_of_their_own():
    names = [name for entry in agents.AGENTS.values() for name in (entry.key, *entry.aliases)]
    assert len(names) == len(set(names))
    assert agents.keys() == [entry.key for entry in agents.AGENTS.values()]
    for entry in agents.AGENTS.values():
        for alias in entry.aliases:
            assert agents.spec(alias) is entry


def test_maxminlcb_spreads_the_ties_of_both_candidates_apart():
    n = 20_000  # 0 and 1 tie for the first; whichever it is, the other one and 2 tie for the opponent
    belief = {"reward_mean": np.tile([1.0, 1.0, 0.0], (n, 1)), "reward_std": np.tile([0.0, 0.0, 1.0], (n, 1))}
    score = agents.make("maxminlcb").score(belief | {"mask": np.ones((n, 3))}, np.random.default_rng(0))
    np.testing.assert_allclose(score.mean(axis=0), [0.5, 0.25, 0.25], atol=0.015)
