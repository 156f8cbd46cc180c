"""The table on disk: what is written is read; what is no such table is refused with the way out."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefenv.replay.table import GROUP_ROWS, PoolTable, TableWriter

EMOJI = "naïve 😀 👩‍👩‍👧 \u202eright\u202c e\u0301 \x00 \r\n ﷽"


def rows(**changes):
    given = {
        "prompt_id": ["a", "a", "b", "b", "b"],
        "prompt": ["one?", "one?", "two?", "two?", "two?"],
        "generator": ["x", "y", "y", "x", "z"],
        "response": ["1", EMOJI, "3", "4", "5"],
        "score": [0.5, -1.0, 2.0, float("nan"), 1.0],
        "length": [1, 2, 3, 4, 5],
    } | changes
    return pa.table({name: values for name, values in given.items() if values is not None})


@pytest.fixture
def path(tmp_path):
    pq.write_table(rows(), tmp_path / "pools.parquet")
    return tmp_path / "pools.parquet"


def written(path, n_prompts, seed=0):
    rng = np.random.default_rng(seed)
    with TableWriter(path, ["score"]) as writer:
        for prompt in range(n_prompts):
            writer.add(
                f"p{prompt}",
                f"prompt {prompt}",
                [
                    {"generator": f"g{at}", "response": f"{prompt} {at} {EMOJI}", "score": float(rng.normal())}
                    for at in range(rng.integers(2, 6))
                ],
            )
    return path


def test_a_table_made_by_hand_is_read(path):
    table = PoolTable.open(path)
    assert (table.n_prompts, table.n_rows, table.sizes.tolist()) == (2, 5, [2, 3])
    assert table.prompt_id.tolist() == ["a", "b"]
    assert table.generators == ("x", "y", "z")
    assert table.generator.tolist() == [0, 1, 1, 0, 2]
    assert table.columns == ("score", "length")
    assert table.column("length").tolist() == [1, 2, 3, 4, 5]
    assert table.texts([4, 1]) == [("two?", "5"), ("one?", EMOJI)]


def test_a_column_with_holes_is_refused_with_their_number_and_the_way_out(path):
    with pytest.raises(ValueError, match=r"1 missing or infinite numbers in 5 rows.*--require score"):
        PoolTable.open(path).column("score")
    with pytest.raises(ValueError, match="did you mean 'length'"):
        PoolTable.open(path).column("lenght")
    with pytest.raises(ValueError, match="holds no numbers"):
        PoolTable.open(path).column("response")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"response": None}, "no column response"),
        ({"prompt_id": ["a", "a", "b", "a", "b"]}, "stand apart"),
        ({"prompt_id": ["a", "a", "b", "b", "c"]}, "1 prompts have one candidate"),
        ({"prompt_id": ["a", "a", "b", "b", None]}, "1 rows without prompt_id"),
        ({"generator": ["x", None, "y", "x", "z"]}, "1 rows without generator"),
    ],
)
def test_what_is_no_such_table_is_refused(tmp_path, changes, message):
    pq.write_table(rows(**changes), tmp_path / "bad.parquet")
    with pytest.raises(ValueError, match=message):
        PoolTable.open(tmp_path / "bad.parquet")


def test_a_file_that_is_absent_empty_or_cut_short_is_refused(path, tmp_path):
    with pytest.raises(FileNotFoundError, match="prefenv pools import"):
        PoolTable.open(tmp_path / "nothing.parquet")
    pq.write_table(rows().slice(0, 0), tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match="no rows"):
        PoolTable.open(tmp_path / "empty.parquet")
    content = path.read_bytes()
    for size in (0, 3, len(content) // 2, len(content) - 1):
        (tmp_path / "cut.parquet").write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"cut\.parquet is no Parquet file"):
            PoolTable.open(tmp_path / "cut.parquet")


def test_many_row_groups(tmp_path):
    table = PoolTable.open(written(tmp_path / "t.parquet", 3 * GROUP_ROWS // 2))
    assert pq.ParquetFile(table.path).num_row_groups > 1
    rng = np.random.default_rng(0)
    some = rng.integers(0, table.n_rows, 50)
    owner = np.searchsorted(table.start, some, side="right") - 1
    assert table.texts(some) == [
        (f"prompt {prompt}", f"{prompt} {row - table.start[prompt]} {EMOJI}")
        for prompt, row in zip(owner, some, strict=True)
    ]
    assert sum(len(batch["response"]) for batch in table.batches(["response"], size=1000)) == table.n_rows


def cut_elsewhere(texts):
    """The same letters in the same order, but the second text begins with the last letter of the first."""
    return [texts[0][:-1], texts[0][-1] + texts[1], *texts[2:]]


def test_the_fingerprint_is_of_ids_generators_and_responses_in_order(tmp_path):
    first = PoolTable.open(written(tmp_path / "a.parquet", 40))
    assert first.fingerprint == PoolTable.open(written(tmp_path / "b.parquet", 40, seed=0)).fingerprint
    plain = pq.read_table(first.path).replace_schema_metadata(None)
    prints = set()
    for name, changed in {
        "same": plain,
        "other_scores": plain.set_column(4, "score", pa.array(np.zeros(len(plain)))),
        "shuffled": plain.take(pa.array(np.arange(len(plain))[::-1])),
        "renamed": plain.set_column(0, "prompt_id", pa.array([f"q{name}" for name in plain["prompt_id"].to_pylist()])),
        "moved": plain.set_column(3, "response", pa.array(cut_elsewhere(plain["response"].to_pylist()))),
    }.items():
        pq.write_table(changed, tmp_path / f"{name}.parquet", row_group_size=7)
        prints.add(PoolTable.open(tmp_path / f"{name}.parquet").fingerprint)
        if name in ("same", "other_scores"):
            assert prints == {first.fingerprint}
    assert len(prints) == 4


def test_rows_written_by_table_and_by_prompt_are_the_same_file(tmp_path):
    by_prompt = written(tmp_path / "a.parquet", 30)
    with TableWriter(tmp_path / "b.parquet", ["score"]) as writer:
        whole = pq.read_table(by_prompt)
        for start in range(0, len(whole), 11):
            writer.write(whole.slice(start, 11))
    assert writer.fingerprint == PoolTable.open(by_prompt).fingerprint
    assert pq.read_table(tmp_path / "b.parquet").equals(whole)
    with TableWriter(tmp_path / "c.parquet", ["score"]) as writer:
        for row in (rows_of := whole.to_pylist())[:2]:
            writer.add(row["prompt_id"], row["prompt"], [row])
        writer.write(whole.slice(2))
    assert pq.read_table(tmp_path / "c.parquet").to_pylist() == rows_of


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_while_writing_leaves_what_was_there(tmp_path, error):
    path = written(tmp_path / "t.parquet", 5)
    before = path.read_bytes()

    def stopped():
        with TableWriter(path, ["score"]) as writer:
            writer.add("p", "prompt", [{"generator": "g", "response": "r", "score": 1.0}])
            raise error

    with pytest.raises(error):
        stopped()
    assert path.read_bytes() == before
    assert [left.name for left in tmp_path.iterdir()] == ["t.parquet"]
