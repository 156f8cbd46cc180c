import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from prefenv.posteriors.bayesian_linear import BayesianLinearPosterior, laplace_update
from prefenv.protocols import RewardPosterior
from prefenv.types import Preferences
from tests.conftest import make_pool


def test_one_label_in_one_dimension_by_hand():
    # minimise w²/2 + log(1 + exp(-w)): w = sig(-w), so w = 0.401058; the Hessian there is 1 + w (1 - w)
    mean, precision = laplace_update(np.zeros(1), np.eye(1), np.ones((1, 1)))
    assert mean[0] == pytest.approx(0.401058, abs=1e-6)
    assert precision[0, 0] == pytest.approx(1.240210, abs=1e-5)


def test_mode_is_what_a_general_optimiser_finds():
    rng = np.random.default_rng(0)
    delta, mean = rng.standard_normal((40, 6)), rng.standard_normal(6)
    root = rng.standard_normal((6, 6))
    precision = root @ root.T + np.eye(6)

    def loss(w):
        return 0.5 * (w - mean) @ precision @ (w - mean) + np.logaddexp(0, -delta @ w).sum()

    found, _ = laplace_update(mean, precision, delta)
    np.testing.assert_allclose(found, minimize(loss, mean, tol=1e-12).x, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-3, 1e4), st.integers(1, 200))
def test_separable_labels_never_break_it(scale, k):
    mean, precision = np.zeros(3), np.eye(3) * 1e-3
    delta = scale * np.abs(np.random.default_rng(k).standard_normal((k, 3)))
    for _ in range(5):
        mean, precision = laplace_update(mean, precision, delta)
    assert np.all(np.isfinite(mean))
    assert np.linalg.eigvalsh(precision).min() > 0
    assert np.all(delta @ mean > 0)


def test_prior_has_the_promised_scale_and_draws_its_covariance():
    posterior = BayesianLinearPosterior(embedding_size=4, n_samples=40_000, prior_std=3.0)
    posterior.reset(np.random.default_rng(0))
    assert isinstance(posterior, RewardPosterior)
    embedding = np.random.default_rng(1).standard_normal((2, 3, 4)).astype(np.float32)
    pool = make_pool(np.ones((2, 3), dtype=bool), np.random.default_rng(2), d=4)
    assert posterior.predict(np.ones((1, 2, 4), dtype=np.float32)).std == pytest.approx(3.0, rel=1e-6)
    posterior.update(pool, Preferences(np.array([0, 1]), np.array([0, 2]), np.array([1, 0])))
    belief = posterior.predict(embedding)
    flat = embedding.reshape(6, 4).astype(np.float64)
    covariance = flat @ np.linalg.inv(posterior.precision) @ flat.T
    draws = belief.samples.reshape(-1, 6)
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=0.25)
    np.testing.assert_allclose(belief.std.reshape(-1), np.sqrt(np.diag(covariance)), rtol=1e-5)
    np.testing.assert_allclose(draws.mean(axis=0), belief.mean.reshape(-1), atol=0.1)


def test_learning_label_by_label_is_close_to_all_at_once():
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(3)
    delta = rng.standard_normal((300, 3))
    delta *= np.where(rng.random(300) < 1 / (1 + np.exp(-delta @ truth)), 1, -1)[:, None]
    at_once, _ = laplace_update(np.zeros(3), np.eye(3), delta)
    mean, precision = np.zeros(3), np.eye(3)
    for start in range(0, 300, 10):
        mean, precision = laplace_update(mean, precision, delta[start : start + 10])
    np.testing.assert_allclose(mean, at_once, atol=0.1)
    np.testing.assert_allclose(mean, truth, atol=0.5)


def test_no_labels_change_nothing_and_state_goes_round():
    posterior = BayesianLinearPosterior(3, 4)
    posterior.reset(np.random.default_rng(0))
    pool = make_pool(np.ones((2, 3), dtype=bool), np.random.default_rng(2))
    before = posterior.state_dict()
    empty = np.empty(0, dtype=np.int64)
    posterior.update(pool, Preferences(empty, empty, empty))
    np.testing.assert_array_equal(posterior.precision, before["precision"])
    posterior.update(pool, Preferences(np.array([0]), np.array([0]), np.array([1])))
    state = posterior.state_dict()
    expected = posterior.predict(pool.embedding)
    other = BayesianLinearPosterior(3, 4)
    other.load_state_dict(state)
    np.testing.assert_array_equal(expected.samples, other.predict(pool.embedding).samples)


@pytest.mark.parametrize("arguments", [(0, 1, 1.0), (1, 0, 1.0), (1, 1, 0.0), (1, 1, float("nan"))])
def test_sizes_that_cannot_be(arguments):
    with pytest.raises(ValueError, match="must be"):
        BayesianLinearPosterior(*arguments)


def test_labels_make_it_surer_and_both_directions_count():
    pool = make_pool(np.ones((2, 3), dtype=bool), np.random.default_rng(2))
    rows, first, second = np.array([0, 1]), np.array([0, 0]), np.array([1, 2])
    prior = BayesianLinearPosterior(3, 4)
    stds, means = [prior.predict(pool.embedding).std], []
    for chosen, rejected in ((first, second), (second, first)):
        posterior = BayesianLinearPosterior(3, 4)
        posterior.update(pool, Preferences(rows, chosen, rejected))
        belief = posterior.predict(pool.embedding)
        assert np.all(belief.mean[rows, chosen] > belief.mean[rows, rejected])
        stds.append(belief.std)
        means.append(belief.mean)
    np.testing.assert_allclose(means[0], -means[1], atol=1e-6)
    assert np.all(stds[1] < stds[0])
    delta = (pool.embedding[rows, first] - pool.embedding[rows, second]).astype(np.float64)
    _, precision = laplace_update(np.zeros(3), 3.0 * np.eye(3), delta)
    flat = pool.embedding.reshape(6, 3).astype(np.float64)
    np.testing.assert_allclose(stds[1].ravel(), np.sqrt(np.diag(flat @ np.linalg.inv(precision) @ flat.T)), rtol=1e-5)
