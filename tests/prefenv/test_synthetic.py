import copy
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

import agents
import prefenv
from prefenv.evaluation.win_rate import chance_to_beat, preference_prob, sampled_win_rate, win_rate
from prefenv.oracles.bradley_terry import BradleyTerryOracle
from prefenv.synthetic.policy import dpo_gradient, dpo_loss
from prefenv.synthetic.settings import SyntheticSettings
from prefenv.synthetic.story import draw_hidden, draw_responses
from prefenv.synthetic.world import make_synthetic_world
from prefenv.types import Pairs, Preferences
from tests.conftest import first_coordinate, make_pool


def fresh(seed=0, **settings):
    world = make_synthetic_world(SyntheticSettings(**settings))
    world.reset(np.random.default_rng(seed))
    return world


def test_gradient_is_the_derivative_of_the_loss():
    rng = np.random.default_rng(0)
    theta, delta, step = rng.standard_normal(5), rng.standard_normal((7, 5)), 1e-6
    numeric = [
        (dpo_loss(theta + step * e, delta, 0.3) - dpo_loss(theta - step * e, delta, 0.3)) / (2 * step)
        for e in np.eye(5)
    ]
    np.testing.assert_allclose(dpo_gradient(theta, delta, 0.3), numeric, atol=1e-8)


def test_loss_and_gradient_are_those_of_torch_on_the_policy_itself():
    torch = pytest.importorskip("torch")
    world = fresh(n_prompts=5, n_generators=4)
    source, policy, beta = world.source, world.learner, 0.1
    responses = draw_responses(SyntheticSettings(n_generators=4), source.hidden, 5, np.random.default_rng(1))
    policy.theta = np.random.default_rng(2).standard_normal(16)
    theta = torch.tensor(policy.theta, requires_grad=True)
    reference = torch.tensor(responses.reference_logprob)
    logprob = torch.log_softmax(reference + torch.tensor(responses.features) @ theta, dim=-1)
    np.testing.assert_allclose(policy.logprob(responses), logprob.detach().numpy(), atol=1e-12)
    ratio = logprob - reference
    loss = -torch.nn.functional.logsigmoid(beta * (ratio[:, 0] - ratio[:, 3])).mean()
    loss.backward()
    delta = responses.features[:, 0] - responses.features[:, 3]
    assert dpo_loss(policy.theta, delta, beta) == pytest.approx(loss.item(), abs=1e-12)
    np.testing.assert_allclose(dpo_gradient(policy.theta, delta, beta), theta.grad.numpy(), atol=1e-12)


def test_win_rate_is_brute_force_over_all_pairs_of_responses():
    world = fresh(n_eval_prompts=3, n_generators=5)
    world.learner.theta = np.random.default_rng(2).standard_normal(16)
    responses = world.evaluator._responses
    policy, reference = np.exp(world.learner.logprob(responses)), np.exp(responses.reference_logprob)
    total = sum(
        policy[e, i] * reference[e, j] * expit(responses.reward[e, i] - responses.reward[e, j])
        for e in range(3)
        for i in range(5)
        for j in range(5)
    )
    assert world.evaluator.evaluate(world.posterior).win_rate.mean == pytest.approx(total / 3, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 5))
def test_the_reference_wins_half_against_itself(seed, temperature):
    evaluation = fresh(seed, oracle_temperature=temperature).evaluator
    result = evaluation.evaluate(fresh(seed).posterior)
    assert result.win_rate.mean == pytest.approx(0.5, abs=1e-12)
    assert result.second.mean == pytest.approx(0.5, abs=1e-12)
    assert result.kl == pytest.approx(0.0, abs=1e-12)
    assert result.capability == pytest.approx(0.0, abs=1e-12)


def test_noiseless_judge_counts_ties_half():
    beats = chance_to_beat(np.array([1.0, 1.0, 3.0]), np.array([0.5, 0.25, 0.25]), 0.0)
    assert beats.tolist() == [0.375, 0.375, 0.875]


def test_win_rate_interval_by_hand():
    rate = win_rate(np.array([0.4, 0.6]))
    assert rate.mean == pytest.approx(0.5)
    assert rate.high - rate.mean == pytest.approx(1.959964 * np.sqrt(0.02) / np.sqrt(2))
    assert win_rate(np.array([1.0])).high == 1.0
    with pytest.raises(ValueError, match="at least one"):
        win_rate(np.empty(0))


def test_right_labels_raise_the_win_rate_and_wrong_ones_lower_it():
    for sign, better in ((1, True), (-1, False)):
        world = fresh(oracle_temperature=0.0)
        for _ in range(20):
            pool = world.source.draw()
            order = np.argsort(sign * pool.reward, axis=1)
            world.learner.step(pool, Preferences(np.arange(8), order[:, -1], order[:, 0]))
        assert (world.evaluator.evaluate(world.posterior).win_rate.mean > 0.5) == better


def test_posterior_learns_to_rank_what_the_embedding_shows():
    world = fresh(misspecification=0.0, oracle_temperature=0.0)
    rng = np.random.default_rng(0)
    assert world.evaluator.evaluate(world.posterior).posterior_accuracy == pytest.approx(0.5)
    for _ in range(60):
        pool = world.source.draw()
        pairs = np.sort(np.argsort(rng.random((8, 4)), axis=1)[:, :2], axis=1)
        world.posterior.update(pool, world.oracle.compare(pool, Pairs(np.arange(8), pairs[:, 0], pairs[:, 1])))
    assert world.evaluator.evaluate(world.posterior).posterior_accuracy > 0.9


def test_story_has_the_spreads_it_promises():
    settings_ = SyntheticSettings(n_generators=400, n_candidates=4, embedding_size=8, misspecification=0.5)
    rng = np.random.default_rng(0)
    hidden = draw_hidden(settings_, rng)
    responses = draw_responses(settings_, hidden, 50, rng)
    assert np.linalg.norm(hidden.capability_direction) == pytest.approx(1.0)
    assert hidden.capability_direction @ hidden.reward_direction == pytest.approx(-0.5)
    np.testing.assert_allclose(hidden.rotation @ hidden.rotation.T, np.eye(8), atol=1e-12)
    skill = hidden.generator_mean @ hidden.reward_direction
    assert skill.std() == pytest.approx(0.7, rel=0.1)
    within = responses.reward - 2.0 * skill
    assert within.std() == pytest.approx(2.0, rel=0.02)
    rotated = responses.features @ hidden.rotation
    noise = responses.embedding - np.sqrt(0.5) * rotated
    assert noise.var() == pytest.approx(0.5, rel=0.02)


def test_candidates_are_different_generators_and_pools_agree_with_themselves():
    world = fresh(n_generators=6, n_candidates=4)
    for _ in range(3):
        pool = world.source.draw()
        assert all(len(set(row)) == 4 for row in pool.generator.tolist())
        np.testing.assert_allclose(pool.reward, 2.0 * (pool.features @ world.source.hidden.reward_direction))
    assert pool.prompt_id.tolist() == list(range(16, 24))


def test_on_policy_pools_follow_the_policy():
    def mean_reward(on_policy):
        world = fresh(on_policy=on_policy, n_prompts=200, n_candidates=2)
        world.learner.theta = 3.0 * world.source.hidden.reward_direction
        return world.source.draw().reward.mean()

    assert mean_reward(True) > mean_reward(False) + 0.5


def test_every_setting_changes_something():
    def outcome(**settings):
        world = fresh(**settings)
        trail = []
        for _ in range(2):
            pool = world.source.draw()
            pairs = Pairs(np.arange(world.n_prompts), np.zeros(world.n_prompts, int), np.ones(world.n_prompts, int))
            labels = world.oracle.compare(pool, pairs)
            world.posterior.update(pool, labels)
            world.learner.step(pool, labels)
            belief = world.posterior.predict(pool.embedding)
            trail += [pool.embedding.sum(), pool.logprob.sum(), pool.implicit_reward.sum(), belief.samples.sum()]
            trail += [labels.chosen.sum(), str(world.evaluator.evaluate(world.posterior))]
        return [str(value) for value in trail]

    changed = {
        "n_prompts": 9, "n_candidates": 5, "n_samples": 33, "n_generators": 9, "n_eval_prompts": 129,
        "embedding_size": 17, "misspecification": 0.4, "reward_scale": 2.1, "skill_spread": 0.8, "style_spread": 0.8,
        "reference_spread": 1.1, "oracle_temperature": 1.5, "length_bias": 1.1, "capability_conflict": 0.6,
        "on_policy": True, "beta": 0.2, "learning_rate": 1.1, "gradient_steps": 5, "prior_std": 2.1,
    }  # fmt: skip
    assert changed.keys() == SyntheticSettings.__dataclass_fields__.keys()
    base = outcome()
    for name, value in changed.items():
        assert outcome(**{name: value}) != base, name


@pytest.mark.parametrize(
    "wrong",
    [
        {"misspecification": 1.0}, {"beta": 0.0}, {"learning_rate": -1.0}, {"oracle_temperature": -1.0},
        {"capability_conflict": 1.5}, {"gradient_steps": 0}, {"embedding_size": 0}, {"length_bias": float("nan")},
        {"reward_scale": float("inf")}, {"on_policy": "yes"}, {"n_samples": 2.0},
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SyntheticSettings(**wrong)


def test_degenerate_sizes():
    world = fresh(n_prompts=1, n_candidates=2, n_generators=2, embedding_size=1, n_samples=1, n_eval_prompts=1)
    pool = world.source.draw()
    world.learner.step(pool, Preferences(np.array([0]), np.array([0]), np.array([1])))
    assert np.isfinite(world.evaluator.evaluate(world.posterior).win_rate.mean)


class TestOracle:
    def compare(self, temperature, gap, repeats=20_000, seed=0):
        oracle = BradleyTerryOracle(lambda _: np.array([[gap, 0.0]]), temperature)
        oracle.reset(np.random.default_rng(seed))
        pool = make_pool(np.ones((1, 2), dtype=bool), np.random.default_rng(0))
        zeros = np.zeros(repeats, dtype=np.int64)
        labels = oracle.compare(pool, Pairs(zeros, zeros, zeros + 1))
        return (labels.chosen == 0).mean()

    def test_frequencies_are_bradley_terry(self):
        assert self.compare(1.0, 1.0) == pytest.approx(expit(1.0), abs=0.01)
        assert self.compare(2.0, -3.0) == pytest.approx(expit(-1.5), abs=0.01)

    def test_temperature_zero_is_argmax_with_fair_ties(self):
        assert self.compare(0.0, 1e-3) == 1.0
        assert self.compare(0.0, -1e-3) == 0.0
        assert self.compare(0.0, 0.0) == pytest.approx(0.5, abs=0.02)

    def test_extreme_gaps_are_stable(self):
        assert self.compare(1e-12, 1e6) == 1.0

    def test_nan_reward_is_an_error_not_a_label(self):
        with pytest.raises(ValueError, match="NaN"):
            self.compare(1.0, np.nan)

    @pytest.mark.parametrize("gap", [np.inf, -np.inf, 1e39])
    def test_infinite_reward_is_an_error_not_a_label(self, gap):
        with pytest.raises(ValueError, match="infinite"), np.errstate(over="ignore"):
            self.compare(1.0, gap)

    def test_negative_temperature(self):
        with pytest.raises(ValueError, match="temperature=-1"):
            BradleyTerryOracle(first_coordinate, -1)


class TestWhatAPoolShows:
    """Every observable worked out again from all the responses that the draw was made of."""

    @pytest.fixture
    def drawn(self, monkeypatch):
        made = []

        def spy(*arguments):
            made.append(draw_responses(*arguments))
            return made[-1]

        world = fresh(n_prompts=400, n_candidates=3, n_generators=5)
        world.learner.theta = 0.3 * np.random.default_rng(1).standard_normal(16)
        monkeypatch.setattr("prefenv.synthetic.world.draw_responses", spy)
        return world, world.source.draw(), made[-1]

    def test_policy_quantities(self, drawn):
        world, pool, responses = drawn
        weight = np.exp(responses.reference_logprob + responses.features @ world.learner.theta)
        prob = weight / weight.sum(axis=1, keepdims=True)
        rows = np.arange(400)[:, None]
        np.testing.assert_allclose(pool.logprob, np.log(prob)[rows, pool.generator], rtol=1e-5)
        ratio = np.log(prob) - responses.reference_logprob
        np.testing.assert_allclose(pool.implicit_reward, 0.1 * ratio[rows, pool.generator], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(pool.entropy, -(prob * np.log(prob)).sum(axis=1), rtol=1e-5)

    def test_the_rest_is_of_the_generator_it_names(self, drawn):
        _, pool, responses = drawn
        rows = np.arange(400)[:, None]
        np.testing.assert_allclose(pool.length, responses.length[rows, pool.generator], rtol=1e-6)
        np.testing.assert_allclose(pool.embedding, responses.embedding[rows, pool.generator], rtol=1e-5)
        np.testing.assert_array_equal(pool.reward, responses.reward[rows, pool.generator])
        np.testing.assert_array_equal(pool.features, responses.features[rows, pool.generator])

    def test_generators_come_in_any_order(self, drawn):
        _, pool, _ = drawn
        for place in range(3):
            assert np.bincount(pool.generator[:, place], minlength=5) == pytest.approx([80] * 5, abs=32)  # 4 std


def test_on_policy_candidates_have_the_chances_of_the_policy(monkeypatch):
    world = fresh(on_policy=True, n_prompts=20_000, n_candidates=2, n_generators=3)
    prob = np.array([0.7, 0.2, 0.1])
    monkeypatch.setattr(world.learner, "logprob", lambda _: np.broadcast_to(np.log(prob), (20_000, 3)))
    pool = world.source.draw()
    first, second = pool.generator[:, 0], pool.generator[:, 1]
    np.testing.assert_allclose(np.bincount(first) / 20_000, prob, atol=0.015)
    # without replacement: P(second = 2 | first = 0) = 0.1 / 0.3
    assert (second[first == 0] == 2).mean() == pytest.approx(1 / 3, abs=0.02)


def test_evaluation_by_hand():
    world = fresh(n_eval_prompts=4, length_bias=2.0, oracle_temperature=0.5)
    world.learner.theta = np.random.default_rng(3).standard_normal(16)
    responses, hidden = world.evaluator._responses, world.source.hidden
    policy, reference = np.exp(world.learner.logprob(responses)), np.exp(responses.reference_logprob)
    found = world.evaluator.evaluate(world.posterior)
    assert found.kl == pytest.approx((policy * np.log(policy / reference)).sum(axis=1).mean())
    capability = responses.features @ hidden.capability_direction
    assert found.capability == pytest.approx(((policy - reference) * capability).sum(axis=1).mean())
    second = responses.reward + 2.0 * (responses.features @ hidden.length_direction)
    for reward, rate in ((responses.reward, found.win_rate), (second, found.second)):
        beats = expit((reward[:, :, None] - reward[:, None, :]) / 0.5)
        assert rate.mean == pytest.approx((policy[:, :, None] * reference[:, None, :] * beats).sum(axis=(1, 2)).mean())


def test_parts_draw_from_streams_of_their_own():
    world = fresh()
    streams = [part._rng.random(4).tolist() for part in (world.source, world.oracle, world.posterior)]
    assert len({tuple(stream) for stream in streams}) == 3
    other = fresh(seed=1)
    assert other.oracle._rng.random(4).tolist() != streams[1]
    embedding = fresh().source.draw().embedding[0, 0]
    assert not np.any(np.all(np.isclose(fresh().evaluator._responses.embedding, embedding), axis=-1))


def test_every_seed_has_its_own_truth_prompts_and_noise():
    a, b = fresh(seed=0), fresh(seed=1)
    for name in ("reward_direction", "capability_direction", "length_direction", "rotation", "generator_mean"):
        assert not np.allclose(getattr(a.source.hidden, name), getattr(b.source.hidden, name)), name
    spread = [w.evaluator._responses.features - w.source.hidden.generator_mean for w in (a, b)]
    assert not np.allclose(*spread)
    assert not np.allclose(a.source.draw().embedding, b.source.draw().embedding)


class TestExpectedGain:
    def win_rate_after(self, world, pool, row, chosen, rejected):
        state = world.learner.state_dict()
        world.learner.step(pool, Preferences(np.array([row]), np.array([chosen]), np.array([rejected])))
        rate = world.evaluator.evaluate(world.posterior).win_rate.mean
        world.learner.load_state_dict(state)
        return rate

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_is_the_gain_of_a_small_step_on_either_label(self, temperature):
        world = fresh(n_prompts=2, gradient_steps=1, learning_rate=1e-4, oracle_temperature=temperature, beta=0.7)
        world.learner.theta = 0.5 * np.random.default_rng(1).standard_normal(16)
        pool = world.source.draw()
        before = world.evaluator.evaluate(world.posterior).win_rate.mean
        first, second = np.triu_indices(4, 1)
        expected = np.zeros((2, 6))
        for row, pair in np.ndindex(2, 6):
            i, j = first[pair], second[pair]
            p = preference_prob(pool.reward[row, i] - pool.reward[row, j], temperature)
            gains = [self.win_rate_after(world, pool, row, *order) - before for order in ((i, j), (j, i))]
            expected[row, pair] = p * gains[0] + (1 - p) * gains[1]
        np.testing.assert_allclose(1e-4 * 0.7 * world.gain(pool), expected, rtol=1e-3, atol=1e-9)

    def test_a_copied_environment_looks_at_its_own_policy(self):
        env = prefenv.PrefAcquireEnv("synthetic", privileged=True)
        env.reset(seed=0)
        twin = pickle.loads(pickle.dumps(env))
        copied = copy.deepcopy(env)
        env.step(np.zeros(8, dtype=np.int64))
        for other in (twin, copied):
            gain = other.world.gain(other._pool)
            other.world.learner.theta = other.world.learner.theta + 1.0
            assert not np.allclose(other.world.gain(other._pool), gain)


def test_oracle_greedy_is_far_above_random():
    def area(key):
        rates = []
        for seed in range(10):
            env = prefenv.PrefAcquireEnv("synthetic", privileged=key != "random")
            agent = agents.make(key, seed=seed)
            observation, _ = env.reset(seed=seed)
            for _ in range(10):
                observation, _, _, _, info = env.step(agent.predict(observation)[0])
                rates.append(info["win_rate"])
        return np.mean(rates)

    assert area("oracle-greedy") > area("random") + 0.05


def test_sampled_win_rate_has_an_interval_at_the_ends_too():
    for wins in (np.ones(32), np.zeros(32), np.ones(1), np.full(5, 0.5)):
        rate = sampled_win_rate(wins)
        assert rate.mean == wins.mean()
        assert rate.high - rate.low > 0.05


@pytest.mark.parametrize("p", [0.5, 0.8, 0.9, 0.95])
def test_sampled_win_rate_covers(p):
    wins = np.random.default_rng(0).random((2000, 32)) < p
    inside = [rate.low <= p <= rate.high for rate in map(sampled_win_rate, wins.astype(float))]
    assert np.mean(inside) > 0.92
