"""The command that embeds a table."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import tyro

from experiments import pools_embed
from experiments.pools_embed import PoolsEmbedConfig, embed_pools
from prefenv.replay.features import EmbeddingSettings, FeatureFiles, Features
from prefenv.replay.surface import surface_features
from prefenv.replay.table import PoolTable, TableWriter

D = 4


@pytest.fixture
def pools(tmp_path):
    path = tmp_path / "pools.parquet"
    with TableWriter(path, ["score"]) as writer:
        for prompt in range(10):
            answers = [f"the film {'was good ' * (1 + (prompt * j) % 5)}" for j in range(3)]
            candidates = [{"generator": f"g{j}", "response": text, "score": 1.0} for j, text in enumerate(answers)]
            writer.add(f"p{prompt}", f"The film {prompt}", candidates)
    return path


@pytest.fixture
def vectors(tmp_path):
    path = tmp_path / "vectors.npy"
    np.save(path, np.random.default_rng(0).standard_normal((30, D)))
    return path


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(pools_embed, "MODEL_BLOCK", 7)
    monkeypatch.setattr(pools_embed, "VECTORS_BLOCK", 7)


def contents(pools):
    files = FeatureFiles(pools)
    return [path.read_bytes() for path in (files.embedding, files.surface, files.about)]


def test_the_command_line():
    config = tyro.cli(PoolsEmbedConfig, args=["a.parquet", "--text", "prompt-and-response", "--overwrite"])
    assert config.pools.name == "a.parquet"
    assert config.text == "prompt-and-response"
    assert config.overwrite


def test_given_vectors(pools, vectors, capsys):
    assert embed_pools(PoolsEmbedConfig(pools, vectors=vectors)) == 0
    found = Features.open(PoolTable.open(pools))
    np.testing.assert_array_equal(found.embedding, np.load(vectors).astype(np.float16))
    assert found.settings.model.startswith("vectors.npy ")
    assert found.settings.text is None
    texts = PoolTable.open(pools).texts(range(30))
    np.testing.assert_array_equal(found.surface, surface_features(*zip(*texts, strict=True)))
    assert "30 rows by vectors.npy" in capsys.readouterr().out


def test_again_does_nothing(pools, vectors, capsys):
    config = PoolsEmbedConfig(pools, vectors=vectors)
    embed_pools(config)
    written = [path.stat().st_mtime_ns for path in pools.parent.glob("pools.*")]
    assert embed_pools(config) == 0
    assert "are there already" in capsys.readouterr().out
    assert [path.stat().st_mtime_ns for path in pools.parent.glob("pools.*")] == written


def test_another_embedding_needs_overwrite(pools, vectors):
    embed_pools(PoolsEmbedConfig(pools, vectors=vectors))
    np.save(vectors, np.ones((30, D + 1), dtype=np.float16))  # the same name with other contents
    with pytest.raises(ValueError, match=r"is embedded by vectors.npy .*, not by vectors.npy .*: .* --overwrite"):
        embed_pools(PoolsEmbedConfig(pools, vectors=vectors))
    with pytest.raises(ValueError, match=r"not by all-minilm-l6-v2, response up to 256 tokens: .* --overwrite"):
        embed_pools(PoolsEmbedConfig(pools))
    embed_pools(PoolsEmbedConfig(pools, vectors=vectors, overwrite=True))
    assert Features.open(PoolTable.open(pools)).embedding.shape == (30, D + 1)


def test_damaged_features_are_told_and_replaced(pools, vectors):
    config = PoolsEmbedConfig(pools, vectors=vectors)
    embed_pools(config)
    expected = contents(pools)
    os.truncate(FeatureFiles(pools).embedding, 150)
    with pytest.raises(ValueError, match=r"damaged .*--overwrite"):
        embed_pools(config)
    embed_pools(PoolsEmbedConfig(pools, vectors=vectors, overwrite=True))
    assert contents(pools) == expected


def write(path, content):
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((29, D)), r"holds \(29, 4\) numbers, but .* needs \(30, d\)"),
        (np.zeros(30), r"\(30,\)"),
        (np.zeros((30, 0)), r"\(30, 0\)"),
        (np.zeros((30, D), dtype=int), "floating"),
        (np.array([{}] * 30), "no whole array"),
        (b"", "no whole array"),
        (b"1,2,3", "no whole array"),
        (np.full((30, D), np.nan), r"row 0 of .* not finite in float16, from vectors.npy"),
        (np.full((30, D), 1e5), "not finite in float16"),
    ],
)
def test_vectors_that_do_not_fit(pools, vectors, content, message):
    write(vectors, content)
    with pytest.raises(ValueError, match=message):
        embed_pools(PoolsEmbedConfig(pools, vectors=vectors))
    with pytest.raises(FileNotFoundError):
        Features.open(PoolTable.open(pools))


def test_overwrite_throws_an_unfinished_embedding_away(pools, vectors):
    numbers = np.ones((30, D))
    np.save(vectors.with_name("bad.npy"), np.concatenate([numbers[:-1], [[np.nan] * D]]))
    with pytest.raises(ValueError, match="row 29"):
        embed_pools(PoolsEmbedConfig(pools, vectors=vectors.with_name("bad.npy")))
    with pytest.raises(ValueError, match=r"by bad.npy .* is unfinished \(28 of 30 rows\).*--overwrite"):
        embed_pools(PoolsEmbedConfig(pools, vectors=vectors))
    assert embed_pools(PoolsEmbedConfig(pools, vectors=vectors, overwrite=True)) == 0


def test_truncated_vectors(pools, vectors):
    os.truncate(vectors, vectors.stat().st_size - 8)
    with pytest.raises(ValueError, match="no whole array"):
        embed_pools(PoolsEmbedConfig(pools, vectors=vectors))


def test_what_is_not_there(pools, tmp_path):
    with pytest.raises(FileNotFoundError, match="no vectors at"):
        embed_pools(PoolsEmbedConfig(pools, vectors=tmp_path / "none.npy"))
    with pytest.raises(FileNotFoundError, match="prefenv pools import"):
        embed_pools(PoolsEmbedConfig(tmp_path / "none.parquet"))


@pytest.mark.parametrize("name", ["max_tokens", "batch_size"])
def test_numbers_below_one(pools, name):
    with pytest.raises(ValueError, match=name):
        embed_pools(PoolsEmbedConfig(pools, **{name: 0}))


# --- with a tiny model ---


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    pytest.importorskip("transformers")
    from tests.llm.tiny import make_model, make_tokenizer

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = make_tokenizer()
    make_model(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def given(pools, tiny, **settings):
    return PoolsEmbedConfig(pools, **{"model": tiny, "max_tokens": 32, "batch_size": 4, "device": "cpu"} | settings)


def test_a_model_reads_in_blocks_what_it_reads_at_once(pools, tiny):
    from prefenv.llm.embed import load_embedder

    for text in ("response", "prompt-and-response"):
        embed_pools(given(pools, tiny, text=text, overwrite=True))
        found = Features.open(PoolTable.open(pools))
        assert found.settings == EmbeddingSettings(tiny, text, 32)
        texts = PoolTable.open(pools).texts(range(30))
        expected = load_embedder(tiny, text != "response", 32).embed(*zip(*texts, strict=True), 30)
        np.testing.assert_allclose(found.embedding, expected, atol=1e-3)


def test_other_settings_are_another_embedding_but_for_the_size_of_batches(pools, tiny, capsys):
    embed_pools(given(pools, tiny))
    assert embed_pools(given(pools, tiny, batch_size=3)) == 0
    assert "are there already" in capsys.readouterr().out
    for changed in ({"max_tokens": 31}, {"text": "prompt-and-response"}, {"model": "other"}):
        with pytest.raises(ValueError, match="is embedded by"):
            embed_pools(given(pools, tiny, **changed))


def test_absent_packages_name_their_extra(pools, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "prefenv.llm.embed", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"'torch': pip install 'prefenv\[llm\]', or pass --vectors"):
        embed_pools(PoolsEmbedConfig(pools))


KILLED = """
import os, signal, sys
from pathlib import Path
from experiments import pools_embed
from prefenv.replay import surface
from tests.experiments.test_pools_embed import *
pools_embed.MODEL_BLOCK, original, count = 7, surface_features, [0]
def deadly(*texts):
    count[0] += 1
    if count[0] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*texts)
surface.surface_features = deadly
embed_pools(given(Path(sys.argv[1]), sys.argv[2]))
"""


@pytest.mark.slow
def test_a_killed_command_goes_on_and_leaves_the_same_bytes(pools, tiny, capsys):
    import torch

    embed_pools(given(pools, tiny))
    expected = contents(pools)
    for path in pools.parent.glob("pools.*[!t]"):  # all but the table
        path.unlink()
    command = [sys.executable, "-c", KILLED, str(pools), tiny]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # the last digits depend on them
    killed = subprocess.run(command, env=os.environ | threads, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(FileNotFoundError, match="unfinished"):
        Features.open(PoolTable.open(pools))
    with pytest.raises(ValueError, match=r"unfinished \(14 of 30 rows\): go on with it"):
        embed_pools(given(pools, tiny, max_tokens=31))
    capsys.readouterr()
    embed_pools(given(pools, tiny))
    assert "14 of 30 rows are there already" in capsys.readouterr().out
    assert contents(pools) == expected


def test_vectors_of_another_table_are_refused(pools, vectors):
    vectors.with_suffix(".json").write_text('{"fingerprint": "another", "rows": 30}')
    with pytest.raises(ValueError, match="belongs to another table"):
        embed_pools(PoolsEmbedConfig(pools, vectors=vectors))
    vectors.with_suffix(".json").write_text(f'{{"fingerprint": "{PoolTable.open(pools).fingerprint}", "rows": 30}}')
    assert embed_pools(PoolsEmbedConfig(pools, vectors=vectors)) == 0
