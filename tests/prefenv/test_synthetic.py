"""The simulator: pools, policy, evaluation, expected gain, each worked out again."""

import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

import agents
import prefenv
from prefenv.evaluation.win_rate import preference_prob
from prefenv.oracles.bradley_terry import label_chances
from prefenv.synthetic.settings import SyntheticSettings
from prefenv.synthetic.story import draw_responses
from prefenv.types import Pairs, Preferences
from tests.prefenv.simulated import fresh, held_out, hidden_of, policy_prob, set_theta


def test_win_rate_is_brute_force_over_all_pairs_of_responses():
    world = fresh(n_eval_prompts=3, n_generators=5)
    set_theta(world, np.random.default_rng(2).standard_normal(17))
    features, reference, reward = held_out(world)
    policy = policy_prob(world, features, reference)
    total = sum(
        policy[e, i] * reference[e, j] * expit(reward[e, i] - reward[e, j])
        for e in range(3)
        for i in range(5)
        for j in range(5)
    )
    assert world.evaluator.evaluate(world.posterior).win_rate.mean == pytest.approx(total / 3, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 5), st.floats(0, 30))
def test_the_reference_wins_half_against_itself(seed, temperature, spread):
    world = fresh(seed, oracle_temperature=temperature, reference_spread=spread, n_eval_prompts=8)
    result = world.evaluator.evaluate(world.posterior)
    assert result.win_rate.mean == pytest.approx(0.5, abs=1e-5)
    assert result.second == pytest.approx(0.5, abs=1e-5)
    assert result.kl == pytest.approx(0.0, abs=1e-5)
    assert result.capability == pytest.approx(0.0, abs=1e-5)


def test_win_rate_interval_is_that_of_the_prompts():
    world = fresh(n_eval_prompts=7)
    set_theta(world, np.random.default_rng(2).standard_normal(17))
    features, reference, reward = held_out(world)
    beats = (expit(reward[:, :, None] - reward[:, None, :]) * reference[:, None, :]).sum(axis=2)
    wins = (policy_prob(world, features, reference) * beats).sum(axis=1)
    rate = world.evaluator.evaluate(world.posterior).win_rate
    assert rate.n == 7
    assert rate.high - rate.mean == pytest.approx(1.959964 * wins.std(ddof=1) / np.sqrt(7), rel=1e-4)
    assert rate.mean - rate.low == pytest.approx(1.959964 * wins.std(ddof=1) / np.sqrt(7), rel=1e-4)


def test_right_labels_raise_the_win_rate_and_wrong_ones_lower_it():
    for loss, rate in (("dpo", 1.0), ("ipo", 1.0), ("simpo", 1.0)):
        for sign, better in ((1, True), (-1, False)):
            world = fresh(oracle_temperature=0.0, loss=loss, learning_rate=rate)
            for _ in range(20):
                pool = world.source.draw()
                order = np.argsort(sign * pool.reward, axis=1)
                world.learner.step(pool, Preferences(np.arange(8), order[:, -1], order[:, 0]))
            assert (world.evaluator.evaluate(world.posterior).win_rate.mean > 0.5) == better


@pytest.mark.parametrize("posterior", ["linear", "ensemble"])
def test_posterior_learns_to_rank_what_the_embedding_shows(posterior):
    world = fresh(
        misspecification=0.0, oracle_temperature=0.0, posterior=posterior, embedding_size=4, n_eval_prompts=200
    )
    rng = np.random.default_rng(0)
    if posterior == "linear":
        assert world.evaluator.evaluate(world.posterior).posterior_accuracy == 0.5
    for _ in range(40):
        pool = world.source.draw()
        pairs = np.sort(np.argsort(rng.random((8, 4)), axis=1)[:, :2], axis=1)
        world.posterior.update(pool, world.oracle.compare(pool, Pairs(np.arange(8), pairs[:, 0], pairs[:, 1])))
    assert world.evaluator.evaluate(world.posterior).posterior_accuracy > 0.9


def test_candidates_are_different_generators_and_pools_agree_with_themselves():
    world = fresh(n_generators=6, n_candidates=4)
    for _ in range(3):
        pool = world.source.draw()
        assert all(len(set(row)) == 4 for row in pool.generator.tolist())
        np.testing.assert_allclose(pool.reward, 2.0 * (pool.features @ hidden_of(world).reward[0]), atol=1e-5)
        np.testing.assert_array_equal(pool.embedding, pool.features[..., :-1])
    assert pool.prompt_id.tolist() == list(range(16, 24))


def test_on_policy_pools_follow_the_policy():
    def mean_reward(on_policy):
        world = fresh(on_policy=on_policy, n_prompts=200, n_candidates=2)
        set_theta(world, 3.0 * hidden_of(world).reward[0])
        return world.source.draw().reward.mean()

    assert mean_reward(True) > mean_reward(False) + 0.5


@pytest.mark.parametrize(
    "wrong",
    [
        {"misspecification": 1.0}, {"beta": 0.0}, {"learning_rate": -1.0}, {"oracle_temperature": -1.0},
        {"capability_conflict": 1.5}, {"gradient_steps": 0}, {"embedding_size": 0}, {"length_bias": float("nan")},
        {"reward_scale": float("inf")}, {"on_policy": "yes"}, {"n_samples": 2.0}, {"loss": "sigmoid"},
        {"posterior": "laplace"}, {"oracle_flip": 1.1}, {"oracle_tie": -0.1}, {"warm_labels": -1},
        {"consistency_spread": -1.0}, {"style_bias": float("inf")}, {"reference_strength": float("nan")},
        {"n_samples": 1, "posterior": "ensemble"}, {"style_spread": -1.0}, {"skill_spread": -1.0},
        {"reference_spread": -1.0}, {"beta": "0.1"}, {"length_bias": "a"}, {"reward_scale": 1e39}, {"prior_std": 1e30},
        {"learning_rate": True}, {"consistency_spread": 3.1}, {"skill_spread": float("nan")},
        {"n_eval_prompts": 0}, {"n_generators": 0, "n_candidates": 2},
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SyntheticSettings(**wrong)


@pytest.mark.parametrize("loss", ["dpo", "ipo", "simpo"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_degenerate_sizes(loss, temperature):
    world = fresh(
        n_prompts=1, n_candidates=2, n_generators=2, embedding_size=1, n_samples=1, n_eval_prompts=1, loss=loss,
        oracle_temperature=temperature, skill_spread=0.0, style_spread=0.0, reference_spread=0.0,
    )  # fmt: skip
    for _ in range(3):
        pool = world.source.draw()
        labels = Preferences(np.array([0]), np.array([0]), np.array([1]))
        world.learner.step(pool, labels)
        world.posterior.update(pool, labels)
        assert np.isfinite(world.evaluator.evaluate(world.posterior).win_rate.mean)
        assert np.all(np.isfinite(world.gain(pool)))


class TestWhatAPoolShows:
    """Every observable worked out again from all the responses that the draw was made of."""

    @pytest.fixture
    def drawn(self, monkeypatch):
        made = []

        def spy(*arguments):
            made.append(draw_responses(*arguments))
            return made[-1]

        world = fresh(n_prompts=400, n_candidates=3, n_generators=5)
        set_theta(world, 0.3 * np.random.default_rng(1).standard_normal(17))
        monkeypatch.setattr("prefenv.synthetic.simulator.draw_responses", spy)
        pool = world.source.draw()
        return world, pool, made[-1].features[0].astype(np.float64), made[-1].logit[0].astype(np.float64)

    def test_policy_quantities(self, drawn):
        world, pool, features, logit = drawn
        reference = np.exp(logit) / np.exp(logit).sum(axis=1, keepdims=True)
        prob = policy_prob(world, features, reference)
        rows = np.arange(400)[:, None]
        np.testing.assert_allclose(pool.logprob, np.log(prob)[rows, pool.generator], atol=1e-5)
        ratio = np.log(prob / reference)
        np.testing.assert_allclose(pool.implicit_reward, 0.1 * ratio[rows, pool.generator], atol=1e-6)
        np.testing.assert_allclose(pool.entropy, -(prob * np.log(prob)).sum(axis=1), atol=1e-5)

    def test_the_rest_is_of_the_generator_it_names(self, drawn):
        world, pool, features, _ = drawn
        rows = np.arange(400)[:, None]
        np.testing.assert_allclose(pool.features, features[rows, pool.generator], rtol=1e-6)
        log_length = 5.0 + 0.5 * pool.features @ hidden_of(world).length[0]
        np.testing.assert_allclose(pool.length, np.exp(log_length), rtol=1e-5)

    def test_generators_come_in_any_order(self, drawn):
        _, pool, _, _ = drawn
        for place in range(3):
            assert np.bincount(pool.generator[:, place], minlength=5) == pytest.approx([80] * 5, abs=32)  # 4 std


def test_on_policy_candidates_have_the_chances_of_the_policy(monkeypatch):
    prob = np.array([0.7, 0.2, 0.1])

    def known(*arguments):
        responses = draw_responses(*arguments)
        responses.logit[:] = np.log(prob)
        return responses

    monkeypatch.setattr("prefenv.synthetic.simulator.draw_responses", known)
    pool = fresh(on_policy=True, n_prompts=20_000, n_candidates=2, n_generators=3).source.draw()
    first, second = pool.generator[:, 0], pool.generator[:, 1]
    np.testing.assert_allclose(np.bincount(first) / 20_000, prob, atol=0.015)
    # without replacement: P(second = 2 | first = 0) = 0.1 / 0.3
    assert (second[first == 0] == 2).mean() == pytest.approx(1 / 3, abs=0.02)


def test_evaluation_by_hand():
    world = fresh(n_eval_prompts=4, length_bias=2.0, style_bias=0.7, oracle_temperature=0.5)
    set_theta(world, np.random.default_rng(3).standard_normal(17))
    hidden, (features, reference, reward) = hidden_of(world), held_out(world)
    policy = policy_prob(world, features, reference)
    found = world.evaluator.evaluate(world.posterior)
    assert found.kl == pytest.approx((policy * np.log(policy / reference)).sum(axis=1).mean(), abs=1e-5)
    capability = features @ hidden.capability[0]
    assert found.capability == pytest.approx(((policy - reference) * capability).sum(axis=1).mean(), abs=1e-5)
    second = reward + 2.0 * (features @ hidden.length[0]) + 0.7 * (features @ hidden.taste[0])
    for judge, rate in ((reward, found.win_rate.mean), (second, found.second)):
        beats = expit((judge[:, :, None] - judge[:, None, :]) / 0.5)
        expected = (policy[:, :, None] * reference[:, None, :] * beats).sum(axis=(1, 2)).mean()
        assert rate == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("size", [1e2, 1e5, 1e9, 1e20])
def test_kl_of_a_policy_that_has_gone_very_far(size):
    world = fresh()
    set_theta(world, size * np.random.default_rng(0).standard_normal(17))
    features, reference, _ = held_out(world)
    score = np.log(reference) + features @ world.learner.policies.theta[0]
    best = score.argmax(axis=1)  # it gives this one response always
    expected = -np.log(reference[np.arange(len(best)), best]).mean()
    assert world.evaluator.evaluate(world.posterior).kl == pytest.approx(expected, rel=0.05)


def test_posterior_accuracy_goes_round_through_all_pairs_of_generators():
    world = fresh(n_eval_prompts=7, n_generators=4, style_spread=50.0, skill_spread=20.0, misspecification=0.0)
    hidden, embedding = hidden_of(world), world.evaluator.evaluators._pair_embedding[0].astype(np.float64)
    distance = np.linalg.norm(embedding[..., None, :] - hidden.generator_mean[0, :, :-1], axis=-1)
    pairs = distance.argmin(axis=-1).T.tolist()
    assert pairs == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3], [0, 1]]
    weight = np.random.default_rng(0).standard_normal(16)
    world.posterior.beliefs.weight_mean = weight[None]
    gap = embedding[0] - embedding[1]
    right = np.sign(gap @ weight) == np.sign(gap @ hidden.reward[0, :-1])
    assert 0 < right.mean() < 1
    assert world.evaluator.evaluate(world.posterior).posterior_accuracy == pytest.approx(right.mean())


class TestExpectedGain:
    def win_rate_after(self, world, pool, row, chosen, rejected):
        state = world.learner.state_dict()
        world.learner.step(pool, Preferences(np.array([row]), np.array([chosen]), np.array([rejected])))
        rate = self.win_rate(world)
        world.learner.load_state_dict(state)
        return rate

    def win_rate(self, world):
        """In double precision, for the steps are small."""
        features, reference, reward = held_out(world)
        gap = reward[:, :, None] - reward[:, None, :]
        wins = preference_prob(gap, world.settings.oracle_temperature)
        beats = (wins * reference[:, None, :]).sum(axis=2) / reference.sum(axis=1, keepdims=True)
        return (policy_prob(world, features, reference) * beats).sum(axis=1).mean()

    @pytest.mark.parametrize(
        "settings_",
        [
            {"oracle_temperature": 0.0}, {"oracle_temperature": 1.0}, {"oracle_tie": 0.5, "oracle_flip": 0.2},
            {"loss": "ipo"},
        ],
    )  # fmt: skip
    def test_is_the_gain_of_a_small_step_on_either_label(self, settings_):
        world = fresh(n_prompts=2, gradient_steps=1, learning_rate=1e-3, beta=0.7, **settings_)
        set_theta(world, 0.5 * np.random.default_rng(1).standard_normal(17))
        pool = world.source.draw()
        before = self.win_rate(world)
        first, second = np.triu_indices(4, 1)
        s = world.settings
        expected = np.zeros((2, 6))
        for row, pair in np.ndindex(2, 6):
            i, j = first[pair], second[pair]
            gap = np.float64(pool.reward[row, i]) - pool.reward[row, j]
            p, q = label_chances(np.array(gap), s.oracle_temperature, s.oracle_tie, s.oracle_flip)
            gains = [self.win_rate_after(world, pool, row, *order) - before for order in ((i, j), (j, i))]
            expected[row, pair] = p * gains[0] + q * gains[1]
        found = world.gain(pool)
        factor = (found * expected).sum() / (expected**2).sum()
        np.testing.assert_allclose(found, factor * expected, atol=0.01 * np.abs(found).max())
        assert factor > 0

    def test_a_copied_environment_looks_at_its_own_policy(self):
        env = prefenv.PrefAcquireEnv("synthetic", privileged=True)
        env.reset(seed=0)
        twin = pickle.loads(pickle.dumps(env))
        copied = copy.deepcopy(env)
        env.step(np.zeros(8, dtype=np.int64))
        for other in (twin, copied):
            gain = other.world.gain(other._pool)
            policies = other.world.learner.policies
            policies.theta = policies.theta + 1.0
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


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_when_all_rewards_are_equal_no_label_moves_the_win_rate(temperature):
    envs = gym.make_vec(
        "PrefAcquire-v0",
        num_envs=40,
        world=SyntheticSettings(reward_scale=1e-300, oracle_temperature=temperature),
        privileged=True,
    )
    agent, (observation, info) = agents.make("maxmin", seed=0), envs.reset(seed=0)
    agreed, first = [], []
    for _ in range(10):
        action, _ = agent.predict(observation)
        observation, _, _, _, info = envs.step(action)
        assert info["win_rate"] == pytest.approx(0.5, abs=1e-5)
        assert info["posterior_accuracy"] == pytest.approx(0.5)
        assert all(np.all(np.isfinite(value)) for value in observation.values())
        agreed.append(info["label_agreement"])
        first.append(info["preferences"][..., 1] < info["preferences"][..., 2])
    assert np.all(np.array(agreed) == 0.5)
    assert np.mean(first) == pytest.approx(0.5, abs=0.05)  # a fair coin
    assert info["kl"].min() > 0  # the policy went somewhere, for nothing
