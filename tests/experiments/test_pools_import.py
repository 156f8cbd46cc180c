"""``prefenv pools import``: every source from the command line, files and a hub."""

import json
import subprocess
import sys
from typing import Annotated

import numpy as np
import pyarrow.parquet as pq
import pytest
import tyro

from experiments import pools_import as command
from prefenv.replay import importers
from prefenv.replay.table import PoolTable
from tests.prefenv.replay.written import ACTIVE, PLAIN, ULTRAFEEDBACK, lines, results, saved

PAIRS = [{"prompt": "Q", "chosen": "A", "rejected": "B"}]
TABLE = [
    "--prompt-column", "question", "--response-column", "answer", "--generator-column", "model",
    "--score-columns", "quality", "--prompt-id-column", "id",
]  # fmt: skip


def run(*arguments):
    parser = Annotated[command.ImportCommand, tyro.conf.subcommand("import")]
    return command.pools_import(tyro.cli(parser, args=[str(argument) for argument in arguments]))


@pytest.mark.parametrize(
    ("kind", "records", "settings", "rows", "columns"),
    [
        (
            "ultrafeedback", ULTRAFEEDBACK, [], 2,
            ("overall_score", "fine-grained_score", "instruction_following", "honesty", "truthfulness", "helpfulness"),
        ),
        (
            "active-ultrafeedback", ACTIVE, ["--require", "honesty"], 2,
            ("overall_score", "instruction_following", "honesty", "truthfulness", "helpfulness"),
        ),
        ("preferences", PAIRS, [], 2, ("score",)),
        ("table", PLAIN, TABLE, 9, ("quality",)),
    ],
)  # fmt: skip
def test_every_source_becomes_a_table(tmp_path, capsys, kind, records, settings, rows, columns):
    out = tmp_path / "new" / "pools.parquet"
    assert run(kind, lines(tmp_path / "source.jsonl", records), "--out", out, *settings) == 0
    table = PoolTable.open(out)
    assert (table.n_rows, table.columns) == (rows, columns)
    printed = capsys.readouterr()
    assert f"kept:      {rows} candidates" in printed.out
    assert str(out) in printed.out
    assert "read" in printed.err
    assert sorted(file.name for file in out.parent.iterdir()) == ["pools.left_out.jsonl", "pools.parquet"]


def test_alpaca_eval_from_the_command_line(tmp_path):
    results(tmp_path / "results", [1.5, 1.9])
    out = tmp_path / "pools.parquet"
    run("alpaca-eval", tmp_path, "--out", out)
    assert PoolTable.open(out).sizes.tolist() == [3, 3]
    run("alpaca-eval", tmp_path, "--out", out, "--no-baseline")
    assert PoolTable.open(out).sizes.tolist() == [2, 2]
    with pytest.raises(ValueError, match="unknown annotator"):
        run("alpaca-eval", tmp_path, "--out", out, "--annotators", "somebody")


def test_vectors_go_along_with_one_file(tmp_path):
    np.save(tmp_path / "v.npy", np.arange(18, dtype=np.float32).reshape(9, 2))
    source, out = lines(tmp_path / "s.jsonl", PLAIN), tmp_path / "pools.parquet"
    run("table", source, "--out", out, *TABLE, "--vectors", tmp_path / "v.npy")
    vectors = np.load(tmp_path / "pools.vectors.npy")
    np.testing.assert_array_equal(vectors[:, 0] / 4, pq.read_table(out)["quality"].to_numpy())
    (tmp_path / "folder").mkdir()
    for name in "ab":
        lines(tmp_path / "folder" / f"{name}.jsonl", PLAIN)
    for many in (tmp_path / "folder", "hub:some/name"):
        with pytest.raises(ValueError, match="single file"):
            run("table", many, "--out", out, *TABLE, "--vectors", tmp_path / "v.npy")


def test_what_cannot_be_is_told(tmp_path):
    source = saved(tmp_path / "s.parquet", PLAIN)
    with pytest.raises(ValueError, match="among what is imported"):
        run("table", source, "--out", source, *TABLE)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="among what is imported"):
        run("table", source, "--out", tmp_path / "folder" / ".." / "s.parquet", *TABLE)
    (tmp_path / "folder").rmdir()
    with pytest.raises(ValueError, match="--subset"):
        run("table", source, "--subset", "full", *TABLE)
    with pytest.raises(ValueError, match="--score-columns"):
        run("table", source, "--score-columns", "--out", tmp_path / "o.parquet")
    with pytest.raises(FileNotFoundError, match="hub:NAME"):
        run("preferences", tmp_path / "nothing")
    with pytest.raises(ValueError, match="did you mean 'quality'"):
        run("table", source, *TABLE, "--require", "qualty", "--out", tmp_path / "o.parquet")
    assert [file.name for file in tmp_path.iterdir()] == ["s.parquet"]


def test_the_hub_gives_the_same_as_the_file(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "hub"
    folder.mkdir()
    lines(folder / "train.jsonl", ACTIVE)
    run("active-ultrafeedback", f"hub:{folder}", "--out", tmp_path / "a.parquet")
    run("active-ultrafeedback", folder, "--out", tmp_path / "b.parquet")
    assert pq.read_table(tmp_path / "a.parquet").equals(pq.read_table(tmp_path / "b.parquet"))
    monkeypatch.setattr(importers, "BATCH_ROWS", 4)
    plain = tmp_path / "plain"
    plain.mkdir()
    lines(plain / "train.jsonl", [*PLAIN, {**PLAIN[0], "answer": ""}])
    run("table", f"hub:{plain}", "--out", tmp_path / "d.parquet", *TABLE)
    assert json.loads((tmp_path / "d.left_out.jsonl").read_text(encoding="utf-8"))["row"] == 10
    places = json.loads((tmp_path / "a.left_out.jsonl").read_text().splitlines()[0])
    assert (places["file"], places["row"]) == (f"hub:{folder}", 1)
    with pytest.raises(ValueError, match="'instruction'"):
        run("ultrafeedback", f"hub:{folder}", "--out", tmp_path / "c.parquet")
    with pytest.raises(OSError, match=r"split test.*cannot be had"):
        run("active-ultrafeedback", f"hub:{folder}", "--split", "test", "--out", tmp_path / "c.parquet")


def test_a_hub_that_cannot_be_reached_is_told_with_the_way_out(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")

    def unreachable(*arguments, **settings):
        raise ConnectionError("Couldn't reach 'openbmb/UltraFeedback' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(OSError, match=r"hub:openbmb/UltraFeedback .*Couldn't reach.*copy its files"):
        run("ultrafeedback", "hub:openbmb/UltraFeedback", "--out", tmp_path / "o.parquet")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"prefenv\[llm\]"):
        run("ultrafeedback", "hub:openbmb/UltraFeedback", "--out", tmp_path / "o.parquet")


def test_the_command_is_there_without_pyarrow_and_says_what_it_needs():
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['pyarrow', 'datasets', 'torch']))\n"
        "from experiments.pools_import import *\n"
        "pools_import(ImportPreferences(source='x'))"
    )
    result = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "ImportError: tables of pools need 'pyarrow': pip install 'prefenv[replay]'" in result.stderr
