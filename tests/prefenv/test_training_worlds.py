"""Worlds drawn at random for training."""

import dataclasses

import numpy as np
import pytest

from prefenv.spaces import n_pairs, pair_index, pair_mask, pair_table
from prefenv.synthetic.ranges import POOLS_OF_MANY, Ranges
from prefenv.synthetic.settings import PRESETS
from prefenv.training_worlds import LEAST_HEADROOM, TrainingWorlds
from prefenv.vector import PrefAcquireVectorEnv

SMALL = Ranges(n_prompts=(2, 4), n_candidates=(3, 5), embedding_size=(4, 9), learning_rate=(0.5, 2.0))


def make(**changes):
    arguments = {"ranges": SMALL, "groups": 3, "worlds_each": 4, "rounds": 3} | changes
    return TrainingWorlds(**arguments)


def some_legal(observation, rng):
    """(B, n) legal pairs at random; 0 for padded prompts."""
    return np.where(pair_mask(observation["mask"]), rng.random((*observation["mask"].shape[:2], 10)), -1).argmax(-1)


def best(observation):
    return np.where(pair_mask(observation["mask"]), observation["oracle_gain"], -np.inf).argmax(axis=-1)


def walk(envs, choose, seed=5):
    observation, info = envs.reset(seed=seed)
    total, over = 0.0, False
    while not over:
        observation, reward, terminated, truncated, info = envs.step(choose(observation))
        total, over = total + reward, terminated.all()
        assert not truncated.any()
    return total, info


def test_settings_lie_in_their_ranges_and_reach_all_kinds():
    rng = np.random.default_rng(0)
    for ranges in (Ranges(), POOLS_OF_MANY):
        drawn = [ranges.draw(rng) for _ in range(400)]
        for name in ("n_prompts", "n_candidates", "embedding_size"):
            low, high = getattr(ranges, name)
            found = {getattr(settings, name) for settings in drawn}
            assert min(found) == low
            assert max(found) >= high - 2
            assert max(found) <= high
        for name in ("misspecification", "reward_scale", "learning_rate", "prior_std", "oracle_temperature"):
            low, high = getattr(ranges, name)
            values = np.array([getattr(settings, name) for settings in drawn])
            assert low <= values.min() < low + (high - low) / 5
            assert high - (high - low) / 3 < values.max() <= high
        assert {settings.loss for settings in drawn} == {"dpo", "ipo", "simpo"}
        assert {settings.on_policy for settings in drawn} == {True, False}
        assert any(settings.skill_spread == settings.style_spread == 0 for settings in drawn)
        assert any(settings.warm_labels == 0 for settings in drawn)
        assert 0.55 < np.mean([settings.oracle_flip == 0 for settings in drawn]) < 0.78
        assert 0.55 < np.mean([settings.oracle_tie == 0 for settings in drawn]) < 0.78
        assert 0.4 < np.mean([settings.warm_labels == 0 for settings in drawn]) < 0.6
        assert 0.4 < np.mean([settings.reference_strength == 0 for settings in drawn]) < 0.6
        assert 0.17 < np.mean([settings.skill_spread == 0 for settings in drawn]) < 0.33
        assert 0.17 < np.mean([settings.on_policy for settings in drawn]) < 0.33
        for settings in drawn:
            low, high = (20 * limit if settings.loss == "simpo" else limit for limit in ranges.beta)
            assert low <= settings.beta <= high
        assert any(settings.n_generators == settings.n_candidates for settings in drawn)
        assert any(settings.n_generators > settings.n_candidates for settings in drawn)
        assert {settings.posterior for settings in drawn} == {"linear"}  # kept out: what no training has met
        assert {settings.consistency_spread for settings in drawn} == {0.0}


def test_draws_depend_on_the_generator_alone():
    first, again, other = (Ranges().draw(np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first == again != other
    assert first not in PRESETS.values()


def test_wrong_ranges_are_told():
    with pytest.raises(ValueError, match="the lowest comes first"):
        Ranges(n_prompts=(5, 2))
    with pytest.raises(ValueError, match="n_candidates"):
        Ranges(n_candidates=(1, 2))
    for name in ("reward_scale", "beta", "learning_rate", "prior_std", "gradient_steps", "warm_labels"):
        with pytest.raises(ValueError, match=name):
            Ranges(**{name: (0, 2)})
        with pytest.raises(ValueError, match=name):
            Ranges(**{name: (3, 2)})
    with pytest.raises(ValueError, match="generators_each"):
        Ranges(generators_each=(0.5, 2.0))


def test_observations_lie_in_their_space_and_are_padded():
    envs = make(privileged=True)
    observation, info = envs.reset(seed=0)
    assert envs.observation_space.contains(observation)
    assert info["win_rate"].shape == (12,)
    sizes = [(group.settings.n_prompts, group.settings.n_candidates) for group in envs._group]
    assert len(set(sizes)) > 1
    for b in range(12):
        n, m = sizes[b // 4]
        mask = np.zeros((4, 5))
        mask[:n, :m] = 1
        np.testing.assert_array_equal(observation["mask"][b], mask)
        np.testing.assert_array_equal(observation["oracle_gain"][b][~pair_mask(mask)], 0)


def test_a_group_walks_as_its_worlds_would_alone():
    envs, rng = make(privileged=True), np.random.default_rng(0)
    observation, _ = envs.reset(seed=7)
    settings = [group.settings for group in envs._group]
    alone = [PrefAcquireVectorEnv(each, 4, 3 * each.n_prompts, privileged=True) for each in settings]
    for place, env in enumerate(alone):
        env.reset(seed=list(range(7 + 4 * place, 11 + 4 * place)))
    for _ in range(3):
        actions = some_legal(observation, rng)
        observation, _, _, _, info = envs.step(actions)
        for place, (env, each) in enumerate(zip(alone, settings, strict=True)):
            rows, (i, j) = slice(4 * place, 4 * place + 4), pair_table(5)
            pairs = actions[rows, : each.n_prompts]
            own, _, _, _, own_info = env.step(pair_index(i[pairs], j[pairs], each.n_candidates))
            np.testing.assert_array_equal(info["win_rate"][rows], own_info["win_rate"])
            n, m = each.n_prompts, each.n_candidates
            np.testing.assert_array_equal(observation["reward_mean"][rows, :n, :m], own["reward_mean"])
            i, j = pair_table(m)
            np.testing.assert_array_equal(
                observation["oracle_gain"][rows, :n][..., pair_index(i, j, 5)], own["oracle_gain"]
            )


def test_oracle_greedy_takes_the_headroom():
    envs = make(privileged=True, worlds_each=16)
    total, info = walk(envs, best)
    taken = info["headroom"].reshape(3, 16)
    expected = np.minimum(1, taken.mean(axis=1) / taken.std(axis=1))  # 1, or the inverse of the spread
    np.testing.assert_allclose(taken.mean(axis=1), expected, rtol=1e-6)
    assert taken.mean(axis=1).max() == pytest.approx(1.0)
    np.testing.assert_allclose(total.reshape(3, 16).mean(axis=1), taken.mean(axis=1), atol=0.3)  # other labels


def test_the_return_is_the_area_ahead_of_random_in_units_of_the_headroom():
    envs, rng = make(), np.random.default_rng(0)
    observation, info = envs.reset(seed=1)
    curve, rewards = [info["win_rate"]], []
    for _ in range(3):
        observation, reward, _, _, info = envs.step(some_legal(observation, rng))
        curve.append(info["win_rate"])
        rewards.append(reward)
    area = np.trapezoid(np.stack(curve) - curve[0], axis=0) / 3
    for place, group in enumerate(envs._group):
        rows, weight = slice(4 * place, 4 * place + 4), np.array([2.5, 1.5, 0.5]) / 3
        assert group._unit >= LEAST_HEADROOM
        taken = (area[rows] - group._random @ weight) / group._unit
        np.testing.assert_allclose(info["headroom"][rows], taken, atol=1e-9)
        assert not np.array_equal(np.sum(rewards, axis=0)[rows], taken)  # which is averaged over labels


def test_the_same_seed_is_the_same_episode_and_the_next_one_is_another():
    def walks(envs):
        rng = np.random.default_rng(0)
        return [walk(envs, lambda o: some_legal(o, rng), seed)[0] for seed in (3, None)]

    first, again = walks(make()), walks(make())
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(*first)
    envs = make()
    envs.reset(seed=3)
    before = [group.settings for group in envs._group]
    for _ in range(3):
        envs.step(np.zeros((12, 4), dtype=np.int64))
    _, reward, terminated, _, _ = envs.step(np.zeros((12, 4), dtype=np.int64))  # the next episode begins
    assert not reward.any()
    assert not terminated.any()
    assert all(group.settings != old for group, old in zip(envs._group, before, strict=True))


def test_actions_on_padding_are_survived():
    envs = make()
    observation, _ = envs.reset(seed=0)
    assert (~pair_mask(observation["mask"])).any()
    envs.step(np.full((12, 4), n_pairs(5) - 1))


def test_what_cannot_be_is_told():
    with pytest.raises(RuntimeError, match="reset"):
        make().step(np.zeros((12, 4), dtype=np.int64))
    with pytest.raises(ValueError, match="12 seeds"):
        make().reset(seed=[1, 2])
    with pytest.raises(ValueError, match="12 seeds"):
        make().reset(seed=[None] * 12)
    with pytest.raises(ValueError, match="groups"):
        make(groups=0)


def test_a_mean_over_no_labellings_is_refused():
    envs = PrefAcquireVectorEnv(PRESETS["synthetic"], 2)
    envs.reset(seed=0)
    for number in (0, 1, 3):
        with pytest.raises(ValueError, match="labellings"):
            envs.mean_gain(np.zeros((2, 8), dtype=np.int64), np.random.default_rng(0), number)


def test_without_a_seed_worlds_are_none_that_people_compare():
    envs = make()
    envs.reset()
    assert min(envs._next_seeds) >= 1_000_000_000


def test_every_episode_has_seeds_of_its_own():
    envs = make()
    envs.reset(seed=100)
    assert envs._next_seeds == list(range(112, 124))


def test_ranges_name_settings():
    names = {field.name for field in dataclasses.fields(PRESETS["synthetic"])}
    assert {field.name for field in dataclasses.fields(Ranges)} - names == {"generators_each", "losses"}


@pytest.mark.parametrize("changes", [{}, {"oracle_tie": 1.0, "oracle_flip": 0.2}, {"loss": "simpo"}])
def test_mean_gain_is_the_mean_over_labels_and_changes_nothing(changes):
    settings = dataclasses.replace(PRESETS["synthetic"], learning_rate=3.0, **changes)
    many = 1500
    envs, untouched = (PrefAcquireVectorEnv(settings, many, 16) for _ in range(2))
    rng = np.random.default_rng(0)
    for one in (envs, untouched):
        one.reset(seed=[3] * many)  # the same world
    actions = np.tile(rng.integers(6, size=8), (many, 1))
    mean = envs.mean_gain(actions, rng, 8)
    gains = envs.step(actions)[1]
    np.testing.assert_array_equal(gains, untouched.step(actions)[1])
    envs.reset(seed=[3] * many)
    envs._labellers.reset([np.random.PCG64(seed) for seed in range(many)], [])  # other labels in each
    gains = envs.step(actions)[1]
    error = np.sqrt((gains.var() + mean.var()) / many)
    assert abs(gains.mean() - mean.mean()) < 4 * error
    assert mean.std() < 0.6 * gains.std()
