"""Labels: how often, ties, mistakes, edges."""

import numpy as np
import pytest
from scipy.special import expit

from prefenv.oracles.bradley_terry import BradleyTerryOracle, label_chances
from prefenv.types import Pairs
from tests.conftest import first_coordinate, make_pool


class TestOracle:
    def labels(self, gap, repeats=20_000, seed=0, **settings):
        oracle = BradleyTerryOracle(lambda _: np.array([[gap, 0.0]]), **settings)
        oracle.reset(np.random.default_rng(seed))
        pool = make_pool(np.ones((1, 2), dtype=bool), np.random.default_rng(0))
        zeros = np.zeros(repeats, dtype=np.int64)
        return oracle.compare(pool, Pairs(zeros, zeros, zeros + 1))

    def compare(self, temperature, gap, **settings):
        return (self.labels(gap, temperature=temperature, **settings).chosen == 0).mean()

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

    def test_padding_may_have_any_reward(self):
        oracle = BradleyTerryOracle(lambda _: np.array([[1.0, 2.0, np.nan]]), 1.0)
        pool = make_pool(np.array([[True, True, False]]), np.random.default_rng(0))
        assert oracle.score(pool).tolist() == [[1.0, 2.0, 0.0]]

    def test_negative_temperature(self):
        with pytest.raises(ValueError, match="temperature=-1"):
            BradleyTerryOracle(first_coordinate, -1)

    def test_ties_are_no_labels(self):
        labels = self.labels(1.0, temperature=0.5, tie=1.5)
        assert (labels.chosen == 0).sum() / 20_000 == pytest.approx(expit(2.0 - 1.5), abs=0.01)
        assert (labels.chosen == 1).sum() / 20_000 == pytest.approx(expit(-2.0 - 1.5), abs=0.01)
        assert labels.abstained == 20_000 - len(labels)

    def test_flips(self):
        assert self.compare(0.0, 1.0, flip=0.2) == pytest.approx(0.8, abs=0.01)
        assert self.compare(1.0, 1.0, flip=1.0) == pytest.approx(expit(-1.0), abs=0.01)
        labels = self.labels(1.0, temperature=1.0, tie=1.0, flip=0.3)
        first, second = expit(0.0), expit(-2.0)
        assert (labels.chosen == 0).sum() / 20_000 == pytest.approx(0.7 * first + 0.3 * second, abs=0.01)

    def test_a_tie_without_noise_needs_equal_rewards(self):
        assert self.labels(0.1, temperature=0.0, tie=5.0).abstained == 0
        labels = self.labels(0.0, temperature=0.0, tie=1.0)
        assert len(labels) / 20_000 == pytest.approx(2 * expit(-1.0), abs=0.01)
        assert (labels.chosen == 0).mean() == pytest.approx(0.5, abs=0.02)

    @pytest.mark.parametrize("wrong", [{"tie": -1.0}, {"flip": 1.1}, {"flip": float("nan")}, {"tie": float("nan")}])
    def test_settings_that_cannot_be(self, wrong):
        with pytest.raises(ValueError, match=f"oracle {next(iter(wrong))}"):
            BradleyTerryOracle(first_coordinate, **wrong)


@pytest.mark.parametrize("settings", [{}, {"tie": 0.7}, {"flip": 0.1}, {"tie": 2.0, "flip": 0.4}])
@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1.0, 1e300])
def test_chances_are_symmetric_and_never_more_than_one(settings, temperature):
    gap = np.array([-1e300, -2.0, 0.0, 2.0, 1e300])
    first, second = label_chances(gap, temperature, **settings)
    np.testing.assert_allclose(first, second[::-1], atol=1e-12)
    assert np.all((first >= 0) & (second >= 0) & (first + second <= 1 + 1e-12))
