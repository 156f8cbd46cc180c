"""What a world makes of a table's numbers."""

import shutil
from pathlib import Path

import gymnasium as gym
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.special import expit

from prefenv.replay.data import ReplayData, _without_length, fitted_scale
from prefenv.replay.features import EmbeddingSettings, FeatureWriter
from prefenv.replay.settings import ReplaySettings
from prefenv.replay.table import PoolTable
from prefenv.replay.world import split
from tests.prefenv.replay.small import make_table
from tests.prefenv.replay.test_world import settings_on, world_on


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    return str(make_table(tmp_path_factory.mktemp("pools")))


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    return str(make_table(tmp_path_factory.mktemp("twice"), twice=True))


@pytest.mark.parametrize("warm", [0.3, 0.5])  # 9 and 15 of 30: a pair of equal prompts is cut
def test_two_sides_odd(twice, warm):
    data = ReplayData.shared(settings_on(twice))
    for seed in range(10):
        parts = split(data, settings_on(twice, warm_share=warm), np.random.default_rng(seed))
        assert not set(data.group[parts.warm].tolist()) & set(data.group[parts.train].tolist())


def test_boundary(pools):
    data = ReplayData.shared(settings_on(pools))
    parts = split(data, settings_on(pools, n_eval_prompts=36), np.random.default_rng(0))
    assert len(parts.train) == 4
    assert len(split(data, settings_on(pools, warm_share=0.49), np.random.default_rng(0)).warm) == 15  # 15.19
    assert len(split(data, settings_on(pools, warm_share=0.5), np.random.default_rng(0)).warm) == 16  # 15.5


def test_padding_and_responses(pools):
    world = world_on(pools, reference="generator:cy", n_candidates=3)
    data = world.source.data
    for _ in range(5):
        pool = world.source.draw()
        for i in range(len(pool.mask)):
            start, stop = data.table.start[pool.prompt_id[i] : pool.prompt_id[i] + 2]
            size = stop - start
            assert (pool.table_rows[i][~pool.mask[i]] == start).all()
            logit = pool.responses.logit[0, i]
            np.testing.assert_array_equal(logit[:size], data.logit[start:stop])
            assert (logit[size:] == -np.inf).all()
            seen = pool.mask[i]
            np.testing.assert_array_equal(start + pool.responses.generator[0, i][seen], pool.table_rows[i][seen])
        words = data.words[pool.table_rows]
        np.testing.assert_allclose(pool.responses.length[0], np.maximum(words / np.median(data.words), 0.05), rtol=1e-5)


def test_warm_labels(pools):
    wrong = world_on(pools, warm_share=0.5, judge="argmax", oracle_flip=1.0)
    assert wrong.posterior.weight_mean[0] < 0
    some = world_on(pools, warm_share=0.5, judge="bradley-terry", oracle_tie=1.0)
    absorbed = []
    some.posterior.beliefs.absorb = lambda *pair: absorbed.append(pair[0].shape[1])
    some.posterior._oracle.signs = lambda *given: np.sign(given[0]) * (np.arange(len(given[0])) % 3 > 0)
    some.reset(np.random.default_rng(0))
    assert absorbed == [10]  # of 16 labels 6 are ties


def test_all_warm_ties(pools):
    none = world_on(pools, warm_share=0.5, oracle_tie=1e9)
    assert not none.posterior.weight_mean.any()


def test_warm_noise(pools):
    gaps = []
    world = world_on(pools, warm_share=0.5)
    oracle = world.posterior._oracle
    signs = oracle.signs
    oracle.signs = lambda gap, rng: (gaps.append(gap), signs(gap, rng))[1]
    world.reset(np.random.default_rng(0))
    assert len(gaps[0]) == 16


def test_pairs_spread(pools):
    world = world_on(pools)
    seen = set()
    for seed in range(40):
        world.reset(np.random.default_rng(seed))
        seen |= set(map(tuple, np.sort(world.evaluator._pairs, axis=-1).reshape(-1, 2).tolist()))
    assert seen == {(i, j) for j in range(5) for i in range(j)}


def test_more_candidates_than_there_are(pools):
    assert world_on(pools, n_candidates=99).n_candidates == 5


def test_second_judge_scale_is_his_own(pools):
    plain, given = (ReplayData.shared(settings_on(pools, second_score="other", **k)) for k in ({}, {"scale": 50.0}))
    np.testing.assert_array_equal(plain.second, given.second)


def changed(pools, folder, **columns):
    """A copy of the table with other columns, and its features."""
    source, path = Path(pools), folder / "pools.parquet"
    table = pq.read_table(source)
    for name, values in columns.items():
        column = pa.array(np.asarray(values, dtype=float))
        place = table.schema.get_field_index(name)
        table = table.append_column(name, column) if place < 0 else table.set_column(place, name, column)
    pq.write_table(table, path)
    for ending in (".embedding.npy", ".surface.npy", ".features.json"):
        shutil.copy(source.with_suffix("").as_posix() + ending, path.with_suffix("").as_posix() + ending)
    return str(path)


def test_pool_generators_are_ranks(pools):
    world = world_on(pools)
    pool = world.source.draw()
    np.testing.assert_array_equal(pool.generator[pool.mask], world.source.data.generator[pool.table_rows[pool.mask]])


def test_a_changed_table_is_read_anew(pools, tmp_path):
    path = changed(pools, tmp_path)
    first = ReplayData.shared(settings_on(path, scale=1.0))
    changed(pools, tmp_path, score=-first.reward)
    second = ReplayData.shared(settings_on(path, scale=1.0))
    np.testing.assert_allclose(second.reward, -first.reward, rtol=1e-6, atol=1e-6)


def test_median(pools):
    data = ReplayData.shared(settings_on(pools))
    assert data.median_words == pytest.approx(np.median(np.expm1(data.features.surface[:, 0])))


def test_the_scale_is_fitted_to_pairs_that_differ(pools):
    table = PoolTable.open(pools)
    score = np.random.default_rng(0).integers(3, size=table.n_rows).astype(np.float32)  # a third of the pairs are equal
    scale, sure = fitted_scale(table, score, 0.75), []
    for start, stop in zip(table.start[:-1], table.start[1:], strict=True):
        values = score[start:stop]
        gap = np.abs(values[:, None] - values[None])[np.triu_indices(len(values), 1)]
        sure += expit(gap[gap > 0] / scale).tolist()
    assert np.mean(sure) == pytest.approx(0.75, abs=0.02)


def test_scores_of_two_values_make_a_world(pools, tmp_path):
    binary = changed(pools, tmp_path, score=PoolTable.open(pools).column("score") > 0)
    for judge in ("bradley-terry", "argmax"):
        assert world_on(binary, judge=judge).source.data.scale > 0


def test_constant_capability(pools, tmp_path):
    path = changed(pools, tmp_path, safe=np.ones(PoolTable.open(pools).n_rows))
    world = world_on(path, capability="safe")
    assert world.evaluator.evaluate(world.posterior).capability == 0.0


def test_controlled_by_hand(pools, tmp_path):
    table = PoolTable.open(pools)
    log_length = ReplayData.shared(settings_on(pools)).features.surface[:, 0].astype(np.float64)
    rng = np.random.default_rng(0)
    level = np.repeat(rng.normal(size=table.n_prompts) * 9, table.sizes)
    path = changed(pools, tmp_path, score=2.0 * log_length + level + 0.01 * rng.normal(size=table.n_rows))
    data = ReplayData.shared(settings_on(path, scale=1.0))
    rest = data.controlled - np.repeat(
        np.add.reduceat(data.controlled.astype(float), table.start[:-1]) / table.sizes, table.sizes
    )
    assert np.abs(rest).max() < 0.1  # nothing is left within prompts
    same = _without_length(table, data.reward, np.ones(table.n_rows, dtype=np.float32))
    np.testing.assert_array_equal(same, data.reward)


def test_reference_logits(pools, tmp_path):
    table = PoolTable.open(pools)
    path = changed(pools, tmp_path, safe=100 + 50 * np.random.default_rng(0).normal(size=table.n_rows))
    column = ReplayData.shared(settings_on(path, reference="column:safe", reference_strength=2.0))
    assert column.logit.std() == pytest.approx(2.0, rel=1e-4)
    named = ReplayData.shared(settings_on(path, reference="generator:cy", reference_strength=2.0))
    expected = np.where(np.array(table.generators)[table.generator] == "cy", 2.0, 0.0)
    np.testing.assert_array_equal(named.logit, expected)


def test_rank_is_within_prompts(pools, tmp_path):
    table = PoolTable.open(pools)
    level = np.repeat(1000.0 * np.random.default_rng(0).normal(size=table.n_prompts), table.sizes)
    path = changed(pools, tmp_path, score=table.column("score") + level)
    np.testing.assert_array_equal(
        ReplayData.shared(settings_on(path)).generator, ReplayData.shared(settings_on(pools)).generator
    )


def test_statistics(tmp_path):
    from types import SimpleNamespace

    from prefenv.replay.data import _statistics

    rng = np.random.default_rng(0)
    embedding = rng.normal(size=(3000, 3)).astype(np.float16)
    embedding[:, 1] = 1e-5 * np.arange(3000) / 3000
    surface = rng.normal(size=(3000, 2)).astype(np.float32)
    shift, spread = _statistics(SimpleNamespace(embedding=embedding, surface=surface))
    both = np.concatenate([embedding, surface], axis=1, dtype=np.float64)
    np.testing.assert_allclose(shift, both.mean(axis=0), atol=1e-6)
    std = both.std(axis=0)
    std[1] = 1.0
    np.testing.assert_allclose(spread, std, rtol=1e-5)


def test_groups_of_a_table_longer_than_a_batch(tmp_path):
    path = make_table(tmp_path, n=1500, twice=True)  # 5,250 rows, read 4,096 at a time
    data = ReplayData.shared(settings_on(str(path)))
    texts = [t for t, _ in data.table.texts(data.table.start[:-1])]
    number = {}
    assert data.group.tolist() == [number.setdefault(text, len(number)) for text in texts]


def test_settings_more():
    assert ReplaySettings(judge="argmax").oracle_temperature == 0.0
    for name, value in {"oracle_flip": -0.1, "certainty": 1.0, "warm_share": -0.1}.items():
        with pytest.raises(ValueError, match=name):
            ReplaySettings(**{name: value})


def test_no_more_padding_than_needed(pools):
    data = ReplayData.shared(settings_on(pools))
    small = np.flatnonzero(data.table.sizes == 2)
    assert data.rows_of(small).shape[1] == 2


def test_all_prompts_are_dealt_before_one_comes_again(pools):
    world = world_on(pools, n_prompts=20, n_eval_prompts=5)  # 35 for pools of 20
    dealt = [world.source.draw().prompt_id for _ in range(14)]
    assert all(len(np.unique(pool)) == 20 for pool in dealt)
    times = np.bincount(np.concatenate(dealt), minlength=40)
    assert sorted(set(times.tolist())) == [0, 8]  # 280 of 35


def test_another_embedding_beside_the_same_table_is_read_anew(pools, tmp_path):
    path = changed(pools, tmp_path)
    before = ReplayData.shared(settings_on(path)).digest
    assert ReplayData.shared(settings_on(path)).digest == before
    table = PoolTable.open(path)
    with FeatureWriter(table, EmbeddingSettings("another"), 7, overwrite=True) as writer:
        writer.append(
            np.random.default_rng(1).standard_normal((table.n_rows, 7)),
            ReplayData.open(settings_on(path)).features.surface,
        )
    data = ReplayData.shared(settings_on(path))
    assert data.policy_size == 8
    assert data.digest != before


def test_states_of_another_table_are_refused(pools, tmp_path):
    other = changed(pools, tmp_path, score=-PoolTable.open(pools).column("score"))
    one, two = (gym.make("PrefAcquire-v0", world=world_on(path)).unwrapped for path in (pools, other))
    one.reset(seed=0)
    with pytest.raises(ValueError, match=r"digest|settings"):
        two.load_state_dict(one.state_dict())


def test_rows_moved_in_a_table_are_noticed(pools, tmp_path):
    path = Path(changed(pools, tmp_path))
    table = pq.ParquetFile(path).read()
    sizes = PoolTable.open(path).sizes
    order = np.concatenate(
        [np.arange(size)[::-1] + start for size, start in zip(sizes, np.cumsum(sizes) - sizes, strict=True)]
    )
    pq.write_table(table.take(order), path)
    with pytest.raises(ValueError, match="another table"):
        ReplayData.open(settings_on(str(path)))


def test_an_id_of_two_prompts_is_refused(pools, tmp_path):
    path = Path(changed(pools, tmp_path))
    table = pq.read_table(path)
    prompts = table["prompt"].to_pylist()
    prompts[1] = "something else"
    pq.write_table(table.set_column(table.schema.get_field_index("prompt"), "prompt", pa.array(prompts)), path)
    with pytest.raises(ValueError, match="different ones"):
        ReplayData.open(settings_on(str(path)))


def test_without_a_name_the_score_is_the_first_column_where_none_is_called_so(pools, tmp_path):
    path = Path(changed(pools, tmp_path))
    assert ReplayData.open(settings_on(str(path))).score == "score"
    table = pq.read_table(path)
    pq.write_table(table.rename_columns(["overall" if name == "score" else name for name in table.column_names]), path)
    data = ReplayData.open(settings_on(str(path)))
    assert data.score == "overall"
    np.testing.assert_array_equal(data.reward, ReplayData.open(settings_on(pools)).reward)
    pq.write_table(table.drop_columns(["score", "other", "safe"]), path)
    with pytest.raises(ValueError, match="no column of numbers"):
        ReplayData.open(settings_on(str(path)))


def test_log_probabilities_are_the_reference(pools):
    world = world_on(pools, reference="logprob:safe")
    data = world.source.data
    logprob = data.table.numbers("safe")
    pool = world.source.draw()
    for i, prompt in enumerate(pool.prompt_id):
        rows = slice(*data.table.start[prompt : prompt + 2])
        expected = logprob[rows] - np.log(np.exp(logprob[rows]).sum())
        np.testing.assert_allclose(pool.logprob[i][pool.mask[i]], expected, atol=1e-5)
    assert not pool.implicit_reward.any()
