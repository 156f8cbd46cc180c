"""What every world and its parts must do, whatever they are made of: for files of tests that have a fixture `world`."""

import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence

from prefenv.protocols import PART_NAMES, CandidateSource, Evaluator, Oracle, PolicyLearner, RewardPosterior
from prefenv.types import Pairs

PROTOCOLS = (CandidateSource, Oracle, RewardPosterior, PolicyLearner, Evaluator)


def some_pairs(pool, rng):
    """One pair of existing candidates for each prompt."""
    chosen = [np.sort(rng.choice(np.flatnonzero(row), 2, replace=False)) for row in pool.mask]
    first, second = np.array(chosen).T
    return Pairs(np.arange(pool.n_prompts), first, second)


def one_round(world, rng):
    """Draw, label, learn, measure; what came of it, as plain data."""
    pool = world.source.draw()
    labels = world.oracle.compare(pool, some_pairs(pool, rng))
    world.posterior.update(pool, labels)
    world.learner.step(pool, labels)
    evaluation = world.evaluator.evaluate(world.posterior)
    belief = world.posterior.predict(pool.embedding)
    return {
        "pool": [np.asarray(getattr(pool, name)) for name in ("prompt_id", "embedding", "logprob", "implicit_reward")],
        "labels": [labels.prompt, labels.chosen, labels.rejected],
        "belief": [belief.mean, belief.std, belief.samples],
        "evaluation": str(evaluation),
    }


def test_world(world):
    for name, protocol in zip(PART_NAMES, PROTOCOLS, strict=True):
        assert isinstance(getattr(world, name), protocol)
    world.reset(np.random.default_rng(0))
    first = world.evaluator.evaluate(world.posterior)
    assert first.win_rate.mean == pytest.approx(0.5)
    assert first.kl == pytest.approx(0.0, abs=1e-4)
    pool = world.source.draw()
    assert pool.embedding.shape == (world.n_prompts, world.n_candidates, world.embedding_size)
    belief = world.posterior.predict(pool.embedding)
    assert belief.samples.shape == (world.n_samples, world.n_prompts, world.n_candidates)
    score = world.oracle.score(pool)
    assert score.shape == belief.mean.shape
    assert np.all(np.isfinite(score[pool.mask]))
    np.testing.assert_allclose(world.posterior.mean(pool.embedding), belief.mean, atol=1e-4)


def test_labels_answer_the_pairs_in_order(world):
    world.reset(np.random.default_rng(0))
    rng = np.random.default_rng(1)
    for _ in range(3):
        pool = world.source.draw()
        pairs = some_pairs(pool, rng)
        labels = world.oracle.compare(pool, pairs)
        assert len(labels) + labels.abstained == len(pairs)
        if not labels.abstained:
            np.testing.assert_array_equal(labels.prompt, pairs.prompt)
            np.testing.assert_array_equal(np.minimum(labels.chosen, labels.rejected), pairs.first)
            np.testing.assert_array_equal(np.maximum(labels.chosen, labels.rejected), pairs.second)


def test_same_seed_same_episode_whatever_ran_before(world):
    def episode(seed):
        world.reset(np.random.default_rng(seed))
        rng = np.random.default_rng(0)
        return [one_round(world, rng) for _ in range(2)]

    first = episode(0)
    other = episode(1)
    assert data_equivalence(first, episode(0), exact=True)
    assert not data_equivalence(first, other, exact=True)


def test_a_restored_world_goes_on_exactly(world):
    world.reset(np.random.default_rng(0))
    one_round(world, np.random.default_rng(0))
    state = world.state_dict()
    expected = one_round(world, np.random.default_rng(7))
    world.reset(np.random.default_rng(5))
    one_round(world, np.random.default_rng(6))
    world.load_state_dict(state)
    assert data_equivalence(expected, one_round(world, np.random.default_rng(7)), exact=True)
    world.load_state_dict(state)  # using a state does not change it
    assert data_equivalence(expected, one_round(world, np.random.default_rng(7)), exact=True)


def test_no_labels_no_change(world):
    world.reset(np.random.default_rng(0))
    pool = world.source.draw()
    nothing = np.empty(0, dtype=np.int64)
    before = str(world.evaluator.evaluate(world.posterior))
    labels = world.oracle.compare(pool, Pairs(nothing, nothing, nothing))
    world.posterior.update(pool, labels)
    world.learner.step(pool, labels)
    assert str(world.evaluator.evaluate(world.posterior)) == before
