"""The comparison: what it writes, how it goes on, what it refuses."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import agents
from experiments import cli, report
from experiments.compare import CompareConfig, compare
from experiments.results import Run, only_writer
from prefenv.synthetic.settings import SyntheticSettings
from prefenv.synthetic.world import SyntheticEvaluator

ROOT = Path(__file__).parent.parent.parent
SMALL = SyntheticSettings(n_prompts=2, n_candidates=3, n_eval_prompts=8)


def config(out, **changes):
    defaults = {"agents": ("random", "drts", "maxmin"), "seeds": 2, "rounds": 3, "synthetic": SMALL}
    return CompareConfig(out=out, **(defaults | changes))


def runs_of(text):
    return [entry for entry in map(json.loads, text.splitlines()) if entry["kind"] == "run"]


def runs(out):
    return runs_of((out / "results.jsonl").read_text())


def what_happened(out):
    """The runs without their clock."""
    return sorted(
        json.dumps({k: v for k, v in run.items() if not k.startswith("seconds")}, sort_keys=True) for run in runs(out)
    )


def test_writes_one_line_a_run_a_table_a_picture_and_events(tmp_path, capsys):
    assert compare(config(tmp_path)) == 0
    assert len(runs(tmp_path)) == 6
    run = runs(tmp_path)[0]
    assert run["spent"] == [0, 2, 4, 6]
    assert run["labels"] == 6
    assert run["curves"]["win_rate"][0] == pytest.approx(0.5)
    printed = capsys.readouterr().out
    assert "maxmin (privileged)" in printed
    assert "tensorboard --logdir" in printed
    assert (tmp_path / "table.md").read_text().count("\n") == 5
    assert (tmp_path / "win_rate.png").read_bytes().startswith(b"\x89PNG")


def test_every_agent_has_the_same_tags_and_the_layout_overlays_them(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    compare(config(tmp_path))
    tags, curves = {}, {}
    for agent in ("random", "drts", "maxmin"):
        for run in ("seed_0", "seed_1", "mean"):
            events = accumulator.EventAccumulator(str(tmp_path / "tensorboard" / "synthetic" / agent / run))
            events.Reload()
            tags.setdefault(run, []).append(sorted(events.Tags()["scalars"]))
            if run == "seed_0":
                curves[agent] = [(event.step, event.value) for event in events.Scalars("policy/win_rate")]
    assert all(entry == tags[run][0] for run in tags for entry in tags[run])
    assert "labels/agreement" in tags["seed_0"][0]
    stored = {run["agent"]: run for run in runs(tmp_path) if run["seed"] == 0}
    for agent, points in curves.items():
        assert [step for step, _ in points] == stored[agent]["spent"]
        np.testing.assert_allclose([value for _, value in points], stored[agent]["curves"]["win_rate"], rtol=1e-6)
    layout = accumulator.EventAccumulator(str(tmp_path / "tensorboard" / "layout"))
    layout.Reload()
    assert "custom_scalars__config__" in layout.Tags()["tensors"]


def test_goes_on_without_repeating_and_grows(tmp_path, capsys):
    compare(config(tmp_path, agents=("random",)))
    before = (tmp_path / "results.jsonl").read_text()
    compare(config(tmp_path, agents=("random",)))
    assert (tmp_path / "results.jsonl").read_text() == before
    assert "2 of them here already" in capsys.readouterr().out
    compare(config(tmp_path, agents=("random", "drts"), seeds=3))
    assert (tmp_path / "results.jsonl").read_text().startswith(before)
    cells = [(run["agent"], run["seed"]) for run in runs(tmp_path)]
    assert sorted(cells) == [("drts", 0), ("drts", 1), ("drts", 2), ("random", 0), ("random", 1), ("random", 2)]


def test_a_grown_comparison_is_the_one_done_at_once(tmp_path):
    compare(config(tmp_path / "at_once"))
    compare(config(tmp_path / "grown", agents=("maxmin",), seeds=1))
    compare(config(tmp_path / "grown"))
    assert what_happened(tmp_path / "at_once") == what_happened(tmp_path / "grown")


def test_killed_in_the_middle_it_loses_only_the_run_in_hand(tmp_path):
    arguments = [
        "compare",
        "--agents",
        "random",
        "drts",
        "--seeds",
        "150",
        "--rounds",
        "5",
        "--out",
        str(tmp_path / "a"),
    ]
    command = [sys.executable, "-m", "experiments.cli", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    results = tmp_path / "a" / "results.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not results.exists() or results.read_bytes().count(b"\n") < 20):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = results.read_text().split("\n")[:-1]
    assert 20 <= len(kept) < 301
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=300)
    assert results.read_text().split("\n")[: len(kept)] == kept
    assert len({(run["agent"], run["seed"]) for run in runs(tmp_path / "a")}) == len(runs(tmp_path / "a")) == 300


def test_a_line_cut_short_is_dropped_and_run_again(tmp_path):
    compare(config(tmp_path))
    expected = what_happened(tmp_path)
    file = tmp_path / "results.jsonl"
    file.write_bytes(file.read_bytes()[:-40])
    compare(config(tmp_path))
    assert what_happened(tmp_path) == expected


def test_a_failed_run_is_kept_told_and_run_again_when_asked(tmp_path, monkeypatch, capsys):
    evaluate = SyntheticEvaluator.evaluate
    calls = iter(range(100))

    def breaks_once(self, posterior):
        if next(calls) == 6:  # in the second run
            raise FloatingPointError("made up")
        return evaluate(self, posterior)

    monkeypatch.setattr(SyntheticEvaluator, "evaluate", breaks_once)
    assert compare(config(tmp_path)) == 1
    printed = capsys.readouterr().out
    assert "failed: synthetic drts seed 0: FloatingPointError: made up" in printed
    statuses = [run["status"] for run in runs(tmp_path)]
    assert (statuses.count("failed"), statuses.count("finished")) == (1, 5)
    assert compare(config(tmp_path)) == 1  # kept, not repeated
    assert len(runs(tmp_path)) == 6
    assert compare(config(tmp_path, retry_failed=True)) == 0
    assert len(runs(tmp_path)) == 7
    assert compare(config(tmp_path)) == 0  # the later line counts


def test_refuses_to_mix_settings_versions_and_writers(tmp_path):
    compare(config(tmp_path))
    with pytest.raises(ValueError, match=r"rounds: 3 there, 4 now.*--out"):
        compare(config(tmp_path, rounds=4))
    with pytest.raises(ValueError, match=r"beta: 0\.1 there, 0\.2 now"):
        compare(config(tmp_path, synthetic=dataclasses.replace(SMALL, beta=0.2)))
    with only_writer(tmp_path), pytest.raises(RuntimeError, match="another comparison"):
        compare(config(tmp_path))
    file = tmp_path / "results.jsonl"
    whole = file.read_text()
    file.write_text(whole.replace('"version": 1', '"version": 7', 1))
    with pytest.raises(ValueError, match=r"line 1: results of version 7, this package reads 1"):
        compare(config(tmp_path))
    run = json.dumps(runs_of(whole)[0])
    for broken in (
        "{}", "[]", "no json", '"text"', '{"version": 1, "kind": "other"}',
        '{"version": 1, "kind": "run", "world": "synthetic"}',
        run,  # whose settings are not there
        run.replace('"win_rate"', '"loss_rate"'), run.replace('"finished"', '"begun"'),
    ):  # fmt: skip
        file.write_text(broken + "\n" + whole)
        with pytest.raises(ValueError, match="line 1: not a line of results"):
            compare(config(tmp_path))
    file.write_bytes(b"\xff\xfe\n" + whole.encode())
    with pytest.raises(ValueError, match="line 1: not a line of results"):
        compare(config(tmp_path))


def test_a_file_for_a_folder_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file: name a folder"):
        compare(config(tmp_path / "file"))


def test_weights_that_cannot_be_read_are_told_and_spoil_nothing(tmp_path):
    pytest.importorskip("torch")
    junk = tmp_path / "junk"
    junk.write_bytes(b"junk")
    settings = config(tmp_path / "out", agents=("random", "ppo"), seeds=1, ppo_weights=junk)
    with pytest.raises(ValueError, match="no safetensors file"):
        compare(settings)
    assert compare(dataclasses.replace(settings, ppo_weights=None, ppo_steps=80)) == 0
    about = json.loads((tmp_path / "out" / "ppo_80_steps" / "train.json").read_text())
    assert about["rounds"] == 3  # as compared
    assert about["settings"]["n_prompts"] == 2


def test_oracle_greedy_is_refused_where_the_truth_is_not_known(tmp_path, monkeypatch):
    import prefenv

    spec = prefenv.WORLDS["synthetic"]

    def without_truth(settings, name):
        world = spec.build(settings, name)
        world.gain = None
        return world

    monkeypatch.setitem(prefenv.WORLDS, "synthetic", dataclasses.replace(spec, build=without_truth))
    with pytest.raises(ValueError, match="leave the agent out"):
        compare(config(tmp_path, agents=("random", "oracle-greedy")))
    assert not (tmp_path / "results.jsonl").exists()
    assert compare(config(tmp_path)) == 0


def test_texts_are_kept_round_by_round(tmp_path, monkeypatch):
    from prefenv.synthetic.world import SyntheticPool

    def rows(self, preferences):
        return [{"prompt_id": int(p), "prompt": "p", "chosen": "c", "rejected": "r"} for p in preferences.prompt]

    monkeypatch.setattr(SyntheticPool, "rows", rows, raising=False)
    for _ in range(2):  # a run that is repeated begins its file anew
        (tmp_path / "results.jsonl").unlink(missing_ok=True)
        compare(config(tmp_path, agents=("random",), seeds=1))
    lines_ = (tmp_path / "preferences" / "synthetic-random-seed_0.jsonl").read_text().splitlines()
    assert [(row["round"], row["prompt_id"]) for row in map(json.loads, lines_)] == [
        (1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1)
    ]  # fmt: skip


def test_worlds_are_paired_by_seed(tmp_path, monkeypatch):
    from prefenv.synthetic.world import SyntheticSource

    first_pools = []
    draw, reset = SyntheticSource.draw, SyntheticSource.reset

    def noted_reset(self, rng):
        reset(self, rng)
        self.fresh = True

    def noted_draw(self):
        pool = draw(self)
        if self.fresh:
            first_pools.append(pool.embedding)
        self.fresh = False
        return pool

    monkeypatch.setattr(SyntheticSource, "reset", noted_reset)
    monkeypatch.setattr(SyntheticSource, "draw", noted_draw)
    compare(config(tmp_path, agents=("random", "drts"), rounds=1))
    seed_0, seed_0_again, seed_1, seed_1_again = first_pools
    np.testing.assert_array_equal(seed_0, seed_0_again)
    np.testing.assert_array_equal(seed_1, seed_1_again)
    assert not np.allclose(seed_0, seed_1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--agents", "rnadom"], "did you mean 'random'"),
        (["--world", "lm"], "did you mean 'llm'"),
        (["--seeds", "0"], "seeds=0"),
        (["--rounds", "0"], "rounds=0"),
        (["--labels-per-round", "0"], "labels_per_round=0"),
        (["--labels-per-round", "49"], "a pool of world 'synthetic' has 48 pairs"),
        (["--labels-per-round", "40", "--agents", "sea"], "take a smaller share"),
        (["--first-seed", "1000000000"], "belong to training"),
        (["--agents", "random", "random"], "none twice"),
        (["--agents", "ppo", "--ppo-weights", "nowhere.safetensors"], "no weights at 'nowhere.safetensors'"),
        (["--synthetic.n-candidates", "1"], "n_candidates=1"),
        (["--world", "llm", "--llm.model", "nowhere/at/all"], "is not a folder"),
    ],
)
def test_wrong_input_is_told_before_anything_runs(tmp_path, arguments, message, capsys):
    out = tmp_path / "out"
    try:
        code = cli.main(["compare", "--out", str(out), *arguments])
    except SystemExit as stop:  # the parser's own refusal
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2
    assert message in captured.err + captured.out
    assert not (out / "results.jsonl").exists()


def test_lists(capsys):
    assert cli.main(["agents"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(agents.AGENTS)
    assert cli.main(["worlds"]) == 0
    assert "llm" in capsys.readouterr().out


def test_ppo_is_trained_once_and_its_weights_are_not_mixed(tmp_path):
    pytest.importorskip("torch")
    settings = config(tmp_path, agents=("random", "ppo"), seeds=1, ppo_steps=100)
    assert compare(settings) == 0
    weights = tmp_path / "ppo_100_steps" / "ppo.safetensors"
    stamp = weights.stat().st_mtime_ns
    assert compare(dataclasses.replace(settings, seeds=2)) == 0
    assert weights.stat().st_mtime_ns == stamp
    other = tmp_path / "other.safetensors"
    from agents.learned.network import PairScorer, save_scorer

    save_scorer(PairScorer(), other)
    with pytest.raises(ValueError, match="other weights"):
        compare(dataclasses.replace(settings, ppo_weights=other, seeds=3))


class TestReport:
    def run(self, agent, seed, curve, **changes):
        values = {"spent": [0, 4, 8], "curves": {"win_rate": curve}, "labels": 8, "seconds_choosing": 0.5} | changes
        return Run("synthetic", agent, seed, "finished", **values)

    def test_area_by_hand(self):
        assert report.area(self.run("random", 0, [0.5, 0.7, 0.8])) == pytest.approx((0.6 + 0.75) / 2)

    def test_interval_by_hand(self):
        found = report.interval([1.0, 2.0, 3.0])
        assert found.mean == 2.0
        assert found.high - found.mean == pytest.approx(4.302653 / np.sqrt(3))  # t quantile, 2 degrees of freedom
        assert np.isnan(report.interval([1.0]).low)

    def test_difference_is_paired_by_seed(self):
        # seeds differ a lot, the difference within a seed never: the interval has no width
        runs_ = [self.run("random", seed, [0.5, 0.5 + seed / 10, 0.7]) for seed in range(3)]
        runs_ += [self.run("drts", seed, [0.5, 0.6 + seed / 10, 0.7]) for seed in range(4)]
        row = report.table(runs_, ["synthetic"], ["random", "drts"]).splitlines()[3]
        assert "+0.050 [+0.050, +0.050]" in row
        assert [cell.strip() for cell in row.split("|")[3:11]] == [
            "4", "0.700", "0.675", "+0.050 [+0.050, +0.050]", "-", "8", "2", "0.5"
        ]  # fmt: skip

    def test_headroom_by_hand(self):
        curves = {"random": [0.5, 0.5, 0.5], "drts": [0.5, 0.6, 0.6], "oracle-greedy": [0.5, 0.9, 0.9]}
        runs_ = [self.run(agent, seed, curve) for agent, curve in curves.items() for seed in (0, 1)]
        rows = report.table(runs_, ["synthetic"], list(curves)).splitlines()[2:]
        assert [row.split("|")[7].strip() for row in rows] == ["0.00", "0.25", "1.00"]

    def test_one_seed_has_no_interval_and_no_baseline_no_difference(self):
        runs_ = [self.run("random", 0, [0.5, 0.6, 0.7]), self.run("drts", 0, [0.5, 0.7, 0.7])]
        assert "+0.050 " in report.table(runs_, ["synthetic"], ["random", "drts"])
        assert "[" not in report.table(runs_, ["synthetic"], ["random", "drts"])
        assert "| - " in report.table(runs_[1:], ["synthetic"], ["drts"])


def test_agents_are_seeded_by_the_run_and_only_the_privileged_see_scores(tmp_path, monkeypatch):
    import agents

    seen = []
    make = agents.make

    def spy(key, **arguments):
        agent = make(key, **arguments)
        predict = agent.predict

        def watched(observation, *rest, **named):
            seen.append((key, arguments["seed"], "oracle_score" in observation))
            return predict(observation, *rest, **named)

        agent.predict = watched
        return agent

    monkeypatch.setattr(agents, "make", spy)
    assert compare(config(tmp_path, rounds=1)) == 0
    assert set(seen) == {(key, seed, key == "maxmin") for key in ("random", "drts", "maxmin") for seed in (0, 1)}


def test_a_method_gets_its_recipe_its_memory_and_its_form(tmp_path, monkeypatch):
    from prefenv.forms import PrefAcquireBudgetEnv

    recipes, states = set(), []
    begin, make = PrefAcquireBudgetEnv.__init__, agents.make

    def noted(self, *arguments, **named):
        recipes.add(named["recipe"])
        begin(self, *arguments, **named)

    def spy(key, **arguments):
        agent = make(key, **arguments)
        predict = agent.predict

        def watched(observation, state, episode_start):
            states.append((key, state is None, episode_start.tolist()))
            return predict(observation, state, episode_start)

        agent.predict = watched
        return agent

    monkeypatch.setattr(PrefAcquireBudgetEnv, "__init__", noted)
    monkeypatch.setattr(agents, "make", spy)
    assert compare(config(tmp_path, agents=("coreset", "sea", "xpo"), seeds=1, rounds=2, labels_per_round=3)) == 0
    assert recipes == {agents.recipe(key) for key in ("coreset", "sea", "xpo")}
    assert states[:2] == [("coreset", True, [True]), ("coreset", False, [False])]
    runs = [line for line in map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines()) if "spent" in line]
    assert [run["spent"] for run in runs] == [[0, 3, 6]] * 3


def test_learned_runs_carry_the_digest_of_their_weights(tmp_path):
    network = pytest.importorskip("agents.learned.network")
    weights = tmp_path / "w.safetensors"
    network.save_scorer(network.PairScorer(), weights)
    compare(config(tmp_path / "out", agents=("random", "ppo"), seeds=1, ppo_weights=weights))
    digests = {run["agent"]: run["weights"] for run in runs(tmp_path / "out")}
    assert digests["random"] is None
    assert len(digests["ppo"]) == 16
