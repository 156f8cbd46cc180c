"""Win rates, their intervals, and the constant of an episode that makes them cheap."""

import numpy as np
import pytest
from scipy.special import expit

from prefenv.evaluation.win_rate import chance_to_beat, sampled_win_rate, win_rate


@pytest.mark.parametrize("temperature", [0.0, 1e-40, 0.5, 3.0])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_chance_to_beat_is_the_sum_over_all_opponents(temperature, axis):
    rng = np.random.default_rng(0)
    reward = rng.integers(-2, 3, size=(4, 5, 6)).astype(np.float64)  # with ties
    prob = rng.random((4, 5, 6))
    prob /= prob.sum(axis=axis, keepdims=True)
    beats = np.moveaxis(chance_to_beat(reward, prob, temperature, axis=axis), axis, -1)
    r, p = np.moveaxis(reward, axis, -1), np.moveaxis(prob, axis, -1)
    gap = r[..., :, None] - r[..., None, :]
    wins = 0.5 + 0.5 * np.sign(gap) if temperature < 1e-30 else expit(gap / temperature)
    np.testing.assert_allclose(beats, (wins * p[..., None, :]).sum(axis=-1), atol=1e-12)
    single = chance_to_beat(reward.astype(np.float32), prob.astype(np.float32), temperature, axis=axis)
    assert single.dtype == np.float32
    np.testing.assert_allclose(np.moveaxis(single, axis, -1), beats, atol=1e-6)


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


def test_sampled_win_rate_has_an_interval_at_the_ends_too():
    for wins in (np.ones(32), np.zeros(32), np.ones(1), np.full(5, 0.5)):
        rate = sampled_win_rate(wins)
        assert rate.mean == wins.mean()
        assert rate.high - rate.low > 0.05


@pytest.mark.parametrize("n", [1, 1000, 100_000])
def test_sampled_interval_holds_its_mean(n):
    for wins in (np.ones(n), np.zeros(n)):
        rate = sampled_win_rate(wins)
        assert rate.low <= rate.mean <= rate.high


@pytest.mark.parametrize("p", [0.5, 0.8, 0.9, 0.95])
def test_sampled_win_rate_covers(p):
    wins = np.random.default_rng(0).random((2000, 32)) < p
    inside = [rate.low <= p <= rate.high for rate in map(sampled_win_rate, wins.astype(float))]
    assert np.mean(inside) > 0.92
