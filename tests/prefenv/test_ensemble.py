"""The ensemble of heads as a posterior."""

import copy

import numpy as np
import pytest

from prefenv.posteriors.ensemble import MEMORY, EnsembleBeliefs, EnsemblePosterior
from prefenv.protocols import RewardPosterior
from prefenv.types import Preferences
from tests.conftest import make_pool


def beliefs(n_worlds=1, d=3, heads=24, prior_std=2.0, seed=0):
    made = EnsembleBeliefs(n_worlds, d, heads, prior_std)
    made.reset([np.random.PCG64([seed, b]) for b in range(n_worlds)])
    return made


@pytest.mark.parametrize("prior_std", [0.5, 3.0])
def test_prior_has_about_the_promised_scale(prior_std):
    embedding = np.random.default_rng(1).standard_normal((1, 8, 5, 16)).astype(np.float32)
    mean, std, samples = beliefs(d=16, heads=400, prior_std=prior_std).predict(embedding)
    assert np.sqrt((std**2).mean()) == pytest.approx(prior_std, rel=0.15)
    assert np.abs(mean).max() < 0.3 * prior_std
    assert samples.shape == (1, 400, 8, 5)


def labels(n, rng, direction):
    pairs = rng.standard_normal((2, n, len(direction))).astype(np.float32)
    first_wins = rng.random(n) < 1 / (1 + np.exp(-(pairs[0] - pairs[1]) @ direction))
    return np.where(first_wins[:, None], *pairs), np.where(first_wins[:, None], *pairs[::-1])


def test_learns_the_reward_and_grows_surer_where_it_was_told():
    rng, direction = np.random.default_rng(0), np.array([2.0, -1.0, 0.0])
    made = beliefs()
    test = rng.standard_normal((1, 200, 3)).astype(np.float32)
    before = made.predict(test[:, :, None])[1].mean()
    for _ in range(25):
        chosen, rejected = labels(8, rng, direction)
        made.absorb(chosen[None], rejected[None])
    mean, std, _ = made.predict(test[:, :, None])
    assert np.corrcoef(mean[0, :, 0], test[0] @ direction)[0, 1] > 0.9
    assert std.mean() < 0.6 * before


def test_what_was_never_told_apart_stays_unsure():
    made, rng = beliefs(heads=200), np.random.default_rng(0)
    for _ in range(20):  # only the first coordinate ever differs
        chosen, rejected = np.zeros((2, 1, 8, 3), dtype=np.float32)
        chosen[..., 0], rejected[..., 0] = np.abs(rng.standard_normal((2, 8))) * [[1], [-1]]
        made.absorb(chosen, rejected)
    along = np.array([[1.0, 0, 0], [-1.0, 0, 0]], dtype=np.float32)
    across = np.array([[0, 1.0, 0], [0, -1.0, 0]], dtype=np.float32)
    gaps = [np.subtract(*made.predict(x[None, None])[2][0, :, 0].T) for x in (along, across)]
    signal = [gap.mean() / gap.std() for gap in gaps]
    assert signal[0] > 1.5
    assert abs(signal[1]) < 0.5


def test_separable_and_contradictory_labels_stay_finite():
    rng = np.random.default_rng(0)
    for flip in (False, True):
        made = beliefs(prior_std=30.0)
        for index in range(30):
            pair = 1e3 * rng.standard_normal((2, 1, 8, 3)).astype(np.float32)
            made.absorb(*(pair[::-1] if flip and index % 2 else pair))
        mean, std, _ = made.predict(pair[0][:, None])
        assert np.all(np.isfinite(mean))
        assert np.all(np.isfinite(std))


def test_memory_is_bounded():
    made, rng = beliefs(), np.random.default_rng(0)
    chosen, rejected = labels(100, rng, np.ones(3))
    for _ in range(5):
        made.absorb(chosen[None], rejected[None])
    assert made._heads[0].memory.shape == (2, MEMORY, 3)
    assert made._heads[0].weights.shape == (24, MEMORY)


def test_the_latest_labels_are_remembered():
    made = beliefs(d=1)
    for index in range(MEMORY + 40):
        made.absorb(np.full((1, 1, 1), index + 1.0), np.zeros((1, 1, 1)))
    assert made._heads[0].memory[0, :, 0].tolist() == list(np.arange(41.0, MEMORY + 41))


def test_a_step_is_down_the_gradient_of_the_anchored_weighted_loss(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr("prefenv.posteriors.ensemble.STEPS", 1)
    heads, rng = beliefs(heads=4)._heads[0], np.random.default_rng(0)
    heads.inner = heads.inner + 0.1 * rng.standard_normal(heads.inner.shape).astype(np.float32)
    heads.outer = heads.outer + 0.1 * rng.standard_normal(heads.outer.shape).astype(np.float32)
    inner, outer = (torch.tensor(array.astype(np.float64), requires_grad=True) for array in (heads.inner, heads.outer))
    anchors = [torch.tensor(anchor.astype(np.float64)) for anchor in heads.anchors]
    chosen, rejected = rng.standard_normal((2, 7, 3))
    heads.learn(chosen, rejected)

    def output(x):
        hidden = torch.tanh(torch.tensor(x) / np.sqrt(3) @ inner)
        return float(heads.scale) * (hidden @ outer)[..., 0]

    weights = torch.tensor(heads.weights.astype(np.float64))
    loss = -(weights * torch.nn.functional.logsigmoid(output(chosen) - output(rejected))).sum()
    loss = loss + ((inner - anchors[0]) ** 2).sum() / 2 + ((outer - anchors[1]) ** 2).sum() / 2
    loss.backward()
    step = 1 / (1 + 7 * heads.scale**2 * 16 / 4)
    np.testing.assert_allclose(heads.inner, (inner - step * inner.grad).detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(heads.outer, (outer - step * outer.grad).detach().numpy(), atol=1e-5)
    assert heads.weights.std() > 0.3  # a bootstrap of its own for each head


def test_worlds_are_independent_and_equal_embeddings_are_no_label():
    rng = np.random.default_rng(0)
    chosen, rejected = (x.reshape(2, 4, 3) for x in labels(8, rng, np.ones(3)))
    together = beliefs(n_worlds=2)
    chosen[1, 2] = rejected[1, 2]
    together.absorb(chosen, rejected)
    for b, keep in enumerate((slice(None), [0, 1, 3])):
        alone = EnsembleBeliefs(1, 3, 24, 2.0)
        alone.reset([np.random.PCG64([0, b])])
        alone.absorb(chosen[b : b + 1, keep], rejected[b : b + 1, keep])
        np.testing.assert_array_equal(alone.mean(chosen[b : b + 1]), together.mean(chosen)[b : b + 1])
    before = together.mean(chosen)
    together.absorb(chosen, chosen)
    np.testing.assert_array_equal(together.mean(chosen), before)


def test_posterior_follows_the_protocol_and_goes_on_from_a_state():
    posterior, pool = EnsemblePosterior(3, 6), make_pool(np.ones((2, 3), dtype=bool), np.random.default_rng(2))
    assert isinstance(posterior, RewardPosterior)
    posterior.reset(np.random.default_rng(0))
    preferences = Preferences(np.array([0, 1]), np.array([0, 2]), np.array([1, 0]))
    posterior.update(pool, preferences)
    state = copy.deepcopy(posterior.state_dict())
    posterior.update(pool, preferences)
    expected = posterior.predict(pool.embedding)
    other = EnsemblePosterior(3, 6)
    other.load_state_dict(state)
    other.update(pool, preferences)
    np.testing.assert_array_equal(other.predict(pool.embedding).samples, expected.samples)
    for heads in state["heads"]:  # a state shares no memory with a part
        for name in ("inner", "outer", "memory", "weights"):
            heads[name][...] = 0
    np.testing.assert_array_equal(other.predict(pool.embedding).samples, expected.samples)
    np.testing.assert_allclose(posterior.mean(pool.embedding), expected.mean, rtol=1e-6)
    np.testing.assert_allclose(expected.samples.std(axis=0, ddof=1), expected.std, rtol=1e-4)


@pytest.mark.parametrize("arguments", [(0, 2, 1.0), (1, 1, 1.0), (1, 2, 0.0), (1, 2, float("nan"))])
def test_sizes_that_cannot_be(arguments):
    with pytest.raises(ValueError, match="must be"):
        EnsemblePosterior(*arguments)
