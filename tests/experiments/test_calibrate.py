"""Calibration: published numbers, the reward model, the verdict, going on."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import calibration_report as report
from experiments import cli
from experiments.calibrate import FILE, LOSSES, CalibrateConfig, Cell, calibrate, world_of
from experiments.calibration_report import COLUMNS, METHODS, RankCorrelation, rank_correlation, verdict
from experiments.reward_model import fit_reward_model, held_out_pairs, ranking_accuracy
from prefenv.synthetic.settings import PRESETS, SyntheticSettings
from prefenv.synthetic.story import Hidden

SMALL = SyntheticSettings(
    n_prompts=3, n_candidates=4, n_generators=4, n_samples=4, n_eval_prompts=8, embedding_size=4, learning_rate=0.1
)
ON_POLICY = dataclasses.replace(SMALL, n_prompts=20, n_candidates=2, on_policy=True)
CELLS = len(LOSSES) * len(METHODS) + 2


def config(out, **changes):
    defaults = {"seeds": 2, "rounds": 2, "on_policy_rounds": 2, "active_ultrafeedback": SMALL, "on_policy": ON_POLICY}
    return CalibrateConfig(out=out, **(defaults | changes))


def hidden(generator_mean):
    """A world with the reward along the first feature."""
    b, g, size = generator_mean.shape
    first = np.zeros((b, size), dtype=np.float32)
    first[:, 0] = 1
    return Hidden(first, first, first, first, generator_mean.astype(np.float32), np.ones((b, g), dtype=np.float32))


@pytest.fixture
def no_picture(monkeypatch):
    """Pictures take a second each."""
    monkeypatch.setattr("experiments.calibration_report.picture", lambda *_: None)


# Published numbers


def test_the_published_numbers_are_those_of_the_paper():
    rows = {method: [column.published.get(method) for column in COLUMNS] for method in METHODS}
    assert rows == {
        "deltaqwen": [13.7, 10.0, 10, 15],
        "drts": [12.7, 31.2, 16, 18],
        "deltaucb": [12.0, 33.9, 13, 18],
        "maxmin": [11.1, 31.8, 15, 15],
        "random": [4.6, 27.8, 12, 17],
        "ultrafeedback": [3.6, 28.7, 14, 18],
        "dts": [2.3, 22.4, 13, 10],
        "infomax": [1.6, 29.7, None, 1],
        "maxminlcb": [1.6, 23.0, 1, 1],
    }


def test_two_columns_are_asked_for_and_two_are_held_out():
    assert [(column.title, column.required) for column in COLUMNS] == [
        ("DPO", 0.9), ("reward model", 0.6), ("IPO", None), ("SimPO", None)
    ]  # fmt: skip


# Rank correlation and verdict


def test_a_rank_correlation_by_hand():
    column = COLUMNS[0]
    published = column.published
    own = {method: np.full(3, published[method]) for method in METHODS}
    assert rank_correlation(column, own).value == pytest.approx(1.0)
    assert rank_correlation(column, {m: -v for m, v in own.items()}).value == pytest.approx(-1.0)
    plain = report.Column("x", "x", {"random": 3.0, "drts": 2.0, "dts": 1.0}, "own")
    swapped = {"random": np.array([2.0]), "drts": np.array([3.0]), "dts": np.array([1.0])}
    # two ranks are off by one: 1 - 6 · 2 / (n (n² - 1))
    assert rank_correlation(plain, swapped).value == pytest.approx(1 - 6 * 2 / (3 * 8))


def test_published_ties_share_a_rank():
    column = report.Column("x", "x", {"random": 2.0, "drts": 1.0, "dts": 1.0}, "own")
    own = {"random": np.array([3.0]), "drts": np.array([2.0]), "dts": np.array([1.0])}
    assert rank_correlation(column, own).value == pytest.approx(np.sqrt(3) / 2)


def test_a_method_that_was_not_published_does_not_count():
    ipo = next(column for column in COLUMNS if column.key == "ipo")
    own = {method: np.full(2, ipo.published.get(method, 1000.0)) for method in METHODS}
    assert rank_correlation(ipo, own).value == pytest.approx(1.0)


def test_the_interval_is_over_seeds_and_the_same_every_time():
    column = report.Column("x", "x", {"random": 2.0, "drts": 1.0}, "own")
    own = {"random": np.array([1.0, 1.0, -1.0]), "drts": np.zeros(3)}
    found = rank_correlation(column, own)
    assert (found.value, found.low, found.high) == pytest.approx(
        (1.0, -1.0, 1.0)
    )  # both signs come up among the resamples
    assert rank_correlation(column, own) == found


def test_verdicts():
    dpo, reward_model, ipo, _ = COLUMNS
    assert verdict(dpo, RankCorrelation(0.9, 0.8, 1.0)).endswith("asked for at least 0.9: reached")
    assert verdict(dpo, RankCorrelation(0.8999, 0.8, 1.0)).endswith("asked for at least 0.9: not reached")
    assert verdict(reward_model, RankCorrelation(0.6, 0.5, 0.7)).endswith("at least 0.6: reached")
    assert verdict(ipo, RankCorrelation(1.0, 1.0, 1.0)) == (
        "IPO: rank correlation 1.00 [1.00, 1.00], held-out, not used for calibration"
    )


def test_whether_win_rate_rises_while_capability_falls():
    rising, falling = np.array([[0.5, 0.6], [0.5, 0.7]]), np.array([[0.0, -0.2], [0.0, -0.21]])
    noisy = np.array([[0.0, -0.2], [0.0, 0.3]])
    curves = {
        "random": {"win_rate": rising, "capability": falling},
        "apl": {"win_rate": rising, "capability": noisy},
    }
    lines = report.on_policy_lines(curves)
    assert lines[0].endswith("final win rate +0.000 [+0.000, +0.000], area +0.000 [+0.000, +0.000]")
    assert "random: win rate rises while capability falls: no" in lines[2]  # two seeds: the interval is wide
    steady = {"win_rate": np.tile([0.5, 0.6], (3, 1)), "capability": np.tile([0.0, -0.2], (3, 1))}
    assert "falls: yes" in report.on_policy_lines({"random": steady, "apl": steady})[2]


# The reward model


def test_one_step_of_the_reward_model_by_hand():
    chosen = np.array([[[1.0, 0.0], [0.0, 3.0]]])
    rejected = np.array([[[0.0, 0.0], [0.0, 1.0]]])
    # half of the mean difference: (1/2) ((1, 0) + (0, 2)) / 2
    np.testing.assert_allclose(fit_reward_model(chosen, rejected, steps=1), [[0.25, 0.5]])
    np.testing.assert_allclose(fit_reward_model(chosen, rejected, steps=1, step_size=2.0), [[0.5, 1.0]])


def test_the_reward_model_finds_the_minimum_where_there_is_one():
    difference = np.array([[[1.0], [1.0], [1.0], [-1.0]]])  # three of four one way: log-odds log 3
    weights = fit_reward_model(difference, np.zeros_like(difference), steps=2000)
    assert weights[0, 0] == pytest.approx(np.log(3))


def test_worlds_are_fitted_apart_and_no_label_changes_nothing_but_the_mean():
    rng = np.random.default_rng(0)
    chosen, rejected = rng.standard_normal((2, 3, 5, 2))
    both = fit_reward_model(chosen, rejected, steps=20)
    np.testing.assert_allclose(both[1:2], fit_reward_model(chosen[1:2], rejected[1:2], steps=20))
    padded = [np.concatenate([side, chosen], axis=1) for side in (chosen, rejected)]
    np.testing.assert_allclose(fit_reward_model(*padded, steps=20, step_size=2.0), both)


def test_accuracy_by_hand():
    difference = np.array([[[1.0, 5.0, 1.0], [1.0, 0.0, -1.0], [0.0, 1.0, 1.0], [-1.0, 0.0, -1.0]]])
    reward, weights = np.array([[0.0, 0.0, 1.0]]), np.array([[1.0, 0.0]])
    assert ranking_accuracy(weights, difference, reward) == pytest.approx(2.5 / 4)  # one right is unsure: one half


def test_held_out_pairs_are_of_the_generators_and_of_strangers():
    settings = dataclasses.replace(SMALL, style_spread=0.5)
    size = settings.embedding_size + 1
    mean = np.zeros((2, 4, size))
    mean[:, :, 0] = [-300, -100, 100, 300]  # skill
    mean[:, :, 1] = 50 * np.array([-1, 1, -1, 1])  # style
    pairs = held_out_pairs(settings, hidden(mean), seeds=[1, 2], count=4000)
    gaps = np.abs(pairs.in_style[..., 0]).round(-2)
    assert set(gaps.ravel()) == {200.0, 400.0, 600.0}  # never a generator against itself
    assert pairs.off_style.shape == (2, 4000, size)
    variance = pairs.off_style.var(axis=1)
    np.testing.assert_allclose(variance[:, 0], 2.0, rtol=0.1)  # equal skill: only the responses differ
    np.testing.assert_allclose(variance[:, 1:], 2 * (1 + 0.5**2), rtol=0.1)


def test_held_out_pairs_depend_on_the_seed_alone():
    truth = hidden(np.zeros((2, 4, 5)))
    one, again = (held_out_pairs(SMALL, truth, seeds=[3, 4], count=8) for _ in range(2))
    np.testing.assert_array_equal(one.off_style, again.off_style)
    other = held_out_pairs(SMALL, truth, seeds=[4, 5], count=8)
    np.testing.assert_array_equal(one.off_style[1], other.off_style[0])
    assert not np.array_equal(one.in_style[0], other.in_style[0])


# Worlds


def test_the_presets_are_those_that_were_calibrated():
    assert PRESETS["active-ultrafeedback"] == SyntheticSettings(
        n_prompts=20, n_candidates=30, n_generators=30, embedding_size=80, style_spread=1.2, learning_rate=0.01,
        warm_labels=2000,
    )  # fmt: skip
    assert PRESETS["on-policy"] == SyntheticSettings(
        n_prompts=64, n_candidates=2, n_generators=16, skill_spread=0.0, style_spread=0.0, on_policy=True,
        reference_strength=1.0, capability_conflict=0.8,
    )  # fmt: skip


def test_the_other_losses_have_settings_of_their_own():
    assert world_of(SMALL, "ipo") == dataclasses.replace(SMALL, loss="ipo")
    simpo = world_of(SMALL, "simpo")
    assert (simpo.loss, simpo.beta, simpo.simpo_margin) == ("simpo", 2.0, 1.0)
    assert simpo.learning_rate * simpo.beta == pytest.approx(SMALL.learning_rate * SMALL.beta)


# The command


def test_writes_a_line_a_method_a_table_and_a_picture(tmp_path, capsys):
    assert calibrate(config(tmp_path)) == 0
    lines = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert len(lines) == 1 + CELLS
    assert {"gain", "in style", "off style"} == set(lines[1]["found"])
    printed = capsys.readouterr().out
    assert "maxmin (privileged)" in printed
    assert printed.count("asked for at least") == 2
    assert printed.count("held-out, not used for calibration") == 2
    assert "apl - random, paired by seed" in printed
    assert (tmp_path / "calibration.md").read_text() in printed
    assert (tmp_path / "calibration.png").read_bytes().startswith(b"\x89PNG")


def test_goes_on_where_it_was_stopped(tmp_path, monkeypatch, no_picture):
    calibrate(config(tmp_path / "at_once"))
    expected = (tmp_path / "at_once" / FILE).read_bytes()
    calibrate(config(tmp_path / "stopped"))
    file = tmp_path / "stopped" / FILE
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:12]) + lines[12][:20])  # a crash cut the line short
    calibrate(config(tmp_path / "stopped"))
    assert file.read_bytes() == expected
    monkeypatch.setattr("experiments.calibrate._active_ultrafeedback", None)  # nothing is run again
    monkeypatch.setattr("experiments.calibrate._on_policy", None)
    assert calibrate(config(tmp_path / "stopped")) == 0
    assert file.read_bytes() == expected


def test_refuses_results_of_other_settings(tmp_path, no_picture):
    calibrate(config(tmp_path))
    before = (tmp_path / FILE).read_bytes()
    other = dataclasses.replace(SMALL, learning_rate=0.2)
    for changes, name in (({"seeds": 3}, "seeds"), ({"active_ultrafeedback": other}, "active_ultrafeedback")):
        with pytest.raises(ValueError, match=rf"other settings \({name}\)"):
            calibrate(config(tmp_path, **changes))
    assert (tmp_path / FILE).read_bytes() == before


def test_refuses_a_file_that_is_no_calibration(tmp_path):
    (tmp_path / FILE).write_text("something else\n")
    with pytest.raises(ValueError, match="no file of this command"):
        calibrate(config(tmp_path))


@pytest.mark.parametrize(("name", "value"), [("seeds", 1), ("first_seed", -1), ("rounds", 0), ("on_policy_rounds", 0)])
def test_refuses_numbers_that_cannot_be(tmp_path, name, value):
    with pytest.raises(ValueError, match=name):
        calibrate(config(tmp_path, **{name: value}))


def test_the_command_line_reaches_it(tmp_path, capsys):
    assert cli.main(["calibrate", "--seeds", "1", "--out", str(tmp_path)]) == 2
    assert "seeds=1" in capsys.readouterr().err


def test_the_seeds_are_worlds_of_their_own(tmp_path, no_picture):
    """A method's numbers of a seed do not hang on which seeds run beside it, where the method draws nothing."""
    calibrate(config(tmp_path / "two"))
    calibrate(config(tmp_path / "shifted", first_seed=1))
    found = {}
    for name in ("two", "shifted"):
        for line in (tmp_path / name / FILE).read_text().splitlines()[1:]:
            entry = json.loads(line)
            found[name, Cell(entry["world"], entry["method"], entry["loss"])] = entry["found"]
    cell = Cell("active-ultrafeedback", "maxmin", "dpo")
    for kind in ("gain", "in style", "off style"):
        assert found["two", cell][kind][1] == pytest.approx(found["shifted", cell][kind][0], abs=1e-6)
