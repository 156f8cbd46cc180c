"""Scores from joint draws: by hand, against slow and plain references, and where they must be equal."""

import itertools

import numpy as np
import pytest

from agents.scores import samples
from agents.select import best_of_each_prompt, best_of_pool
from prefenv.spaces import n_pairs, pair_index, pair_mask, pair_table
from tests.conftest import make_observation

SCORES = [samples.bald, samples.eubo, samples.variance]  # functions of the observation alone
METHODS = [*SCORES, samples.sea]


def of_draws(draws, mask=None):
    """An observation of one prompt with these (S, m) draws."""
    draws = np.array(draws)[:, None, :]
    return {
        "reward_samples": draws,
        "mask": np.ones((1, draws.shape[-1]), dtype=np.int8) if mask is None else np.array([mask], dtype=np.int8),
    }


def repeated(observation, times):
    """The observation ``times`` over, as a batch."""
    return {name: np.broadcast_to(value, (times, *np.shape(value))) for name, value in observation.items()}


def entropy(probability):
    """Of a coin, in nats, by its definition."""
    return -sum(p * np.log(p) for p in (probability, 1 - probability) if p > 0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x)) if x >= 0 else np.exp(x) / (1 + np.exp(x))


def plain(name, one, other):
    """The score of two lists of draws, by its definition."""
    if name == "bald":
        chances = [sigmoid(float(a) - float(b)) for a, b in zip(one, other, strict=True)]
        return entropy(float(np.mean(chances))) - float(np.mean([entropy(p) for p in chances]))
    if name == "eubo":
        return float(np.mean([max(a, b) for a, b in zip(one, other, strict=True)]))
    gaps = [float(a) - float(b) for a, b in zip(one, other, strict=True)]
    return float(np.sqrt(np.mean([(gap - np.mean(gaps)) ** 2 for gap in gaps])))


@pytest.mark.parametrize("method", SCORES)
@pytest.mark.parametrize(("n", "m", "n_samples"), [(1, 2, 2), (3, 5, 16), (7, 9, 33), (2, 3, 2100)])
def test_scores_are_their_definitions(method, n, m, n_samples):
    observation = make_observation(np.random.default_rng(3), n=n, m=m, samples=n_samples)
    score = method(observation, np.random.default_rng(0))
    draws = observation["reward_samples"].astype(np.float64)
    expected = [
        [plain(method.__name__, draws[:, row, i], draws[:, row, j]) for i, j in zip(*pair_table(m), strict=True)]
        for row in range(n)
    ]
    assert score.shape == (n, n_pairs(m))
    np.testing.assert_allclose(score, expected, atol=1e-12, rtol=1e-9)


def test_values_by_hand():
    # gaps of (0, 1), (0, 2), (1, 2) in the two draws: -2 2; -1 1; 1 -1
    observation = of_draws([[0.0, 2.0, 1.0], [2.0, 0.0, 1.0]])
    rng = np.random.default_rng(0)
    wide, narrow = (np.log(2) - entropy(sigmoid(gap)) for gap in (2.0, 1.0))
    np.testing.assert_allclose(samples.bald(observation, rng), [[wide, narrow, narrow]])
    np.testing.assert_allclose(samples.eubo(observation, rng), [[2.0, 1.5, 1.5]])
    np.testing.assert_allclose(samples.variance(observation, rng), [[2.0, 1.0, 1.0]])


def test_bald_of_huge_gaps():
    # each draw is sure of another winner, so the label tells which draw is true; then a gap that all are sure of
    score = samples.bald(of_draws([[1e4, 0.0, -1e4], [0.0, 1e4, -1e4]]), np.random.default_rng(0))
    np.testing.assert_allclose(score, [[np.log(2), 0.0, 0.0]], atol=1e-15)
    # one of four: H(1/4)
    score = samples.bald(of_draws([[1e4, 0.0]] * 3 + [[0.0, 1e4]]), np.random.default_rng(0))
    np.testing.assert_allclose(score, [[entropy(0.25)]])


def test_bald_of_nearly_equal_draws():
    # for a small spread it is p (1 - p) var / 2: 1e-4 squared, over 8
    score = samples.bald(of_draws([[1e-4, 0.0], [-1e-4, 0.0]]), np.random.default_rng(0))
    np.testing.assert_allclose(score, [[1e-8 / 8]], rtol=1e-3)


def test_bald_lies_between_0_and_one_bit():
    rng = np.random.default_rng(1)
    for scale in (1e-9, 1e-3, 1.0, 30.0, 1e4):
        observation = make_observation(rng, n=20, m=6, samples=8)
        observation["reward_samples"] = np.float32(scale) * observation["reward_samples"]
        score = samples.bald(observation, rng)
        assert np.all((score >= 0) & (score <= np.log(2))), scale


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_draws_that_agree_are_exactly_tied(dtype):
    # numbers whose mean is not exact: three times 0.1 over 3 is not 0.1
    for n_samples in (2, 3, 7, 32):
        observation = of_draws(np.tile(np.array([0.1, 0.7, -1.3, 2.9], dtype=dtype), (n_samples, 1)))
        assert np.all(samples.bald(observation, np.random.default_rng(0)) == 0)
        assert np.all(samples.variance(observation, np.random.default_rng(0)) == 0)
        draws = samples.joint_samples(observation, "variance")
        assert np.all(samples.std_against(draws, np.array([2])) == 0)


def test_equal_candidates_are_exactly_tied():
    # 1 and 4 are one response twice, and so are 0 and 6
    draws = np.random.default_rng(0).standard_normal((32, 7)).astype(np.float32)
    draws[:, 4], draws[:, 6] = draws[:, 1], draws[:, 0]
    for method in SCORES:
        score = method(of_draws(draws), np.random.default_rng(0))[0]
        for other in (2, 3, 5):
            assert score[pair_index(1, other, 7)] == score[pair_index(4, other, 7)]
        assert score[pair_index(0, 1, 7)] == score[pair_index(4, 6, 7)]
    assert samples.variance(of_draws(draws), np.random.default_rng(0))[0, pair_index(1, 4, 7)] == 0
    assert samples.bald(of_draws(draws), np.random.default_rng(0))[0, pair_index(0, 6, 7)] == 0


def test_what_is_shared_cancels():
    # the whole prompt is uncertain, its gaps are not: 0 and 1 rise together, 2 is known
    level = np.random.default_rng(0).standard_normal((16, 1)) * 5
    draws = np.concatenate([level, level + 1, np.zeros_like(level)], axis=1)
    score = samples.variance(of_draws(draws), np.random.default_rng(0))
    np.testing.assert_allclose(score, [[0, level.std(), level.std()]], atol=1e-12)
    assert samples.bald(of_draws(draws), np.random.default_rng(0))[0].argmin() == 0


@pytest.mark.parametrize("method", SCORES)
def test_more_spread_scores_more(method):
    draws = np.random.default_rng(0).standard_normal((64, 3))
    draws -= draws.mean(axis=0)
    wider = draws * [1, 1, 3]
    small, large = (method(of_draws(values), np.random.default_rng(0))[0] for values in (draws, wider))
    assert np.all(large[1:] > small[1:])  # the pairs with 2
    assert large[0] == small[0]


@pytest.mark.parametrize("level", [4.0, 1e4])
def test_a_level_changes_no_choice(level):
    # the level differs between the prompts too: comparisons within prompts do not tell it
    observation = make_observation(np.random.default_rng(0), n=5, m=6)
    observation["reward_samples"] = observation["reward_samples"].astype(np.float64)
    levels = level * np.arange(5)[:, None]
    moved = observation | {"reward_samples": observation["reward_samples"] + levels}
    for method in (samples.bald, samples.variance, samples.sea):
        before, after = (method(o, np.random.default_rng(0)) for o in (observation, moved))
        np.testing.assert_allclose(before, after, atol=1e-8)
    before, after = (samples.eubo(o, np.random.default_rng(0)) for o in (observation, moved))
    np.testing.assert_allclose(before + levels, after, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_its_members_one_after_the_other(method):
    batch = make_observation(np.random.default_rng(0), batch=(2, 3), n=4, m=12, samples=32)
    one, many = np.random.default_rng(5), np.random.default_rng(5)
    together = method(batch, many)
    assert together.shape == (2, 3, 4, n_pairs(12))
    for index in np.ndindex(2, 3):
        np.testing.assert_array_equal(
            together[index], method({name: value[index] for name, value in batch.items()}, one)
        )
    assert one.random() == many.random()


@pytest.mark.parametrize("method", SCORES)
def test_blocks_of_prompts_do_not_show(method):
    # 50 prompts of 66 pairs and 32 draws are several blocks, the last one ragged
    observation = make_observation(np.random.default_rng(0), n=50, m=12, samples=32)
    assert 1 < samples.BLOCK // (32 * n_pairs(12)) < 50
    assert 50 % (samples.BLOCK // (32 * n_pairs(12))) != 0
    score = method(observation, np.random.default_rng(0))
    for row in range(50):
        alone = {name: observation[name][..., row : row + 1, :] for name in ("reward_samples", "mask")}
        np.testing.assert_array_equal(score[[row]], method(alone, np.random.default_rng(0)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("junk", [1e30, -1e30, np.nan, np.inf])
@pytest.mark.filterwarnings("error")
def test_masked_candidates_have_no_say(method, junk):
    observation = make_observation(np.random.default_rng(0), n=6, m=5)
    observation["mask"][:, 1] = 0
    observation["mask"][::2, 4] = 0
    absent = ~np.broadcast_to(observation["mask"].astype(bool), observation["reward_samples"].shape)
    spoilt = observation | {"reward_samples": np.where(absent, np.float32(junk), observation["reward_samples"])}
    legal = pair_mask(observation["mask"])
    before, after = (method(o, np.random.default_rng(1)) for o in (observation, spoilt))
    assert np.all(np.isfinite(after))
    np.testing.assert_array_equal(before[legal], after[legal])
    if method is samples.sea:
        assert np.all(after[~legal] == 0)
        assert np.all(after.sum(axis=-1) == 1)


@pytest.mark.parametrize("method", SCORES)
def test_a_missing_number_is_named_by_the_selection(method):
    observation = of_draws([[0.0, np.nan, 1.0], [1.0, 0.0, 2.0]])
    score = method(observation, np.random.default_rng(0))
    with pytest.raises(ValueError, match="NaN"):
        best_of_each_prompt(score, pair_mask(observation["mask"]), np.random.default_rng(0))


@pytest.mark.parametrize("method", SCORES)
def test_permuting_candidates_permutes_the_scores(method):
    observation = make_observation(np.random.default_rng(0), m=5)
    order = np.array([3, 0, 4, 1, 2])
    moved = observation | {"reward_samples": observation["reward_samples"][..., order]}
    i, j = pair_table(5)
    where = pair_index(order[i], order[j], 5)
    before, after = (method(o, np.random.default_rng(0)) for o in (observation, moved))
    np.testing.assert_array_equal(after, before[..., where])


def sea_chances(draws):
    """Of each pair, by definition: each draw's best against the opponent whose gap to it varies most."""
    draws = np.array(draws)
    m = draws.shape[1]
    chances = np.zeros(n_pairs(m))
    for draw in draws:
        firsts = np.flatnonzero(draw == draw.max())
        for first in firsts:
            spread = np.array([np.std(draws[:, first] - draws[:, j]) if j != first else -1.0 for j in range(m)])
            seconds = np.flatnonzero(np.isclose(spread, spread.max(), atol=1e-12))
            for second in seconds:
                chances[pair_index(first, second, m)] += 1 / len(draws) / len(firsts) / len(seconds)
    return chances


@pytest.mark.parametrize(
    "draws",
    [
        [[0, 8, 5], [2, 9, 1]],  # 1 is best, and its gap to 2 is 3 or 8
        [[0, 1, 2, 3], [3, 0, 2, 1], [3, 1, 2, 0], [1, 4, 0, 0]],  # three firsts with chances 1, 2, 1
        [[0, 1, 2], [0, 1, 2]],  # no gap varies: any opponent
        [[1, 1, 0], [1, 1, 0]],  # and two firsts: the ties are apart
        [[5, 5, 0], [1, 1, 9], [1, 1, 9]],  # a first that ties
        [[0, 1, 1], [9, 1, 1], [9, 1, 1]],  # ties of first and of second
        np.random.default_rng(8).standard_normal((5, 4)).tolist(),
    ],
)
def test_sea_takes_each_pair_with_its_chance(draws):
    score = samples.sea(repeated(of_draws(np.array(draws, dtype=float)), 6000), np.random.default_rng(0))
    assert np.all(score.sum(axis=-1) == 1)
    np.testing.assert_allclose(score[:, 0].mean(axis=0), sea_chances(draws), atol=0.03)


def test_sea_draws_for_each_prompt():
    # two draws, each with another best: 2000 prompts of one observation do not all get the same one
    draws = np.broadcast_to(np.array([[9.0, 0.0, 1.0], [0.0, 9.0, 1.0]])[:, None, :], (2, 2000, 3))
    score = samples.sea({"reward_samples": draws, "mask": np.ones((2000, 3))}, np.random.default_rng(0))
    np.testing.assert_allclose(score.mean(axis=0), [1, 0, 0])  # each the other's widest gap
    draws = draws - np.array([0.0, 0.0, 40.0]) * np.array([0, 1])[:, None, None]  # now 2 is the widest of either
    score = samples.sea({"reward_samples": draws, "mask": np.ones((2000, 3))}, np.random.default_rng(0))
    np.testing.assert_allclose(score.mean(axis=0), [0, 0.5, 0.5], atol=0.04)


@pytest.mark.parametrize("method", METHODS)
def test_equal_candidates_are_chosen_equally_often(method):
    observation = repeated(of_draws(np.ones((4, 4))), 6000)
    score = method(observation, np.random.default_rng(0))
    chosen = best_of_each_prompt(score, np.ones(score.shape, dtype=bool), np.random.default_rng(1))
    np.testing.assert_allclose(np.bincount(chosen[:, 0], minlength=6) / 6000, 1 / 6, atol=0.025)


@pytest.mark.parametrize("method", METHODS)
def test_a_pool_of_one_pair(method):
    score = method(of_draws([[0.0, 1.0], [3.0, 1.0]]), np.random.default_rng(0))
    assert score.shape == (1, 1)
    assert score[0, 0] > 0


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_takes_the_best_of_the_pool(method):
    observation = make_observation(np.random.default_rng(0), n=4, m=5)
    score = method(observation, np.random.default_rng(0))
    taken = best_of_pool(score, np.ones(score.shape, dtype=bool), 3, np.random.default_rng(1))
    assert np.all(score.ravel()[taken] >= np.sort(score.ravel())[-3])
    if method is samples.sea:
        assert len(set((taken // n_pairs(5)).tolist())) == 3  # of three prompts the pair that it named


@pytest.mark.parametrize("method", [samples.bald, samples.variance, samples.sea])
def test_one_draw_disagrees_with_nothing(method):
    observation = make_observation(np.random.default_rng(0), samples=1)
    with pytest.raises(ValueError, match=rf"{method.__name__} .* S=1: .*n_samples=2"):
        method(observation, np.random.default_rng(0))


def test_eubo_of_one_draw():
    np.testing.assert_array_equal(samples.eubo(of_draws([[3.0, 1.0, 2.0]]), np.random.default_rng(0)), [[3, 3, 2]])


def test_std_against_is_the_score_of_variance():
    observation = make_observation(np.random.default_rng(0), batch=(2,), n=3, m=5)
    score = samples.variance(observation, np.random.default_rng(0))
    draws = observation["reward_samples"].astype(np.float64)
    for first, other in itertools.permutations(range(5), 2):
        std = samples.std_against(draws, np.full((2, 3), first))
        np.testing.assert_allclose(std[..., other], score[..., pair_index(first, other, 5)], rtol=1e-9)
        assert np.all(std[..., first] == 0)
