"""What is broken is counted, listed and left out; all else is in the table, byte for byte, one run of rows a prompt."""

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefenv.replay.cleaning import write_pools
from prefenv.replay.staging import Candidates
from prefenv.replay.table import PoolTable

EMOJI = "naïve 😀 👩‍👩‍👧 \u202eright\u202c e\u0301 \x00 \r\n ﷽"


def candidates(rows, file="source"):
    """Of (prompt_id, prompt, generator, response, score) each."""
    columns = list(zip(*rows, strict=True)) if rows else [()] * 5
    *texts, score = (list(column) for column in columns)
    return Candidates(file, range(1, len(rows) + 1), *texts, scores={"score": score})


def imported(path, rows, **settings):
    summary = write_pools([candidates(rows)], path, "score", **settings)
    left_out = [json.loads(line) for line in summary.left_out_path.read_text(encoding="utf-8").split("\n") if line]
    return pq.read_table(path).to_pylist(), left_out, summary


GOOD = [(None, "q", "a", "yes", 1.0), (None, "q", "b", "no", 0.0)]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ((None, "", "c", "maybe", 1.0), "no prompt"),
        ((None, None, "c", "maybe", 1.0), "no prompt"),
        ((None, " \n", "c", "maybe", 1.0), "no prompt"),
        ((None, "q", "c", "", 1.0), "no response"),
        ((None, "q", "c", " \t\n", 1.0), "no response"),
        ((None, "q", "c", None, 1.0), "no response"),
        ((None, "q", "c", ["maybe"], 1.0), "no response"),
        ((None, "q", "c", "half \ud83d", 1.0), "no response"),
        ((None, "q", "c", "maybe", None), "no score"),
        ((None, "q", "c", "maybe", "N/A"), "no score"),
        ((None, "q", "c", "maybe", " "), "no score"),
        ((None, "q", "c", "maybe", "good"), "score is no number"),
        ((None, "q", "c", "maybe", "4,5"), "score is no number"),
        ((None, "q", "c", "maybe", "1_0"), "score is no number"),
        ((None, "q", "c", "maybe", {"Rating": 1}), "score is no number"),
        ((None, "q", "c", "maybe", math.nan), "score is NaN or infinite"),
        ((None, "q", "c", "maybe", "nan"), "score is NaN or infinite"),
        ((None, "q", "c", "maybe", "-inf"), "score is NaN or infinite"),
        ((None, "q", "c", "maybe", math.inf), "score is NaN or infinite"),
        ((None, "q", "c", "maybe", 10**400), "score is NaN or infinite"),
        ((None, "q", "c", "yes", 0.5), "duplicate"),
        ((None, "another", "c", "maybe", 1.0), "no other candidate of the prompt"),
    ],
)
def test_a_broken_row_is_counted_listed_and_left_out(tmp_path, row, reason):
    table, left_out, summary = imported(tmp_path / "t.parquet", [GOOD[0], row, GOOD[1]])
    assert [(kept["generator"], kept["response"], kept["score"]) for kept in table] == [
        ("a", "yes", 1.0),
        ("b", "no", 0.0),
    ]
    assert summary.left_out == {reason: 1}
    assert [(line["generator"], line["reason"], line["file"], line["row"]) for line in left_out] == [
        ("c", reason, "source", 2)
    ]
    if row[1] == "q":
        assert left_out[0]["prompt_id"] == table[0]["prompt_id"]
    assert f"1 (1 {reason})" in str(summary)


def test_nothing_wrong_is_said_so(tmp_path):
    _, left_out, summary = imported(tmp_path / "t.parquet", GOOD)
    assert left_out == []
    assert "left out:  nothing" in str(summary)
    PoolTable.open(tmp_path / "t.parquet")


def test_a_prompt_that_is_twice_in_the_source_is_one_pool_under_its_first_id(tmp_path):
    rows = [
        ("7", "q", "a", "1", 1), ("7", "q", "b", "2", 2), ("8", "r", "a", "1", 1), ("9", "q", "c", "3", 3),
        ("8", "r", "b", "2", 2), ("9", "q", "a", "1", 9),
    ]  # fmt: skip
    table, left_out, summary = imported(tmp_path / "t.parquet", rows)
    assert [(row["prompt_id"], row["response"]) for row in table] == [
        ("7", "1"), ("7", "2"), ("7", "3"), ("8", "1"), ("8", "2"),
    ]  # fmt: skip
    assert (summary.prompts, summary.kept_prompts, summary.sizes) == (2, 2, (2, 3))
    assert [(line["prompt_id"], line["reason"], line["row"]) for line in left_out] == [("9", "duplicate", 6)]


def test_an_id_of_two_prompts_stays_with_the_first(tmp_path):
    rows = [
        ("7", "q", "a", "1", 1), ("7", "r", "a", "1", 1), ("7", "q", "b", "2", 2), ("7", "r", "b", "2", 2),
    ]  # fmt: skip
    table, _, summary = imported(tmp_path / "t.parquet", rows)
    assert {row["prompt"] for row in table} == {"q"}
    assert summary.left_out == {"prompt_id of another prompt": 2}


def test_ids_are_made_from_prompts_and_stay_the_same(tmp_path):
    first, _, _ = imported(tmp_path / "a.parquet", GOOD)
    second, _, _ = imported(tmp_path / "b.parquet", [(None, "other", "a", "1", 1), (None, "other", "a", "2", 1), *GOOD])
    assert first[0]["prompt_id"] == second[2]["prompt_id"]
    assert len({row["prompt_id"] for row in second}) == 2


def test_a_broken_row_does_not_stand_in_the_way_of_a_good_one(tmp_path):
    rows = [(None, "q", "a", "yes", "N/A"), *GOOD]
    table, _, _ = imported(tmp_path / "t.parquet", rows)
    assert len(table) == 2


def test_any_unicode_survives_byte_for_byte(tmp_path):
    rows = [(EMOJI, EMOJI, EMOJI, f"{EMOJI} {at}", at) for at in range(2)] + [(EMOJI, EMOJI, EMOJI, EMOJI, None)]
    table, left_out, _ = imported(tmp_path / "t.parquet", rows)
    assert [tuple(row.values()) for row in table] == [tuple(row) for row in rows[:2]]
    assert (left_out[0]["prompt_id"], left_out[0]["generator"]) == (EMOJI, EMOJI)


def test_a_generator_without_a_name_is_unknown(tmp_path):
    table, _, summary = imported(tmp_path / "t.parquet", [(None, "q", None, "yes", 1), (None, "q", "", "no", 1)])
    assert [row["generator"] for row in table] == ["unknown", "unknown"]
    assert summary.generators == 1


def test_other_columns_may_have_holes_unless_they_are_required(tmp_path):
    def found():
        yield Candidates("one", [1, 2], [None] * 2, ["q"] * 2, ["a"] * 2, ["1", "2"], {"score": [1, 2]})
        yield Candidates(
            "two", [1, 2], [None] * 2, ["q"] * 2, ["a"] * 2, ["3", "4"],
            {"score": [3, 4], "honesty": ["4", "N/A"], "void": [None, "?"]},
        )  # fmt: skip

    summary = write_pools(found(), tmp_path / "t.parquet", "score")
    table = PoolTable.open(tmp_path / "t.parquet")
    assert table.columns == ("score", "honesty")
    assert summary.empty == ("void",)
    assert summary.columns[1].missing == 3
    np.testing.assert_array_equal(pq.read_table(table.path)["honesty"].to_numpy(), [np.nan, np.nan, 4, np.nan])
    with pytest.raises(ValueError, match=r"3 missing.*--require honesty"):
        table.column("honesty")
    with pytest.raises(ValueError, match="nothing is left of 4 candidates"):
        write_pools(found(), tmp_path / "u.parquet", "score", require=["honesty"])
    with pytest.raises(ValueError, match="did you mean 'honesty'"):
        write_pools(found(), tmp_path / "u.parquet", "score", require=["honestly"])
    rows = [*found(), Candidates("three", [1], [None], ["q"], ["b"], ["5"], {"score": [5], "honesty": [1.5]})]
    summary = write_pools(rows, tmp_path / "u.parquet", "score", require=["honesty"])
    assert summary.left_out == {"no honesty": 3}
    assert PoolTable.open(tmp_path / "u.parquet").column("honesty").tolist() == [4.0, 1.5]


@pytest.mark.parametrize("rows", [[], [GOOD[0]], [(None, "q", "a", "", 1.0)], [(None, "", "a", "b", None)] * 3])
def test_nothing_left_is_an_error_and_writes_nothing(tmp_path, rows):
    with pytest.raises(ValueError, match=r"nothing is left|no rows"):
        imported(tmp_path / "t.parquet", rows)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_stop_on_the_way_leaves_what_was_there(tmp_path, error):
    imported(tmp_path / "t.parquet", GOOD)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}

    def broken():
        yield candidates(GOOD)
        raise error

    with pytest.raises(error):
        write_pools(broken(), tmp_path / "t.parquet", "score")
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_names_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.parquet"):
        write_pools([candidates(GOOD)], tmp_path / "t.csv", "score")
    with pytest.raises(ValueError, match="did you mean 'score'"):
        write_pools([candidates(GOOD)], tmp_path / "t.parquet", "scroe")
    twice = Candidates("s", [1], [None], ["q"], ["a"], ["b"], {"response": [1.0]})
    with pytest.raises(ValueError, match="no name for a score"):
        write_pools([twice], tmp_path / "t.parquet", "response")


def test_vectors_follow_their_rows(tmp_path):
    rng = np.random.default_rng(0)
    rows = [(None, f"q{at % 7}", "g", f"r{at % 40}", at if at % 11 else None) for at in range(100)]
    every = rng.normal(size=(100, 3)).astype(np.float16)
    every[:, 0] = np.arange(100)
    np.save(tmp_path / "v.npy", every)
    table, _, summary = imported(tmp_path / "t.parquet", rows, vectors=tmp_path / "v.npy")
    kept = np.load(summary.vectors_path)
    assert kept.dtype == np.float16
    np.testing.assert_array_equal(kept[:, 0], [row["score"] for row in table])
    np.testing.assert_array_equal(kept, every[kept[:, 0].astype(int)])
    note = json.loads((tmp_path / "t.vectors.json").read_text())
    assert note == {"fingerprint": PoolTable.open(tmp_path / "t.parquet").fingerprint, "rows": len(table)}


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.zeros((3, 4)), "has 3 rows, but the source has 2"),
        (np.zeros(2), "a column a dimension"),
        (np.zeros((2, 4), dtype=int), "file of floats"),
        (np.array([[1.0], [np.nan]]), "NaN or infinity in row 2"),
    ],
)
def test_vectors_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path, vectors, message):
    np.save(tmp_path / "v.npy", vectors)
    with pytest.raises(ValueError, match=message):
        imported(tmp_path / "t.parquet", GOOD, vectors=tmp_path / "v.npy")
    assert [file.name for file in tmp_path.iterdir()] == ["v.npy"]


TEXTS = st.sampled_from(["", " ", "a", "b", "😀", "a ", "c"])
SCORES = st.sampled_from([0.0, 1.5, "2", " 3", "N/A", "x", None, math.nan, math.inf, -1])
IDS = st.sampled_from([None, "", "1", "2"])


def expected(rows):
    """The cleaning as it is described, row by row: what is kept, and how many are left out for each reason."""
    counts, whole, owner = {}, [], {}

    def leave(reason):
        counts[reason] = counts.get(reason, 0) + 1

    for name, prompt, generator, response, score in rows:
        try:
            number = None if score in (None, "N/A") else float(score)
        except ValueError:
            number = "unreadable"
        if not prompt.strip():
            leave("no prompt")
        elif not response.strip():
            leave("no response")
        elif number is None:
            leave("no score")
        elif number == "unreadable":
            leave("score is no number")
        elif not math.isfinite(number):
            leave("score is NaN or infinite")
        else:
            whole.append((name, prompt, generator, response, number))
    pools, first = {}, {}
    for name, prompt, *_ in whole:
        if prompt not in first:
            first[prompt] = name or None
            if name:
                owner.setdefault(name, prompt)
    for _, prompt, generator, response, number in whole:
        if first[prompt] and owner[first[prompt]] != prompt:
            leave("prompt_id of another prompt")
        elif response in (pool := pools.setdefault(prompt, {})):
            leave("duplicate")
        else:
            pool[response] = (generator, number)
    kept = [
        (prompt, generator, response, number)
        for prompt, pool in pools.items()
        if len(pool) > 1
        for response, (generator, number) in pool.items()
    ]
    for pool in pools.values():
        if len(pool) == 1:
            leave("no other candidate of the prompt")
    return kept, counts


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(IDS, TEXTS, st.sampled_from("xy"), TEXTS, SCORES), min_size=1, max_size=25),
    cut=st.integers(1, 25),
)
def test_the_cleaning_is_what_is_described(tmp_path, rows, cut):
    kept, counts = expected(rows)
    parts = [candidates(rows[:cut], "one"), candidates(rows[cut:], "two")]
    path = tmp_path / "t.parquet"
    path.unlink(missing_ok=True)
    if not kept:
        with pytest.raises(ValueError, match="nothing is left"):
            write_pools(parts, path, "score")
        assert not path.exists()
        return
    summary = write_pools(parts, path, "score")
    table = pq.read_table(path).to_pylist()
    assert [(row["prompt"], row["generator"], row["response"], row["score"]) for row in table] == kept
    assert summary.left_out == counts
    assert summary.kept_rows + sum(counts.values()) == summary.rows == len(rows)
    assert summary.left_out_path.read_text(encoding="utf-8").count("\n") == sum(counts.values())
    PoolTable.open(path)  # it is a table: no prompt stands apart, none is alone


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=2, max_size=12, unique=True))
def test_all_texts_come_through_or_are_blank(tmp_path, texts):
    rows = [(None, "q", text, text, 1.0) for text in [*texts, "one", "two"]]
    table, _, _ = imported(tmp_path / "t.parquet", rows)
    read = [row["response"] for row in table]
    assert read == [text for text in dict.fromkeys([*texts, "one", "two"]) if text in read]
    assert all(not text.strip() for text in set(texts) - set(read))


@pytest.mark.slow
def test_rows_that_stand_far_apart_are_brought_together(tmp_path):
    rng = np.random.default_rng(0)
    n_prompts, m = 20_000, 10
    order = rng.permutation(n_prompts * m)

    def found():
        for part in np.array_split(order, 30):
            prompt = (part % n_prompts).tolist()
            text = [f"{row} {EMOJI}" for row in part]
            none = [None] * len(part)
            yield Candidates("s", range(1, len(part) + 1), none, [f"q{p}" for p in prompt], none, text, {"score": part})

    summary = write_pools(found(), tmp_path / "t.parquet", "score")
    table = PoolTable.open(tmp_path / "t.parquet")
    assert (summary.kept_rows, summary.sizes) == (n_prompts * m, (m, m))
    score = pq.read_table(table.path)["score"].to_numpy().astype(int)
    assert sorted(score) == list(range(n_prompts * m))
    some = rng.integers(0, table.n_rows, 200)
    assert table.texts(some) == [(f"q{score[row] % n_prompts}", f"{score[row]} {EMOJI}") for row in some]
