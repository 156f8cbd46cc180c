"""Surface features, and the files beside a table."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from prefenv.replay import features
from prefenv.replay.features import EmbeddingSettings, FeatureFiles, Features, FeatureWriter, text_blocks
from prefenv.replay.surface import SURFACE, surface_features
from prefenv.replay.table import PoolTable, TableWriter

BY = EmbeddingSettings("some-model", "response", 256)
D = 5


def write_table(folder, n_prompts=12, m=3, word="yes"):
    path = folder / "pools.parquet"
    with TableWriter(path, ["score"]) as writer:
        for prompt in range(n_prompts):
            candidates = [
                {"generator": f"g{j}", "response": f"{word} {prompt} {j}. " * (j + 1), "score": float(j)}
                for j in range(m)
            ]
            writer.add(f"p{prompt}", f"Is {prompt} a number?", candidates)
    return PoolTable.open(path)


@pytest.fixture
def table(tmp_path):
    return write_table(tmp_path)


def vectors(prompts, responses):
    """Numbers that belong to the texts."""
    return np.array([[len(p), len(r), sum(map(ord, r)) % 97, 0.5, -1] for p, r in zip(prompts, responses, strict=True)])


def fill(table, settings=BY, size=7, blocks=None, **given):
    with FeatureWriter(table, settings, D, **given) as writer:
        begun = writer.rows
        for number, (prompts, responses) in enumerate(text_blocks(table, writer.rows, size)):
            if number == blocks:
                break
            numbers = vectors(prompts, responses) + len(settings.model)  # other settings, other numbers
            writer.append(numbers, surface_features(prompts, responses))
    return begun


def contents(table):
    files = FeatureFiles(table.path)
    return [path.read_bytes() for path in (files.embedding, files.surface, files.about)]


# --- surface features ---


def named(response, prompt=""):
    return dict(zip(SURFACE, surface_features([prompt], [response])[0].tolist(), strict=True))


def counted(response, name, prompt=""):
    return round(float(np.expm1(named(response, prompt)[name])))


@pytest.mark.parametrize(
    ("name", "response", "count"),
    [
        ("log_length", "One, two -- three_3\nfour", 4),
        ("log_length", "die Größe – “groß” é", 4),
        ("log_length", "我喜欢苹果。I do", 7),
        ("log_length", "हिन्दी में", 2),
        ("log_length", "안녕하세요 세계", 2),
        ("log_length", "👍🏽 🎉", 0),
        ("sentences", "Pi is 3.14. Yes! Why?! He said “no.” Then", 4),
        ("sentences", "好的。是吗？", 2),
        ("sentences", "no end", 0),
        ("line_breaks", "a\n\nb\r\nc", 3),
        ("list_marks", "- a\n* b\n  • c\n1. d\n22) e\n-f\n**g**\n3.5 - 2. or * 4", 5),
        ("headings_and_bold", "# A\n### B\n#tag **bold** and **two words** 2**3", 4),
        ("code_fences", "```py\nx\n``` `y`", 2),
        ("questions", "a? b？ ؟", 3),
        ("numbers", "10 apples, 2.5 pears, x3 and ٣", 5),
    ],
)
def test_counts(name, response, count):
    assert counted(response, name) == count


def test_shares():
    found = named("The cat saw THE dog", "Did the dog bark?")
    assert found["prompt_overlap"] == pytest.approx(2 / 4)  # the, dog of the, cat, saw, dog
    assert found["distinct_words"] == pytest.approx(4 / 5)
    assert found["capitals"] == pytest.approx(4 / 19)
    assert named("ÄÖ я", "")["capitals"] == pytest.approx(2 / 4)
    assert named("我喜欢", "你喜欢吗")["prompt_overlap"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("response", ["", " ", "\n", "👩‍👩‍👧", "\x00", "***", "？", "a" * 100_000, "\u202e\ufeff"])
def test_any_text_has_finite_features(response):
    for prompt in ("", "?", response):
        values = surface_features([prompt], [response])
        assert values.shape == (1, len(SURFACE))
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
        assert (values >= 0).all()


def test_rows_do_not_depend_on_their_neighbours():
    prompts = ["a b", "a b", "c", "", "c"]
    responses = ["a B", "```x", "c - d\n- c", "", "é"]
    together = surface_features(prompts, responses)
    alone = [surface_features([p], [r])[0] for p, r in zip(prompts, responses, strict=True)]
    np.testing.assert_array_equal(together, alone)
    assert surface_features([], []).shape == (0, len(SURFACE))
    with pytest.raises(ValueError, match="shorter"):
        surface_features(prompts, responses[:-1])


def test_log_length_comes_first():
    assert SURFACE[0] == "log_length"  # the policy of the replay world takes the first column


# --- files ---


def test_written_blocks_are_read_row_by_row(table):
    assert fill(table) == 0
    found = Features.open(table)
    (prompts, responses), *_ = text_blocks(table, 0, 1000)
    np.testing.assert_array_equal(found.embedding, (vectors(prompts, responses) + len("some-model")).astype(np.float16))
    np.testing.assert_array_equal(found.surface, surface_features(prompts, responses))
    assert found.settings == BY
    assert isinstance(found.embedding, np.memmap)
    assert not found.embedding.flags.writeable
    about = json.loads(FeatureFiles(table.path).about.read_text())
    assert about == {
        "version": 1, "fingerprint": table.fingerprint, "rows": 36, "d": D, "dtype": "float16", "model": "some-model",
        "text": "response", "max_tokens": 256, "surface": list(SURFACE),
    }  # fmt: skip
    left = {path.name for path in table.path.parent.iterdir()}
    assert left == {
        "pools.parquet", "pools.embedding.npy", "pools.surface.npy", "pools.features.json", ".pools.features.lock",
    }  # fmt: skip


def test_blocks_are_cut_where_a_reader_from_the_first_row_finds_them(table):
    whole = list(text_blocks(table, 0, 7))
    assert [len(responses) for _, responses in whole] == [7, 7, 7, 7, 7, 1]
    assert list(text_blocks(table, 14, 7)) == whole[2:]
    assert [len(responses) for _, responses in text_blocks(table, 16, 7)] == [5, 7, 7, 1]


def test_a_stopped_writer_goes_on_and_nothing_shows_before_the_end(table, tmp_path):
    fill(table, blocks=2)
    assert not list(tmp_path.glob("pools.*.npy"))
    with pytest.raises(FileNotFoundError, match=r"unfinished: run `prefenv pools embed .*pools.parquet`"):
        Features.open(table)
    assert fill(table, blocks=1) == 14
    assert fill(table) == 21
    stopped = contents(table)
    fill(table, overwrite=True)
    assert contents(table) == stopped


KILLED = """
import os, signal, sys
from tests.prefenv.replay.test_features import *
stop_after(int(sys.argv[2]), lambda: os.kill(os.getpid(), signal.SIGKILL), setattr)
fill(PoolTable.open(sys.argv[1]))
"""


class Stopped(BaseException):
    pass


def stop():
    raise Stopped


def stop_after(n, stop, patch):
    """Before the n-th change to the names of files, stop."""
    left = [n]

    def counted(method):
        def changed(*given, **named):
            left[0] -= 1
            if left[0] < 0:
                stop()
            return method(*given, **named)

        return changed

    for name in ("replace", "unlink"):
        patch(Path, name, counted(getattr(Path, name)))


@pytest.mark.parametrize("after", [6, 10])
def test_a_killed_process_leaves_what_the_next_one_goes_on_with(table, after):
    """6: two blocks are known to be there; 10: among the last names."""
    fill(table)
    expected = contents(table)
    for path in table.path.parent.glob("pools.*[!t]"):  # all but the table
        path.unlink()
    command = [sys.executable, "-c", KILLED, str(table.path), str(after)]
    assert subprocess.run(command, timeout=120, check=False).returncode == -signal.SIGKILL
    assert fill(table) == (14 if after == 6 else 36)
    assert contents(table) == expected


def test_stopped_anywhere_while_another_embedding_is_replaced(table):
    """Either the old files are whole, or there are none; and the command that goes on leaves the new ones."""
    fill(table)
    expected = contents(table)
    old = EmbeddingSettings("old")
    fill(table, old, overwrite=True)
    before = contents(table)
    for after in range(100):
        with pytest.MonkeyPatch.context() as patch:
            stop_after(after, stop, patch.setattr)
            try:
                fill(table, overwrite=True)
                break
            except Stopped:
                pass
        if FeatureFiles(table.path).about.exists():
            assert contents(table) == (before if Features.open(table).settings == old else expected)
        fill(table, overwrite=True)
        assert contents(table) == expected
        fill(table, old, overwrite=True)
        assert contents(table) == before
    assert 10 < after < 99


def test_a_lost_part_is_done_anew(table):
    fill(table)
    expected = contents(table)
    for path in (FeatureFiles(table.path).embedding, FeatureFiles(table.path).about):
        path.unlink()
    fill(table, blocks=2)
    next(iter(FeatureFiles(table.path).parts)).write_bytes(b"short")
    assert fill(table) == 0
    assert contents(table) == expected


def test_an_unfinished_part_of_other_settings_is_not_mixed_in(table):
    other = EmbeddingSettings("another", "response", 256)
    fill(table, other, blocks=2)
    with pytest.raises(ValueError, match=r"by another is unfinished \(14 of 36 rows\).*--overwrite"):
        fill(table)
    assert fill(table, other, blocks=0) == 14
    assert fill(table, overwrite=True) == 0
    assert Features.open(table).settings == BY


def test_an_unfinished_part_of_another_table_is_not_mixed_in(table, tmp_path):
    fill(table, blocks=2)
    changed = write_table(tmp_path, word="no")
    with pytest.raises(ValueError, match="unfinished"):
        fill(changed)
    assert fill(changed, overwrite=True) == 0


def test_two_writers_at_once_are_refused(table):
    with FeatureWriter(table, BY, D), pytest.raises(RuntimeError, match="another process is embedding"):
        fill(table)
    fill(table)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_numbers_that_are_not_finite_are_refused(table, value):
    with FeatureWriter(table, BY, D) as writer:
        writer.append(np.zeros((4, D)), np.zeros((4, len(SURFACE))))
        bad = np.zeros((4, D))
        bad[2:, 1] = value
        with pytest.raises(ValueError, match=r"row 6 of .* and 1 more .* not finite in float16, from some-model"):
            writer.append(bad, np.zeros((4, len(SURFACE))))
        with pytest.raises(ValueError, match="not finite in float32"):
            writer.append(np.zeros((4, D)), np.full((4, len(SURFACE)), np.nan))
        assert writer.rows == 4
    assert fill(table, blocks=0) == 4


@pytest.mark.parametrize("shape", [(1, D), (4, D - 1), (4, 1), (40, D)])
def test_blocks_of_another_shape_are_refused(table, shape):
    with FeatureWriter(table, BY, D) as writer, pytest.raises(ValueError, match="cannot fill"):
        writer.append(np.zeros(shape), np.zeros((40 if shape[0] == 40 else 4, len(SURFACE))))


def test_a_full_disk_is_told_before_anything_is_written(table, monkeypatch):
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(OSError, match="bytes, but"):
        fill(table)


def test_without_features_the_command_is_named(table):
    with pytest.raises(FileNotFoundError, match=r"has no embeddings: run `prefenv pools embed .*pools\.parquet`"):
        Features.open(table)


def edit(name, value):
    def change(files):
        about = json.loads(files.about.read_text())
        files.about.write_text(json.dumps(about | {name: value}))

    return change


def cut(name, by):
    def change(files):
        path = getattr(files, name)
        os.truncate(path, path.stat().st_size + by)

    return change


def replace(name, array):
    return lambda files: np.save(getattr(files, name), array)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit("version", 2), "another version"),
        (edit("surface", ["log_length"]), "another version"),
        (edit("fingerprint", "0" * 32), "another table"),
        (edit("rows", 35), "another table, of 35 rows"),
        (edit("d", 4), r"should hold \(36, 4\)"),
        (edit("d", None), "should hold"),
        (lambda files: files.about.write_text("{"), "damaged"),
        (lambda files: files.about.write_bytes(b"\xff"), "damaged"),
        (lambda files: files.about.write_text("[1]"), "damaged"),
        (cut("embedding", -1), "damaged"),
        (cut("surface", -1), "damaged"),
        (cut("embedding", 1), "longer"),
        (cut("surface", 4), "longer"),
        (lambda files: os.truncate(files.embedding, 0), "damaged"),
        (lambda files: files.surface.write_bytes(b"PK\x03\x04" + bytes(100)), "damaged"),
        (lambda files: files.embedding.unlink(), "missing"),
        (lambda files: files.surface.unlink(), "missing"),
        (replace("embedding", np.zeros((36, D), np.float32)), "float32, but should hold"),
        (replace("surface", np.zeros((36, 11), np.float64)), "float64, but should hold"),
        (replace("surface", np.zeros((35, 11), np.float32)), "35, 11"),
        (replace("embedding", np.array([{}] * 36)), "damaged"),
    ],
)
def test_what_is_wrong_is_told_with_the_way_out(table, change, message):
    fill(table)
    change(FeatureFiles(table.path))
    with pytest.raises(ValueError, match=message) as caught:
        Features.open(table)
    assert "run `prefenv pools embed" in str(caught.value)
    assert "--overwrite" in str(caught.value)
    fill(table, overwrite=True)
    Features.open(table)


def test_features_of_a_table_that_has_changed_are_refused(table, tmp_path):
    fill(table)
    with pytest.raises(ValueError, match="another table"):
        Features.open(write_table(tmp_path, word="no"))


def test_opening_reads_no_numbers(table, monkeypatch):
    """2 terabytes that the disk does not have open as well."""
    fill(table)
    files = FeatureFiles(table.path)
    d = 2**35
    np.lib.format.open_memmap(files.embedding, mode="w+", dtype=np.float16, shape=(36, d))
    edit("d", d)(files)
    assert Features.open(table).embedding.shape == (36, d)
