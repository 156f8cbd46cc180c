"""Plain tables in files of every kind: whole, damaged, cut short, with wrong names."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefenv.replay import importers, sources
from prefenv.replay.sources import Files
from tests.prefenv.replay.written import EMOJI, NAMES, NESTED, PLAIN, lines, pools, saved


@pytest.mark.parametrize("kind", [*NESTED, ".csv"])
def test_a_plain_table_of_any_kind(tmp_path, kind):
    source = Files.at(saved(tmp_path / f"source{kind}", PLAIN))
    table, _ = pools(tmp_path, importers.table(source, **NAMES, prompt_id="id"), "quality")
    order = [0, 3, 6, 1, 4, 7, 2, 5, 8]
    assert [tuple(row.values()) for row in table] == [
        (f"0{at % 3}", f"q{at % 3} {EMOJI}", f"m{at}", f"{at} {EMOJI}", at / 2) for at in order
    ]
    without, _ = pools(tmp_path, importers.table(source, **NAMES | {"generator": None}), "quality")
    assert {row["generator"] for row in without} == {"unknown"}


def test_numbers_of_every_type_are_read(tmp_path):
    columns = {
        "int": pa.array([1, 2], pa.int8()),
        "half": pa.array([1, 2], pa.float16()),
        "bool": pa.array([True, False]),
        "decimal": pa.array([1, 2], pa.decimal128(5, 2)),
        "category": pa.array(["1", "2"]).dictionary_encode(),
        "text": pa.array(["1", None], pa.large_string()),
        "null": pa.nulls(2),
    }
    texts = {"prompt": pa.array(["q", "q"]).dictionary_encode(), "response": ["a", "b"], "generator": [7, 8]}
    pq.write_table(pa.table(texts | columns), tmp_path / "s.parquet")
    table, summary = pools(tmp_path, importers.table(Files.at(tmp_path / "s.parquet"), scores=list(columns)), "int")
    assert [row["generator"] for row in table] == ["7", "8"]
    assert [row["decimal"] for row in table] == [1.0, 2.0]
    assert [row["bool"] for row in table] == [1.0, 0.0]
    assert summary.empty == ("null",)
    pq.write_table(pa.table(texts | {"score": [[1], [2]]}), tmp_path / "s.parquet")
    with pytest.raises(ValueError, match="column 'score' holds list"):
        pools(tmp_path, importers.table(Files.at(tmp_path / "s.parquet")), "score")
    pq.write_table(pa.table(texts | {"response": [1.5, 2.5], "score": [1, 2]}), tmp_path / "s.parquet")
    with pytest.raises(ValueError, match="column 'response' holds double, not text"):
        pools(tmp_path, importers.table(Files.at(tmp_path / "s.parquet")), "score")


@pytest.mark.parametrize("kind", [*NESTED, ".csv"])
def test_a_wrong_column_name_is_told_with_the_closest(tmp_path, kind):
    source = Files.at(saved(tmp_path / f"source{kind}", PLAIN))
    with pytest.raises(ValueError, match=rf"source{kind} 'qualty': did you mean 'quality'"):
        list(importers.table(source, **NAMES | {"scores": ["qualty"]}))
    with pytest.raises(ValueError, match="at least one score"):
        list(importers.table(source, **NAMES | {"scores": []}))


@pytest.mark.parametrize("kind", [".parquet", ".jsonl", ".jsonl.gz", ".json", ".arrow"])
def test_a_file_cut_short_is_told_by_name(tmp_path, kind):
    path = saved(tmp_path / f"source{kind}", PLAIN * 50)
    content = path.read_bytes()
    for size in (len(content) // 2 + 5, len(content) - 9):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=rf"source{kind}"):
            pools(tmp_path, importers.table(Files.at(path), **NAMES), "quality")
        assert not (tmp_path / "pools.parquet").exists()


def test_a_damaged_page_of_parquet_is_told_by_name(tmp_path):
    path = saved(
        tmp_path / "source.parquet", [{**row, "answer": f"{row['answer']} {at}"} for at, row in enumerate(PLAIN * 50)]
    )
    content = bytearray(path.read_bytes())
    content[200:2200] = bytes(2000)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"source\.parquet is damaged"):
        pools(tmp_path, importers.table(Files.at(path), **NAMES), "quality")


def test_a_bad_line_is_told_by_its_number(tmp_path):
    path = lines(tmp_path / "s.jsonl", PLAIN[:3])
    good = path.read_text(encoding="utf-8")
    for bad, message in (
        ("{'a': 1}\n", "line 5 is no JSON"),
        ("[1]\n", "line 5 is a list"),
        ('"a"\n', "line 5 is a str"),
    ):
        path.write_text(good + "\n" + bad + good, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            list(importers.table(Files.at(path), **NAMES))
    path.write_bytes(good.encode() + b'{"question": "\xff"}\n')
    with pytest.raises(ValueError, match="line 4 is no JSON"):
        list(importers.table(Files.at(path), **NAMES))


def test_a_csv_in_many_blocks_with_lines_in_its_fields(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "CSV_BLOCK", 400)
    records = [{**row, "answer": f"{row['answer']}\n\n,\n{at}"} for at, row in enumerate(PLAIN * 10)]
    source = Files.at(saved(tmp_path / "s.csv", records))
    table, _ = pools(tmp_path, importers.table(source, **NAMES), "quality")
    assert sorted(row["response"] for row in table) == sorted(record["answer"] for record in records)


def test_a_csv_that_begins_with_a_byte_order_mark(tmp_path):
    (tmp_path / "s.csv").write_text("prompt,response,generator,score\r\nq,a,g,1\r\nq,b,g,2\r\n", encoding="utf-8-sig")
    table, _ = pools(tmp_path, importers.table(Files.at(tmp_path / "s.csv")), "score")
    assert [row["response"] for row in table] == ["a", "b"]


def test_a_ragged_csv_is_told_by_its_row(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text("prompt,response,generator,score\nq,a,g,1\nq,b\n")
    with pytest.raises(ValueError, match=r"s\.csv is damaged.*Row #3"):
        list(importers.table(Files.at(path)))
    path.write_text("prompt,response,score,score\nq,a,g,1\n")
    with pytest.raises(ValueError, match="two columns score"):
        list(importers.table(Files.at(path)))
    path.write_text("")
    with pytest.raises(ValueError, match=r"unknown column of .*s\.csv"):
        list(importers.table(Files.at(path)))


def test_rows_left_out_are_told_by_their_place_in_the_file(tmp_path):
    path = lines(tmp_path / "s.jsonl", [*PLAIN, {**PLAIN[0], "answer": ""}])
    path.write_text("\n\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    _, summary = pools(tmp_path, importers.table(Files.at(path), **NAMES), "quality")
    line = json.loads(summary.left_out_path.read_text(encoding="utf-8"))
    assert (line["file"], line["row"], line["generator"]) == (str(path), 12, "m0")


@pytest.mark.parametrize("kind", [*NESTED, ".csv"])
def test_places_are_counted_over_batches(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(importers, "BATCH_ROWS", 4)
    source = Files.at(saved(tmp_path / f"s{kind}", [*PLAIN, {**PLAIN[0], "answer": ""}]))
    _, summary = pools(tmp_path, importers.table(source, **NAMES), "quality")
    assert json.loads(summary.left_out_path.read_text(encoding="utf-8"))["row"] == 10


def test_a_folder_is_all_files_of_one_kind_by_name(tmp_path):
    folder = tmp_path / "data" / "train"
    folder.mkdir(parents=True)
    saved(folder / "part-1.parquet", PLAIN[4:])
    saved(folder / "part-0.parquet", PLAIN[:4])
    saved(folder / "info.json", [{"a": 1}])
    table, summary = pools(tmp_path, importers.table(Files.at(tmp_path / "data"), **NAMES), "quality")
    assert [row["quality"] for row in table[:3]] == [0.0, 1.5, 3.0]
    assert summary.kept_rows == 9
    for bad in ("empty", "pools.txt"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        (tmp_path / "pools.txt").touch()
        with pytest.raises(ValueError, match=r"\.parquet"):
            Files.at(tmp_path / bad)
