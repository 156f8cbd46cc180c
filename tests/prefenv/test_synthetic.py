"""The simulator: story, pools, policy, evaluation, held against what the story's docstring says."""

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
from prefenv.noise import Words, unit_noise
from prefenv.oracles.bradley_terry import label_chances
from prefenv.synthetic.settings import SyntheticSettings
from prefenv.synthetic.simulator import start_beliefs
from prefenv.synthetic.story import draw_hidden, draw_pairs, draw_responses, noise_size
from prefenv.synthetic.world import make_synthetic_world
from prefenv.types import Pairs, Preferences


def fresh(seed=0, **settings):
    world = make_synthetic_world(SyntheticSettings(**settings))
    world.reset(np.random.default_rng(seed))
    return world


def hidden_of(world):
    """What is hidden in the episode of a world, without the leading axis."""
    return world.source.sources.hidden[slice(0, 1)]


def set_theta(world, theta):
    world.learner.policies.theta = np.asarray(theta, dtype=np.float64)[None]


def held_out(world):
    """Features (E, G, D), reference probability (E, G) and reward (E, G) of a world's held-out prompts, float64."""
    evaluators, hidden = world.evaluator.evaluators, hidden_of(world)
    e, g = world.settings.n_eval_prompts, world.settings.n_generators
    features = evaluators._features[0].reshape(-1, g, e).T.astype(np.float64)
    reference = np.exp(evaluators._reference[0].T.astype(np.float64))
    return features, reference, world.settings.reward_scale * features @ hidden.reward[0]


def policy_prob(world, features, reference):
    weight = reference * np.exp(features @ world.learner.policies.theta[0])
    return weight / weight.sum(axis=-1, keepdims=True)


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


def test_a_warm_posterior_knows_something_before_the_first_label():
    def accuracy(warm_labels):
        worlds = (fresh(seed, warm_labels=warm_labels, misspecification=0.0) for seed in range(10))
        return np.mean([w.evaluator.evaluate(w.posterior).posterior_accuracy for w in worlds])

    assert accuracy(0) == 0.5
    assert accuracy(20) > 0.6
    assert accuracy(400) > 0.85
    assert accuracy(400) > accuracy(20)
    cold, warm = fresh(), fresh(warm_labels=7)  # nothing else changes
    np.testing.assert_array_equal(cold.source.draw().embedding, warm.source.draw().embedding)


def test_warm_labels_follow_the_oracles_noise():
    noise = {"oracle_temperature": 0.0, "misspecification": 0.0}
    right, wrong = (fresh(warm_labels=300, oracle_flip=flip, **noise) for flip in (0.0, 1.0))
    accuracy = [world.evaluator.evaluate(world.posterior).posterior_accuracy for world in (right, wrong)]
    assert accuracy[0] > 0.85
    assert accuracy[1] == pytest.approx(1 - accuracy[0])
    ties = fresh(warm_labels=300, oracle_temperature=1e6, oracle_tie=40.0)
    assert ties.evaluator.evaluate(ties.posterior).posterior_accuracy == 0.5


class TestWarmStart:
    """What the posterior is taught before an episode."""

    def taught(self, monkeypatch, w=4000, **settings):
        settings_, pairs, labels = SyntheticSettings(warm_labels=w, **settings), [], []
        words = Words([np.random.PCG64(0)])
        hidden = draw_hidden(settings_, words)

        def spy(hidden, generator, noise):
            pairs.append((generator[0], draw_pairs(hidden, generator, noise)[0]))
            return pairs[-1][1][None]

        class Listener:
            def reset(self, sources):
                pass

            def absorb(self, chosen, rejected):
                labels.append((chosen[0].copy(), rejected[0].copy()))

        monkeypatch.setattr("prefenv.synthetic.simulator.draw_pairs", spy)
        start_beliefs(settings_, hidden, [np.random.PCG64(1)], Listener())
        generator, features = (np.concatenate(column) for column in zip(*pairs, strict=True))
        chosen, rejected = (np.concatenate(column) for column in zip(*labels, strict=True))
        first_wins = np.all(chosen == features[:, 0, :-1], axis=1)
        second_wins = np.all(rejected == features[:, 0, :-1], axis=1)
        assert np.all(chosen[first_wins] != rejected[first_wins])
        gap = (features[:, 0] - features[:, 1]) @ hidden.reward[0]
        return generator, first_wins, second_wins, gap

    def test_pairs_are_of_different_generators_drawn_alike(self, monkeypatch):
        generator, *_ = self.taught(monkeypatch, n_generators=5)
        table = np.zeros((5, 5))
        np.add.at(table, tuple(generator.T), 1)
        assert np.all(np.diag(table) == 0)
        assert table[~np.eye(5, dtype=bool)] == pytest.approx(4000 / 20, abs=60)  # 4 std

    def test_labels_go_by_the_reward_and_by_nothing_else(self, monkeypatch):
        _, first_wins, second_wins, gap = self.taught(monkeypatch, reward_scale=50.0)
        assert (first_wins == (gap > 0)).mean() > 0.97
        assert np.all(first_wins ^ second_wins)
        generator, first_wins, _, gap = self.taught(monkeypatch, reward_scale=0.01)
        for cause in (gap, generator[:, 0], generator[:, 1]):
            assert abs(np.corrcoef(first_wins, cause)[0, 1]) < 0.08

    def test_ties_teach_nothing(self, monkeypatch):
        _, first_wins, second_wins, gap = self.taught(monkeypatch, oracle_tie=1.0, reward_scale=1.0)
        assert first_wins.mean() == pytest.approx(expit(gap - 1.0).mean(), abs=0.03)
        assert second_wins.mean() == pytest.approx(expit(-gap - 1.0).mean(), abs=0.03)
        assert not np.any(first_wins & second_wins)

    def test_all_labels_come(self, monkeypatch):
        for w in (1, 64, 65, 200):
            assert len(self.taught(monkeypatch, w=w)[1]) == w


def test_held_out_pairs_have_their_generators_consistency():
    world = fresh(n_eval_prompts=6000, n_generators=3, n_candidates=2, consistency_spread=1.0, embedding_size=2)
    hidden, embedding = hidden_of(world), world.evaluator.evaluators._pair_embedding[0]
    for side, generators in ((0, (0, 0, 1)), (1, (1, 2, 2))):
        for place, generator in enumerate(generators):
            spread = embedding[side, place::3].std(axis=0)
            np.testing.assert_allclose(spread, hidden.consistency[0, generator], rtol=0.06)


def drawn_story(n=50, **settings):
    settings_ = SyntheticSettings(**settings)
    words = Words([np.random.PCG64(0)])
    hidden = draw_hidden(settings_, words)
    responses = draw_responses(settings_, hidden, n, unit_noise(words, noise_size(settings_, n)))
    return hidden, responses.features[0].astype(np.float64), responses.logit[0].astype(np.float64)


def test_story_has_the_directions_it_promises():
    hidden, _, _ = drawn_story(misspecification=0.3, capability_conflict=0.6)
    for name in ("reward", "capability", "length", "taste"):
        assert np.linalg.norm(getattr(hidden, name)) == pytest.approx(1.0, abs=1e-5), name
    assert hidden.reward[0, -1] ** 2 == pytest.approx(0.3, abs=1e-6)
    rest = hidden.capability[0] + 0.6 * hidden.reward[0]  # what it has of its own
    own = np.array([hidden.reward[0], rest / np.linalg.norm(rest), hidden.length[0], hidden.taste[0]])
    assert np.abs(own @ own.T - np.eye(4)).max() < 0.9  # none is another one
    assert (hidden.capability * hidden.reward).sum() == pytest.approx(-0.6, abs=1e-5)


def test_story_has_the_spreads_it_promises():
    hidden, features, logit = drawn_story(
        n_generators=400, embedding_size=8, style_spread=0.5, consistency_spread=0.4, reference_spread=1.3
    )
    skill = hidden.generator_mean[0] @ hidden.reward[0]
    assert np.all(np.diff(skill) > -1e-5)  # the weakest generator first
    assert skill.std() == pytest.approx(0.7, rel=0.1)
    style = hidden.generator_mean[0] - skill[:, None] * hidden.reward[0]
    assert np.sqrt((style**2).sum(axis=1).mean() / 8) == pytest.approx(0.5, rel=0.05)  # 9 numbers less 1 direction
    assert np.log(hidden.consistency).std() == pytest.approx(0.4, rel=0.1)
    assert abs(np.corrcoef(hidden.consistency[0], skill)[0, 1]) < 0.2
    noise = (features - hidden.generator_mean[0]) / hidden.consistency[0][:, None]
    np.testing.assert_allclose(noise.std(axis=(0, 1)), 1.0, rtol=0.02)
    np.testing.assert_allclose(noise.mean(axis=(0, 1)), 0.0, atol=0.02)
    assert logit.std() == pytest.approx(1.3, rel=0.02)
    correlation = np.corrcoef(noise.reshape(-1, 9), rowvar=False)
    assert np.abs(correlation - np.eye(9)).max() < 0.03


def test_a_strong_reference_prefers_good_responses():
    hidden, features, logit = drawn_story(reference_strength=2.0, reference_spread=0.0, n=20)
    np.testing.assert_allclose(logit, 2.0 * features @ hidden.reward[0], atol=1e-4)


@pytest.mark.parametrize("settings_", [{}, {"consistency_spread": 0.5, "reference_strength": 1.5}])
def test_held_out_prompts_follow_the_same_story(settings_):
    world = fresh(n_eval_prompts=4000, n_generators=3, n_candidates=2, embedding_size=3, **settings_)
    hidden = hidden_of(world)
    features, reference, _ = held_out(world)
    np.testing.assert_allclose(features.mean(axis=0), hidden.generator_mean[0], atol=0.1)
    np.testing.assert_allclose(features.std(axis=0), np.tile(hidden.consistency[0][:, None], 4), rtol=0.05)
    np.testing.assert_allclose(reference.sum(axis=1), 1.0, atol=1e-5)
    preferred = np.log(reference) - settings_.get("reference_strength", 0.0) * features @ hidden.reward[0]
    assert (preferred - preferred.mean(axis=1, keepdims=True)).std() == pytest.approx(np.sqrt(2 / 3), rel=0.05)


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


def outcome(**settings):
    world = fresh(**settings)
    n = world.n_prompts
    trail = []
    for _ in range(2):
        pool = world.source.draw()
        labels = world.oracle.compare(pool, Pairs(np.arange(n), np.zeros(n, int), np.ones(n, int)))
        world.posterior.update(pool, labels)
        world.learner.step(pool, labels)
        belief = world.posterior.predict(pool.embedding)
        trail += [pool.embedding.sum(), pool.logprob.sum(), pool.implicit_reward.sum(), belief.samples.sum()]
        trail += [len(labels), labels.chosen.sum(), str(world.evaluator.evaluate(world.posterior))]
    return [str(value) for value in trail]


CHANGED = {
    "n_prompts": 9, "n_candidates": 5, "n_samples": 33, "n_generators": 9, "n_eval_prompts": 129,
    "embedding_size": 17, "misspecification": 0.4, "reward_scale": 2.1, "skill_spread": 0.8, "style_spread": 0.8,
    "consistency_spread": 0.1, "reference_strength": 0.1, "reference_spread": 1.1, "oracle_temperature": 2.0,
    "oracle_tie": 2.0, "oracle_flip": 0.5, "length_bias": 1.1, "style_bias": 0.1, "capability_conflict": 0.6,
    "on_policy": True, "loss": "ipo", "beta": 0.2, "simpo_margin": 0.5, "learning_rate": 1.1, "gradient_steps": 5,
    "posterior": "ensemble", "prior_std": 2.1, "warm_labels": 1,
}  # fmt: skip
OF_SIMPO = {"simpo_margin"}


def test_every_setting_is_tried():
    assert CHANGED.keys() == SyntheticSettings.__dataclass_fields__.keys()


@pytest.mark.parametrize("name", CHANGED)
def test_every_setting_changes_something(name):
    base = {"loss": "simpo"} if name in OF_SIMPO else {}
    assert outcome(**base | {name: CHANGED[name]}) != outcome(**base)


@pytest.mark.parametrize(
    "wrong",
    [
        {"misspecification": 1.0}, {"beta": 0.0}, {"learning_rate": -1.0}, {"oracle_temperature": -1.0},
        {"capability_conflict": 1.5}, {"gradient_steps": 0}, {"embedding_size": 0}, {"length_bias": float("nan")},
        {"reward_scale": float("inf")}, {"on_policy": "yes"}, {"n_samples": 2.0}, {"loss": "sigmoid"},
        {"posterior": "laplace"}, {"oracle_flip": 1.1}, {"oracle_tie": -0.1}, {"warm_labels": -1},
        {"consistency_spread": -1.0}, {"style_bias": float("inf")}, {"reference_strength": float("nan")},
        {"n_samples": 1, "posterior": "ensemble"}, {"style_spread": -1.0}, {"skill_spread": -1.0},
        {"reference_spread": -1.0}, {"n_eval_prompts": 0}, {"n_generators": 0, "n_candidates": 2},
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


def test_parts_draw_from_streams_of_their_own():
    world = fresh()
    words = [world.source.sources.words, world.posterior.beliefs.words]
    sources = [w.sources[0] for w in words] + [world.oracle._rng.bit_generator]
    streams = [source.random_raw(4).tolist() for source in sources]
    assert len({tuple(stream) for stream in streams}) == 3
    other = fresh(seed=1)
    assert other.oracle._rng.bit_generator.random_raw(4).tolist() != streams[2]
    noise = held_out(fresh())[0] - hidden_of(fresh()).generator_mean[0]
    drawn = fresh().source.draw()
    drawn_noise = drawn.features - hidden_of(fresh()).generator_mean[0][drawn.generator]
    assert not np.any(np.isclose(noise.reshape(-1, 1), drawn_noise[0, 0, :2]).all(axis=1))


def test_every_seed_has_its_own_truth_prompts_and_noise():
    a, b = fresh(seed=0), fresh(seed=1)
    for name in ("reward", "capability", "length", "taste", "generator_mean"):
        assert not np.allclose(getattr(hidden_of(a), name), getattr(hidden_of(b), name)), name
    spread = [held_out(w)[0] - hidden_of(w).generator_mean[0] for w in (a, b)]
    assert not np.allclose(*spread)
    assert not np.allclose(a.source.draw().embedding, b.source.draw().embedding)


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
