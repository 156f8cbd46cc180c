"""The simulator's story: what is drawn, what a setting does, what a warm posterior has learned."""

import numpy as np
import pytest
from scipy.special import expit

from prefenv.noise import Words, unit_noise
from prefenv.synthetic.settings import SyntheticSettings
from prefenv.synthetic.simulator import start_beliefs
from prefenv.synthetic.story import draw_hidden, draw_pairs, draw_responses, noise_size
from prefenv.types import Pairs
from prefenv.vector import PrefAcquireVectorEnv
from tests.prefenv.simulated import fresh, held_out, hidden_of


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


@pytest.mark.parametrize(
    "settings_",
    [
        {"skill_spread": 1e6},
        {"style_spread": 1e6},
        {"reward_scale": 1e6},
        {"prior_std": 1e6},
        {"learning_rate": 1e6},
        {"consistency_spread": 3.0},
    ],
)
def test_settings_at_their_largest_overflow_nothing(settings_):
    envs = PrefAcquireVectorEnv(SyntheticSettings(**settings_), 3, budget=24)
    observation, info = envs.reset(seed=0)
    for _ in range(3):
        observation, _, _, _, info = envs.step(envs.action_space.sample())
        assert all(np.all(np.isfinite(value)) for value in observation.values())
        assert np.all(np.isfinite([info["win_rate"], info["win_rate_second"], info["kl"], info["capability"]]))


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
    ranks = np.sort(np.log(hidden.consistency[0]) / 0.4)  # skill is sorted: compare with its own numbers too
    assert np.abs(ranks - skill / 0.7).max() > 0.1
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
