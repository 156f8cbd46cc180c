"""The table of all methods."""

import itertools
import json

import numpy as np
import pytest

import agents
import experiments.methods as command
from experiments import cli, walks
from experiments.methods import EACH, FILE, PLACES, QUARTER, ROUNDS, MethodsConfig, differences, methods, table
from experiments.walks import simulated, walk
from prefenv.synthetic.settings import PRESETS, SyntheticSettings

FEW = ("drts", "apl")


class Bar:
    def __init__(self):
        self.n = 0

    def update(self):
        self.n += 1


@pytest.fixture
def small(monkeypatch):
    """The same presets, smaller."""
    for name, settings in list(PRESETS.items()):
        changed = {"n_prompts": 4, "n_eval_prompts": 4, "warm_labels": 0, "embedding_size": 4, "n_generators": 4}
        values = vars(settings) | changed | {"n_candidates": min(settings.n_candidates, 4)}
        monkeypatch.setitem(PRESETS, name, SyntheticSettings(**values))


def test_a_table_for_each_world_and_form_and_it_goes_on(tmp_path, small, capsys):
    config = MethodsConfig(seeds=3, agents=FEW, out=tmp_path)
    assert methods(config) == 0
    text = (tmp_path / "methods.md").read_text()
    assert text.count("| random ") == len(PLACES)
    assert text.count("| oracle-greedy (privileged) ") == len(PLACES)
    assert text.count("| apl ") == sum(form == QUARTER for _, form in PLACES)  # it only chooses prompts
    assert (tmp_path / "methods.png").stat().st_size > 10_000
    lines = (tmp_path / FILE).read_text().splitlines()
    cut = "\n".join(lines[:5]) + "\n" + lines[5][:20]
    (tmp_path / FILE).write_text(cut)
    assert methods(config) == 0
    again = (tmp_path / FILE).read_text().splitlines()

    def without_times(rows):
        return [{**json.loads(row), "found": json.loads(row).get("found", {}) | {"microseconds": 0}} for row in rows]

    assert without_times(again) == without_times(lines)
    with pytest.raises(ValueError, match="seeds"):
        methods(MethodsConfig(seeds=4, agents=FEW, out=tmp_path))
    capsys.readouterr()


def test_how_far_the_learned_policy_is_ahead_has_its_sign():
    def numbers(area):
        names = ("final", "reward model", "capability")
        return {name: np.zeros(4) for name in names} | {
            "area": np.array(area) + np.array([0.0, 0.01, 0.0, 0.01]), "microseconds": np.ones(1),
        }  # fmt: skip

    place = {"random": numbers(0.5), "drts": numbers(0.52), "learned": numbers(0.55), "oracle-greedy": numbers(0.6)}
    rows = {row.split("|")[1].strip(): row.split("|")[-2].strip() for row in table(place).splitlines()}
    assert rows["method"] == "learned is ahead by, points"
    assert rows["drts"].startswith("+3.00")
    assert rows["oracle-greedy (privileged)"].startswith("-5.00")
    assert rows["learned"] == "-"
    del place["learned"]
    assert "learned" not in table(place)


def test_every_method_that_needs_no_weights_is_asked_for(tmp_path, small, monkeypatch, capsys):
    ran = []

    def run(config, cell, bar):
        ran.append(cell)
        return _numbers(len(ran))

    monkeypatch.setattr("experiments.methods._run", run)
    assert methods(MethodsConfig(out=tmp_path)) == 0
    for world, form in PLACES:
        here = {cell.method for cell in ran if (cell.world, cell.form) == (world, form)}
        expected = {
            key
            for key, spec in agents.AGENTS.items()
            if not spec.needs_weights and (form == QUARTER or spec.family != "prompts")
        }
        assert here == expected
    capsys.readouterr()


def _numbers(value, seeds=100):
    names = ("final", "area", "reward model", "capability")
    return {name: np.full(seeds, float(value)) for name in names} | {"microseconds": np.array([1.0])}


def test_table_by_hand():
    def found(area):
        return {
            "final": np.array([0.6, 0.8]), "area": np.array(area), "reward model": np.array([0.7, 0.8]),
            "capability": np.array([-0.1, -0.3]), "microseconds": np.array([2.5]),
        }  # fmt: skip

    place = {"random": found([0.5, 0.6]), "drts": found([0.52, 0.64]), "oracle-greedy": found([0.6, 0.7])}
    assert list(differences(place)) == ["oracle-greedy", "drts"]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(place).splitlines()]
    assert [row[0] for row in rows[2:]] == ["oracle-greedy (privileged)", "drts", "random"]
    # differences 2 and 4 hundredths: mean 3, Student interval 3 ± 12.7 · 1
    assert rows[3] == ["drts", "2", "0.700", "0.5800", "+3.00 [-9.71, +15.71]", "+0.30", "0.750", "-0.200", "2.5"]
    assert rows[4][4:6] == ["-", "-"]


def test_a_walk_is_one_episode_with_the_methods_memory_and_recipe():
    settings = SyntheticSettings(n_prompts=6, n_eval_prompts=4)
    bar = Bar()
    envs = simulated("sea", settings, 3, rounds=4, labels_per_round=2)
    assert envs.recipe == agents.recipe("sea")
    assert not envs.privileged
    assert simulated("maxmin", settings, 1, rounds=1).privileged
    walked = walk(envs, "coreset", [5, 6, 7], bar)
    assert bar.n == 4
    assert walked.curves["win_rate"].shape == (3, 5)
    assert walked.chosen.shape == walked.rejected.shape == (3, 8, settings.embedding_size)
    assert (np.abs(walked.chosen - walked.rejected).sum(axis=-1) > 0).all()
    np.testing.assert_allclose(walked.curves["win_rate"][:, 0], 0.5, atol=1e-5)


def test_all_places_have_as_many_labels():
    for form, share in ((EACH, 1.0), (QUARTER, 0.25)):
        assert ROUNDS[form] * share == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "1"], "seeds=1"),
        (["--agents", "ppo"], "method that needs no weights"),
        (["--agents", "drst"], "drts"),
    ],
)
def test_wrong_input_is_told(tmp_path, arguments, message, capsys):
    assert cli.main(["methods", "--out", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_walk_hands_on_the_memory_and_keeps_what_was_labelled(monkeypatch):
    settings = SyntheticSettings(n_prompts=6, n_eval_prompts=4)
    calls, seeds_ = [], []
    make = agents.make

    def spied(key, space, seed):
        agent = make(key, space, seed=seed)
        seeds_.append(seed)
        predict = agent.predict

        def spy(observation, state=None, episode_start=None):
            action, after = predict(observation, state, episode_start)
            calls.append((observation["embedding"], state, episode_start, after))
            return action, after

        agent.predict = spy
        return agent

    monkeypatch.setattr(walks.agents, "make", spied)
    walked = walks.walk(
        walks.simulated("coreset", settings, 3, 4, 2),
        "coreset",
        [5, 6, 7],
        Bar(),
    )
    assert seeds_ == [5]
    assert [start.tolist() for _, _, start, _ in calls] == [[True] * 3] + [[False] * 3] * 3
    assert all(state is before[3] for before, (_, state, _, _) in itertools.pairwise(calls))
    for t, (embedding, *_) in enumerate(calls):
        shown = embedding.reshape(3, -1, embedding.shape[-1])
        for side in (walked.chosen, walked.rejected):
            labelled = side[:, 2 * t : 2 * t + 2]
            assert (labelled[:, :, None] == shown[:, None]).all(axis=-1).any(axis=-1).all()


def test_numbers_of_a_cell_by_hand(monkeypatch):
    asked = []

    def simulated(*arguments):
        asked.append(arguments)
        return "envs"

    curves = {
        "win_rate": np.array([[0.5, 0.6, 0.8], [0.5, 0.5, 0.5]]),
        "capability": np.array([[0.0, 1.0, 3.0], [0.0, 0.0, -1.0]]),
    }
    monkeypatch.setattr(command, "simulated", simulated)
    monkeypatch.setattr(command, "walk", lambda *_: walks.Walk(curves, None, None, seconds_choosing=0.5))
    monkeypatch.setattr(
        command, "accuracies", lambda *_: {"in style": np.array([0.6, 0.7]), "off style": np.array([0.8, 0.9])}
    )
    monkeypatch.setitem(command.ROUNDS, command.QUARTER, 2)
    found = command._run(
        command.MethodsConfig(seeds=2, first_seed=7), command.Cell("synthetic", command.QUARTER, "drts"), None
    )
    n = command.PRESETS["synthetic"].n_prompts
    assert asked == [("drts", command.PRESETS["synthetic"], 2, 2, n // 4)]
    expected = {
        "final": [0.8, 0.5],
        "area": [(0.55 + 0.7) / 2, 0.5],
        "reward model": [0.7, 0.8],
        "capability": [3.0, -1.0],
        "microseconds": [1e6 * 0.5 / (2 * 2 * n)],
    }
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values)
