import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefenv.posteriors.bayesian_linear import (
    BayesianLinearPosterior,
    LinearBeliefs,
    absorb_label,
    absorb_labels,
)
from prefenv.protocols import RewardPosterior
from prefenv.types import Preferences
from tests.conftest import make_pool


def absorb(mean, root, deltas):
    for delta in deltas:
        mean, root = absorb_label(mean, root, delta)
    return mean, root


def exact_moments(covariance, deltas):
    """Mean and covariance of the two-dimensional posterior under the logistic likelihood, on a fine grid."""
    reach = 6 * np.sqrt(np.diag(covariance))
    grid = np.stack(np.meshgrid(*(np.linspace(-r, r, 401) for r in reach), indexing="ij"), axis=-1).reshape(-1, 2)
    log = -0.5 * np.einsum("ij,jk,ik->i", grid, np.linalg.inv(covariance), grid)
    log -= np.logaddexp(0, -grid @ deltas.T).sum(axis=1)
    weight = np.exp(log - log.max())
    weight /= weight.sum()
    mean = weight @ grid
    return mean, (grid - mean).T @ ((grid - mean) * weight[:, None])


def test_one_label_in_one_dimension_by_hand():
    # a unit normal times Phi(t / a): mean sqrt(2 / (pi (a² + 1))), variance 1 - 2 / (pi (a² + 1))
    mean, root = absorb_label(np.zeros(1), np.eye(1), np.ones(1))
    square = 2 / (np.pi * (1.702**2 + 1))
    assert mean[0] == pytest.approx(np.sqrt(square))
    assert root[0, 0] ** 2 == pytest.approx(1 - square)


@pytest.mark.parametrize("n_labels", [1, 5, 40])
@pytest.mark.parametrize("prior_std", [0.5, 2.0])
def test_moments_are_close_to_the_exact_ones(n_labels, prior_std):
    errors, ratios = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        deltas = rng.standard_normal((n_labels, 2))
        truth = prior_std * rng.standard_normal(2)
        deltas *= np.where(rng.random(n_labels) < 1 / (1 + np.exp(-deltas @ truth)), 1, -1)[:, None]
        mean, covariance = exact_moments(prior_std**2 * np.eye(2), deltas)
        found, root = absorb(np.zeros(2), prior_std * np.eye(2), deltas)
        errors.append(np.sqrt((found - mean) @ np.linalg.solve(covariance, found - mean) / 2))
        ratios.append(np.trace(np.linalg.solve(covariance, root @ root.T)) / 2)
    assert np.mean(errors) < 0.2  # posterior standard deviations
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.15)


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-6, 1e6), st.integers(1, 200), st.sampled_from([1.0, -1.0]))
def test_no_labels_ever_break_it(scale, k, flip):
    rng = np.random.default_rng(k)
    deltas = scale * np.abs(rng.standard_normal((k, 3)))  # separable ...
    deltas[::2] *= flip  # ... or flatly contradictory
    mean, root = absorb(np.zeros(3), 30 * np.eye(3), np.repeat(deltas, 5, axis=0))
    assert np.all(np.isfinite(mean))
    assert np.all(np.isfinite(root))
    assert np.all(np.diag(root @ root.T) <= 900 * (1 + 1e-9))
    if flip > 0:
        assert np.all(deltas @ mean > 0)
    else:
        assert np.all(np.abs(deltas @ mean) < np.inf)


def test_a_label_of_equals_teaches_nothing():
    mean, root = absorb_label(np.ones(2), np.eye(2), np.zeros(2))
    assert mean.tolist() == [1.0, 1.0]
    assert root.tolist() == np.eye(2).tolist()


@pytest.mark.parametrize("k", [1, 2, 7, 8, 9, 40])
@pytest.mark.parametrize("d", [1, 3, 20])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_labels_in_blocks_are_labels_one_by_one(k, d, scale):
    rng = np.random.default_rng(0)
    mean, root = rng.standard_normal((5, d)), np.eye(d) + 0.3 * rng.standard_normal((5, d, d))
    delta = scale * rng.standard_normal((5, k, d))
    together = absorb_labels(mean, root, delta)
    for j in range(k):
        mean, root = absorb_label(mean, root, delta[:, j])
    np.testing.assert_allclose(together[0], mean, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(*(r @ r.swapaxes(1, 2) for r in (together[1], root)), rtol=1e-6, atol=1e-9)


def test_rows_of_zeros_change_no_bit():
    rng = np.random.default_rng(0)
    mean, root, delta = rng.standard_normal((1, 4)), rng.standard_normal((1, 4, 4)), rng.standard_normal((1, 5, 4))
    expected = absorb_labels(mean, root, delta)
    padded = absorb_labels(mean, root, np.concatenate([delta, np.zeros((1, 14, 4))], axis=1))
    np.testing.assert_array_equal(expected[0], padded[0])
    np.testing.assert_array_equal(expected[1], padded[1])
    nothing = absorb_labels(mean, root, np.zeros((1, 0, 4)))
    np.testing.assert_array_equal(nothing[1], root)


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-6, 1e6), st.integers(1, 100), st.sampled_from([1.0, -1.0]))
def test_no_labels_ever_break_blocks(scale, k, flip):
    rng = np.random.default_rng(k)
    deltas = scale * np.abs(rng.standard_normal((k, 3)))
    deltas[::2] *= flip
    mean, root = absorb_labels(np.zeros(3), 30 * np.eye(3), np.repeat(deltas, 5, axis=0))
    assert np.all(np.isfinite(mean))
    assert np.all(np.isfinite(root))
    assert np.all(np.diag(root @ root.T) <= 900 * (1 + 1e-9))


def test_embeddings_of_whole_numbers():
    posterior = BayesianLinearPosterior(2, 4)
    posterior.beliefs.weight_mean = np.array([[0.6, -0.4]])
    np.testing.assert_allclose(posterior.mean(np.array([[1, 0], [0, 2]])), [0.6, -0.8])


def test_a_million_labels():
    rng = np.random.default_rng(0)
    truth = np.array([1.0, -0.5])
    beliefs = LinearBeliefs(1, 2, 4, 2.0)
    for _ in range(50):
        delta = rng.standard_normal((1, 20_000, 2))
        delta *= np.where(rng.random((1, 20_000)) < 1 / (1 + np.exp(-delta @ truth)), 1, -1)[..., None]
        beliefs.absorb(delta, np.zeros_like(delta))
    std = np.sqrt(np.diag(beliefs.root[0] @ beliefs.root[0].T))
    assert np.all(std < 0.004)
    assert np.all(std > 0.001)
    np.testing.assert_allclose(beliefs.weight_mean[0], truth, atol=0.05)  # the probit's bias, many stds by now


def metropolis(prior_std, deltas, rng, steps=60_000):
    """Mean and covariance of a long random walk over the exact posterior."""
    d = deltas.shape[1]
    w, chain = np.zeros(d), np.empty((steps, d))

    def log_density(w):
        return -np.logaddexp(0.0, -deltas @ w).sum() - (w @ w) / (2 * prior_std**2)

    hessian = np.eye(d) / prior_std**2 + 0.15 * deltas.T @ deltas
    stride = np.linalg.cholesky(np.linalg.inv(hessian)).T * 2.4 / np.sqrt(d)
    jumps, chances, value = rng.standard_normal((steps, d)) @ stride, np.log(rng.random(steps)), log_density(w)
    for index in range(steps):
        proposal = w + jumps[index]
        proposed = log_density(proposal)
        if chances[index] < proposed - value:
            w, value = proposal, proposed
        chain[index] = w
    return chain[steps // 6 :].mean(axis=0), np.cov(chain[steps // 6 :].T)


def test_belief_is_close_to_a_long_mcmc_run():
    """Stated error: mean within 0.25 posterior standard deviations, variances within 12 %, on average."""
    errors, ratios = [], []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        truth, deltas = rng.standard_normal(5), 1.4 * rng.standard_normal((60, 5))
        deltas *= np.where(rng.random(60) < 1 / (1 + np.exp(-deltas @ truth)), 1, -1)[:, None]
        mean, covariance = metropolis(1.0, deltas, rng)
        found, root = absorb_labels(np.zeros(5), np.eye(5), deltas)
        errors.append(np.sqrt((found - mean) @ np.linalg.solve(covariance, found - mean) / 5))
        ratios.append(np.trace(np.linalg.solve(covariance, root @ root.T)) / 5)
    assert np.mean(errors) < 0.25
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.12)


def test_leading_axes_are_a_batch():
    rng = np.random.default_rng(0)
    mean, root, delta = rng.standard_normal((5, 3)), rng.standard_normal((5, 3, 3)), rng.standard_normal((5, 3))
    together = absorb_label(mean, root, delta)
    for b in range(5):
        alone = absorb_label(mean[b], root[b], delta[b])
        np.testing.assert_allclose(together[0][b], alone[0], rtol=1e-12)
        np.testing.assert_allclose(together[1][b], alone[1], rtol=1e-12)


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
    covariance = flat @ posterior.root @ posterior.root.T @ flat.T
    draws = belief.samples.reshape(-1, 6)
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=0.25)
    np.testing.assert_allclose(belief.std.reshape(-1), np.sqrt(np.diag(covariance)), rtol=1e-5)
    np.testing.assert_allclose(draws.mean(axis=0), belief.mean.reshape(-1), atol=0.1)


def test_many_labels_find_the_truth():
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(3)
    deltas = rng.standard_normal((3000, 3))
    deltas *= np.where(rng.random(3000) < 1 / (1 + np.exp(-deltas @ truth)), 1, -1)[:, None]
    mean, root = absorb(np.zeros(3), np.eye(3), deltas)
    np.testing.assert_allclose(mean, truth, atol=4 * np.sqrt(np.diag(root @ root.T)).max())
    assert np.sqrt(np.diag(root @ root.T)).max() < 0.1


def test_no_labels_change_nothing_and_state_goes_round():
    posterior = BayesianLinearPosterior(3, 4)
    posterior.reset(np.random.default_rng(0))
    pool = make_pool(np.ones((2, 3), dtype=bool), np.random.default_rng(2))
    before = posterior.state_dict()
    empty = np.empty(0, dtype=np.int64)
    posterior.update(pool, Preferences(empty, empty, empty))
    np.testing.assert_array_equal(posterior.beliefs.root, before["root"])
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
    _, root = absorb(np.zeros(3), np.eye(3) / np.sqrt(3), delta)
    flat = pool.embedding.reshape(6, 3).astype(np.float64)
    np.testing.assert_allclose(stds[1].ravel(), np.linalg.norm(flat @ root, axis=1), rtol=1e-5)
