"""The preference set that a user takes home."""

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import agents
import experiments.acquire as module
from experiments import cli
from experiments.acquire import CARD, COLUMNS, JSONL, PARQUET, AcquireConfig, acquire
from prefenv.replay.data import ReplayData
from prefenv.replay.features import EmbeddingSettings, FeatureWriter
from prefenv.replay.settings import ReplaySettings
from prefenv.replay.surface import SURFACE
from prefenv.replay.table import PoolTable
from tests.prefenv.replay.small import make_table

SMALL = ReplaySettings(n_prompts=4, n_eval_prompts=9)


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    return make_table(tmp_path_factory.mktemp("pools"))


def config(pools, out, **changed):
    return AcquireConfig(**{"pools": pools, "out": out, "budget": 30, "replay": SMALL} | changed)


def rows_of(out):
    return [json.loads(line) for line in (out / JSONL).read_text(encoding="utf-8").split("\n") if line]


def test_rows_are_of_the_table_and_the_same_in_both_files(pools, tmp_path, capsys):
    assert acquire(config(pools, tmp_path)) == 0
    rows = rows_of(tmp_path)
    assert len(rows) == 30
    assert [tuple(row) for row in rows] == [COLUMNS] * 30
    assert pq.read_table(tmp_path / PARQUET).to_pylist() == rows
    table = PoolTable.open(pools)
    score = table.numbers("score")
    for row in rows:
        prompt = table.prompt_id.tolist().index(row["prompt_id"])
        candidates = range(table.start[prompt], table.start[prompt + 1])
        by_name = {table.generators[table.generator[i]]: i for i in candidates}
        for side in ("chosen", "rejected"):
            place = by_name[row[f"generator_{side}"]]
            assert table.texts([place])[0] == (row["prompt"], row[side])
            assert row[f"score_{side}"] == score[place]
        assert row["generator_chosen"] != row["generator_rejected"]
    assert Counter(row["round"] for row in rows) == Counter(dict.fromkeys(range(1, 8), 4) | {8: 2})
    assert "🙂" in rows[0]["prompt"]
    agree = np.mean([row["score_chosen"] > row["score_rejected"] for row in rows])
    assert f"| labels that agree with the scores | {agree:.3f} |" in (tmp_path / CARD).read_text()
    assert "30 preferences" in capsys.readouterr().out


def test_the_same_command_makes_the_same_files_and_another_seed_others(pools, tmp_path):
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        acquire(config(pools, tmp_path / name, seed=seed))
    assert (tmp_path / "one" / JSONL).read_bytes() == (tmp_path / "again" / JSONL).read_bytes()
    assert (tmp_path / "one" / PARQUET).read_bytes() == (tmp_path / "again" / PARQUET).read_bytes()
    assert rows_of(tmp_path / "one") != rows_of(tmp_path / "other")


def test_agents_that_choose_prompts_remember_them(pools, tmp_path):
    acquire(config(pools, tmp_path, agent="coreset", labels_per_round=1, budget=6))
    assert [row["round"] for row in rows_of(tmp_path)] == list(range(1, 7))
    assert "--labels-per-round 1" in (tmp_path / CARD).read_text()


def test_the_card_has_the_command_that_made_it(pools, tmp_path):
    changed = ReplaySettings(n_prompts=4, n_eval_prompts=9, judge="argmax")
    acquire(config(pools, tmp_path, agent="maxmin", replay=changed, seed=3))
    text = (tmp_path / CARD).read_text()
    assert "prefenv acquire --pools pools.parquet --agent maxmin --budget 30 \\\n" in text
    assert "--seed 3 --replay.n-prompts 4 --replay.n-eval-prompts 9 --replay.judge argmax --out OUT" in text
    assert "saw the oracle's scores" in text
    assert "| labels that agree with the scores | 1.000 |" in text


def test_what_is_there_is_not_replaced_unless_asked(pools, tmp_path):
    acquire(config(pools, tmp_path, budget=4))
    with pytest.raises(FileExistsError, match="--overwrite"):
        acquire(config(pools, tmp_path))
    assert len(rows_of(tmp_path)) == 4
    acquire(config(pools, tmp_path, budget=5, overwrite=True))
    assert len(rows_of(tmp_path)) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted((JSONL, PARQUET, CARD))


def test_stopped_it_leaves_nothing(pools, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.acquire.card", stop)
    with pytest.raises(KeyboardInterrupt):
        acquire(config(pools, tmp_path))
    assert not list(tmp_path.iterdir())


def test_datasets_takes_the_folder_as_it_is(pools, tmp_path):
    datasets = pytest.importorskip("datasets")
    acquire(config(pools, tmp_path / "acquired"))
    found = datasets.load_dataset(str(tmp_path / "acquired"), cache_dir=str(tmp_path / "cache"))
    assert list(found) == ["train"]
    assert found["train"].column_names == list(COLUMNS)
    assert found["train"].to_list() == rows_of(tmp_path / "acquired")


def test_it_is_uploaded_when_asked(pools, tmp_path, monkeypatch, capsys):
    hub = pytest.importorskip("huggingface_hub")
    calls = []

    class Api:
        def create_repo(self, name, **arguments):
            calls.append(("create", name, arguments["repo_type"]))

        def upload_folder(self, **arguments):
            calls.append(("upload", arguments["repo_id"], sorted(arguments["allow_patterns"])))

    monkeypatch.setattr(hub, "HfApi", Api)
    acquire(config(pools, tmp_path, push_to_hub="me/mine"))
    assert calls == [("create", "me/mine", "dataset"), ("upload", "me/mine", sorted((JSONL, PARQUET, CARD)))]
    assert "https://huggingface.co/datasets/me/mine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--agent", "delta-ucb"], "did you mean 'deltaucb'"), (["--budget", "0"], "budget=0"),
        (["--pools", "nowhere.parquet"], "no table at nowhere.parquet"), (["--agent", "ppo"], "weights"),
    ],
)  # fmt: skip
def test_wrong_input_is_told_and_writes_nothing(pools, tmp_path, arguments, message, capsys):
    out = tmp_path / "out"
    sizes = ["--replay.n-prompts", "4", "--replay.n-eval-prompts", "9"]
    assert cli.main(["acquire", "--pools", str(pools), "--out", str(out), *sizes, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists() or not list(out.iterdir())


def test_compare_runs_on_a_table(pools, tmp_path, capsys):
    arguments = ["--world", "replay", "--pools", str(pools), "--agents", "random", "drts", "oracle-greedy"]
    sizes = ["--replay.n-prompts", "4", "--replay.n-eval-prompts", "9", "--seeds", "2", "--rounds", "3"]
    assert cli.main(["compare", *arguments, *sizes, "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "| replay | oracle-greedy (privileged) |" in text
    runs = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()][1:]
    assert len(runs) == 6
    assert all("win_rate_length_controlled" in run["curves"] and "capability" not in run["curves"] for run in runs)
    assert (tmp_path / "win_rate.png").exists()


def test_rows_carry_the_settings_score_and_ties(pools, tmp_path):
    changed = ReplaySettings(n_prompts=4, n_eval_prompts=9, score="safe", oracle_tie=1.0)
    acquire(config(pools, tmp_path, replay=changed))
    rows, text = rows_of(tmp_path), (tmp_path / CARD).read_text()
    assert 0 < len(rows) < 30
    assert "The column `safe` labelled them." in text
    assert "| labels spent | 30 |" in text
    assert f"| preferences | {len(rows)} |" in text
    assert f"| rounds | {rows[-1]['round']} |" in text
    assert f"| different prompts | {len({r['prompt_id'] for r in rows})} |" in text
    assert all(row["chosen"] != row["rejected"] for row in rows)


def test_the_recipe_labels(pools, tmp_path):
    acquire(config(pools, tmp_path, agent="deltaqwen"))
    rows = rows_of(tmp_path)
    data = ReplayData.shared(ReplaySettings(pools=str(pools)))
    rank = {data.table.generators[c]: g for c, g in zip(data.table.generator, data.generator, strict=True)}
    assert all(rank[r["generator_chosen"]] > rank[r["generator_rejected"]] for r in rows)


def test_existing_any_file(pools, tmp_path):
    for name in (PARQUET, CARD):
        (tmp_path / name).write_text("x")
        with pytest.raises(FileExistsError):
            acquire(config(pools, tmp_path))
        (tmp_path / name).unlink()


def test_card_both_rates(pools, tmp_path, monkeypatch):
    got = []
    original = module.card
    monkeypatch.setattr(module, "card", lambda c, s, a: (got.append(a), original(c, s, a))[1])
    acquire(config(pools, tmp_path))
    text, a = (tmp_path / CARD).read_text(), got[0]
    for name, row in (
        ("win_rate", "win rate of a log-linear policy, before and after"),
        ("win_rate_length_controlled", "the same, controlled for length"),
    ):
        assert f"| {row} | {a.first_info[name]:.3f}, {a.info[name]:.3f} |" in text


def test_seed_of_agent(pools, tmp_path, monkeypatch):
    seeds = []
    make = agents.make
    monkeypatch.setattr(
        agents, "make", lambda key, space, seed, **k: (seeds.append(seed), make(key, space, seed=seed, **k))[1]
    )
    acquire(config(pools, tmp_path, seed=7))
    assert seeds == [7]


def test_seed_of_split(pools, tmp_path):
    argmax = ReplaySettings(n_prompts=4, n_eval_prompts=9, judge="argmax")
    for seed in (0, 1):  # the agent and the judge draw nothing: only the split differs
        acquire(config(pools, tmp_path / str(seed), agent="maxmin", replay=argmax, seed=seed))
    assert [r["prompt_id"] for r in rows_of(tmp_path / "0")] != [r["prompt_id"] for r in rows_of(tmp_path / "1")]


def test_state_is_handed_on(pools, tmp_path, monkeypatch):
    calls, make = [], agents.make

    class Counting:
        def __init__(self, inner):
            self.inner = inner

        def predict(self, observation, state=None, episode_start=None):
            calls.append((state, episode_start.tolist()))
            return self.inner.predict(observation, None)[0], len(calls)

    monkeypatch.setattr(agents, "make", lambda *a, **k: Counting(make(*a, **k)))
    acquire(config(pools, tmp_path, budget=12))
    assert calls == [(None, [True]), (1, [False]), (2, [False])]


def test_whole_number_ids_and_equal_scores(pools, tmp_path):
    path = tmp_path / "ints.parquet"
    rows = [
        {"prompt_id": i, "prompt": f"q{i}", "generator": f"g{j}", "response": f"{i} {j}", "score": 1.0}
        for i in range(20)
        for j in range(3)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    with FeatureWriter(PoolTable.open(path), EmbeddingSettings("x"), 3) as w:
        w.append(np.random.default_rng(0).normal(size=(60, 3)), np.zeros((60, len(SURFACE))))
    acquire(config(path, tmp_path / "out", replay=ReplaySettings(n_prompts=4, n_eval_prompts=9, scale=1.0)))
    assert all(isinstance(row["prompt_id"], str) for row in rows_of(tmp_path / "out"))
    assert "| labels that agree with the scores | 0.000 |" in (tmp_path / "out" / CARD).read_text()


def test_only_ties_are_an_error_and_leave_nothing(pools, tmp_path):
    ties = ReplaySettings(n_prompts=4, n_eval_prompts=9, oracle_tie=1e9)
    with pytest.raises(ValueError, match="every comparison was a tie"):
        acquire(config(pools, tmp_path, replay=ties))
    assert not list(tmp_path.iterdir())


def test_a_comparison_does_not_go_on_with_another_table(pools, tmp_path, capsys):
    path = make_table(tmp_path)
    arguments = ["compare", "--world", "replay", "--pools", str(path), "--agents", "random", "--rounds", "2"]
    arguments += ["--replay.n-prompts", "4", "--replay.n-eval-prompts", "9", "--out", str(tmp_path / "out")]
    assert cli.main([*arguments, "--seeds", "1"]) == 0
    make_table(tmp_path, seed=1)
    assert cli.main([*arguments, "--seeds", "2"]) == 2
    assert "pools" in capsys.readouterr().err
