"""The replay world: held against its table."""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from scipy.special import expit

import agents
import prefenv
from prefenv.replay.data import ReplayData, fitted_scale
from prefenv.replay.settings import ReplaySettings
from prefenv.replay.world import make_replay_world, split
from tests.prefenv.replay.small import GENERATORS, D, make_table
from tests.world_contract import *  # noqa: F403  # the tests


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    return str(make_table(tmp_path_factory.mktemp("pools")))


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    return str(make_table(tmp_path_factory.mktemp("twice"), twice=True))


def settings_on(pools, **changed):
    return ReplaySettings(**{"pools": pools, "n_prompts": 4, "n_eval_prompts": 9, "n_samples": 5} | changed)


def world_on(pools, seed=0, **changed):
    world = make_replay_world(settings_on(pools, **changed))
    world.reset(np.random.default_rng(seed))
    return world


@pytest.fixture(params=["plain", "everything"])
def world(request, pools):
    changed = {
        "second_score": "other", "capability": "safe", "n_candidates": 3, "warm_share": 0.3, "loss": "simpo",
        "reference": "generator:bo", "oracle_tie": 0.3, "oracle_flip": 0.1, "learning_rate": 1.0,
    }  # fmt: skip
    return make_replay_world(settings_on(pools, **(changed if request.param == "everything" else {})))


def test_gymnasiums_checker_and_the_key(pools):
    with pytest.raises(ValueError, match="take fewer n_eval_prompts"):  # 100 held-out prompts of 40
        gym.make("PrefAcquire-v0", world="replay", pools=pools, n_prompts=4)
    env = gym.make("PrefAcquire-v0", world=settings_on(pools))
    check_env(env.unwrapped, skip_render_check=True)
    info = env.reset(seed=0)[1]
    assert "win_rate_second" not in info
    assert "capability" not in info
    assert info["win_rate_length_controlled"] == pytest.approx(0.5)


def test_pools_are_rows_of_the_table(pools):
    world = world_on(pools)
    data = world.source.data
    score = data.table.column("score")
    for _ in range(5):
        pool = world.source.draw()
        for i, prompt in enumerate(pool.prompt_id):
            rows = pool.table_rows[i][pool.mask[i]]
            start, stop = data.table.start[prompt : prompt + 2]
            assert rows.tolist() == list(range(start, stop))  # all of them, in their order
        reward = (score - score.mean(dtype=np.float64)) / data.scale
        np.testing.assert_allclose(pool.reward, reward[pool.table_rows], rtol=1e-4, atol=1e-5)
        raw = np.concatenate([data.features.embedding, data.features.surface], axis=1).astype(np.float64)
        z = (raw - raw.mean(axis=0)) / np.where(raw.std(axis=0) > 1e-4, raw.std(axis=0), 1.0)
        np.testing.assert_allclose(pool.embedding[pool.mask], z[pool.table_rows[pool.mask]], atol=1e-4)
        np.testing.assert_allclose(
            pool.features[pool.mask], z[pool.table_rows[pool.mask], : D + 1] / np.sqrt(D + 1), atol=1e-4
        )
        words = np.expm1(data.features.surface[pool.table_rows[pool.mask], 0])
        np.testing.assert_allclose(pool.length[pool.mask], words, rtol=1e-5)


def test_a_prompt_with_more_candidates_shows_a_random_part(pools):
    world = world_on(pools, n_candidates=2)
    seen = {}
    for _ in range(200):
        pool = world.source.draw()
        assert pool.mask.all()
        for prompt, rows in zip(pool.prompt_id, pool.table_rows, strict=True):
            assert rows[0] < rows[1]
            seen.setdefault(int(prompt), set()).update(rows.tolist())
    sizes = world.source.data.table.sizes
    assert all(len(rows) == sizes[prompt] for prompt, rows in seen.items())


@pytest.mark.parametrize("warm", [0.0, 0.4])
def test_no_prompt_serves_two_sides(twice, warm):
    data = ReplayData.shared(settings_on(twice))
    for seed in range(30):
        parts = split(data, settings_on(twice, warm_share=warm), np.random.default_rng(seed))
        groups = [set(data.group[part].tolist()) for part in (parts.held_out, parts.warm, parts.train)]
        assert not groups[0] & groups[1]
        assert not groups[0] & groups[2]
        assert not groups[1] & groups[2]
        assert len(parts.held_out) == 9
        assert len(np.unique(np.concatenate([parts.held_out, parts.warm, parts.train]))) >= 30
    texts = {data.table.texts([row])[0][0] for row in data.table.start[:-1]}
    assert len(texts) == 20
    assert data.group.max() == 19


def test_pools_never_show_what_is_held_out_and_deal_all_first(twice):
    world = world_on(twice, warm_share=0.2)
    parts, data = world.source.split, world.source.data
    hidden = set(data.group[np.concatenate([parts.held_out, parts.warm])].tolist())
    dealt = [world.source.draw().prompt_id for _ in range(len(parts.train) // 4)]
    assert len(np.unique(np.concatenate(dealt))) == 4 * len(dealt)
    for _ in range(20):
        assert not hidden & set(data.group[world.source.draw().prompt_id].tolist())
    assert set(np.unique(world.evaluator._rows[world.evaluator._rows >= 0]).tolist()) == {
        row for prompt in parts.held_out for row in range(data.table.start[prompt], data.table.start[prompt + 1])
    }


def by_hand(world, theta):
    """Win rates and the rest of a policy, prompt by prompt."""
    data, settings = world.source.data, world.settings
    found = {"win": [], "second": [], "controlled": [], "capability": [], "kl": []}
    for prompt in world.source.split.held_out:
        rows = np.arange(data.table.start[prompt], data.table.start[prompt + 1])
        f = data.policy_features(data.embedding(rows)).astype(np.float64)
        reference = np.exp(data.logit[rows].astype(np.float64))
        reference /= reference.sum()
        policy = reference * np.exp(f @ theta)
        policy /= policy.sum()

        def win(r, policy=policy, reference=reference):
            gap = r[:, None].astype(np.float64) - r[None, :]
            beats = expit(gap) if settings.judge == "bradley-terry" else 0.5 + 0.5 * np.sign(gap)
            return policy @ beats @ reference

        found["win"].append(win(data.reward[rows]))
        found["controlled"].append(win(data.controlled[rows]))
        found["second"].append(win(data.second[rows]))
        found["capability"].append((policy - reference) @ data.capability[rows])
        found["kl"].append(policy @ np.log(policy / reference))
    return {name: np.mean(values) for name, values in found.items()}


@pytest.mark.parametrize("judge", ["bradley-terry", "argmax"])
@pytest.mark.parametrize("reference", ["uniform", "generator:cy", "column:safe"])
def test_evaluation_is_brute_force(pools, judge, reference):
    world = world_on(pools, judge=judge, reference=reference, second_score="other", capability="safe")
    theta = np.random.default_rng(1).standard_normal(D + 1)
    for factor in (0.0, 1.0, 30.0):
        world.learner.policies.theta = factor * theta[None]
        got, expected = world.evaluator.evaluate(world.posterior), by_hand(world, factor * theta)
        assert got.win_rate.mean == pytest.approx(expected["win"], abs=1e-6)
        assert got.second == pytest.approx(expected["second"], abs=1e-6)
        assert got.length_controlled == pytest.approx(expected["controlled"], abs=1e-6)
        assert got.capability == pytest.approx(expected["capability"], abs=1e-5)
        assert got.kl == pytest.approx(expected["kl"], abs=1e-4)


def test_the_gradient_of_the_win_rate_is_that_of_the_win_rate(pools):
    world = world_on(pools)
    theta = np.random.default_rng(1).standard_normal((1, D + 1))

    def rate(at):
        world.learner.policies.theta = at
        return world.evaluator.evaluate(world.posterior).win_rate.mean

    rate(theta)
    gradient = world.evaluator.win_rate_gradient()[0]
    for axis in range(D + 1):
        step = np.zeros((1, D + 1))
        step[0, axis] = 1e-2
        assert gradient[axis] == pytest.approx((rate(theta + step) - rate(theta - step)) / 2e-2, abs=1e-4)


def test_what_the_pool_says_of_the_policy(pools):
    world = world_on(pools, reference="generator:cy", n_candidates=2)
    theta = np.random.default_rng(1).standard_normal(D + 1)
    world.learner.policies.theta = theta[None]
    data, pool = world.source.data, world.source.draw()
    for i, prompt in enumerate(pool.prompt_id):
        rows = np.arange(data.table.start[prompt], data.table.start[prompt + 1])
        f = data.policy_features(data.embedding(rows)).astype(np.float64)
        reference = data.logit[rows] - np.log(np.exp(data.logit[rows]).sum())
        logprob = reference + f @ theta
        logprob -= np.log(np.exp(logprob).sum())
        place = np.searchsorted(rows, pool.table_rows[i])
        np.testing.assert_allclose(pool.logprob[i], logprob[place], atol=1e-5)
        np.testing.assert_allclose(pool.implicit_reward[i], 0.1 * (logprob - reference)[place], atol=1e-5)
        assert pool.entropy[i] == pytest.approx(-(np.exp(logprob) * logprob).sum(), abs=1e-5)


def test_generators_are_numbered_by_their_score(pools):
    data = ReplayData.shared(settings_on(pools))
    within = data.reward - np.repeat(
        np.add.reduceat(data.reward, data.table.start[:-1]) / data.table.sizes, data.table.sizes
    )
    mean = {name: within[data.table.generator == code].mean() for code, name in enumerate(data.table.generators)}
    ranked = sorted(mean, key=mean.get)
    names = np.array(data.table.generators)[data.table.generator]
    assert [names[data.generator == number][0] for number in range(len(GENERATORS))] == ranked


@pytest.mark.parametrize("certainty", [0.6, 0.8, 0.95])
def test_the_fitted_scale_makes_labels_as_sure_as_asked(pools, certainty):
    data = ReplayData.shared(settings_on(pools))
    table, score = data.table, data.table.column("score")
    scale = fitted_scale(table, score, certainty)
    sure = []
    for start, stop in zip(table.start[:-1], table.start[1:], strict=True):
        values = score[start:stop]
        gap = np.abs(values[:, None] - values[None, :])[np.triu_indices(len(values), 1)]
        sure.append(expit(gap / scale).mean())
    assert np.mean(sure) == pytest.approx(certainty, abs=0.01)
    assert ReplayData.shared(settings_on(pools, scale=2.0)).scale == 2.0


def test_a_column_of_equal_scores_cannot_be_fitted(pools):
    data = ReplayData.shared(settings_on(pools))
    with pytest.raises(ValueError, match=r"column 'score' of .* equal scores"):
        fitted_scale(data.table, np.ones(data.table.n_rows, dtype=np.float32), 0.8)


def test_labels_of_the_warm_start_reach_the_posterior_and_are_the_oracles(pools):
    cold, warm = world_on(pools), world_on(pools, warm_share=0.5)
    sure = world_on(pools, warm_share=0.5, judge="argmax")
    assert not cold.posterior.weight_mean.any()
    assert warm.posterior.weight_mean.any()
    assert sure.posterior.weight_mean[0] > 0  # the score is the first coordinate
    assert sure.posterior.weight_mean[1] < 0
    again = world_on(pools, warm_share=0.5)
    np.testing.assert_array_equal(warm.posterior.weight_mean, again.posterior.weight_mean)
    other = world_on(pools, warm_share=0.5, seed=1)
    assert not np.array_equal(warm.posterior.weight_mean, other.posterior.weight_mean)


@pytest.mark.parametrize("loss", ["dpo", "ipo", "simpo"])
def test_labels_raise_the_win_rate(pools, loss):
    changed = {"beta": 2.0, "learning_rate": 5.0} if loss == "simpo" else {}
    env = gym.make("PrefAcquire-v0", world=settings_on(pools, judge="argmax", loss=loss, **changed), budget=80)
    agent = agents.make("random", seed=0)
    observation, _ = env.reset(seed=0)
    for _ in range(20):
        observation, _, _, _, info = env.step(agent.predict(observation)[0])
    assert info["win_rate"] > 0.6
    assert info["posterior_accuracy"] > 0.8


@pytest.mark.parametrize("key", [key for key, spec in agents.AGENTS.items() if not spec.learned])
def test_every_method_acquires(pools, key):
    env = gym.make(
        "PrefAcquireBudget-v0", world=settings_on(pools), budget=9, labels_per_round=3, recipe=agents.recipe(key),
        privileged=agents.spec(key).privileged,
    )  # fmt: skip
    agent, (observation, _) = agents.make(key, env.action_space, seed=0), env.reset(seed=0)
    state = None
    for _ in range(3):
        action, state = agent.predict(observation, state)
        observation, _, _, _, info = env.step(action)
        assert info["illegal"] == 0
    assert info["labels"] == 9


CHANGED = {
    "n_prompts": 5, "n_candidates": 2, "n_samples": 3, "n_eval_prompts": 5, "warm_share": 0.3, "judge": "argmax",
    "scale": 5.0, "certainty": 0.95, "oracle_tie": 2.0, "oracle_flip": 0.5, "reference": "generator:bo",
    "prior_std": 9.0, "loss": "ipo", "beta": 1.0, "learning_rate": 1.0, "gradient_steps": 1, "score": "safe",
    "second_score": "other", "capability": "safe",
}  # fmt: skip


def what_happens(pools, **changed):
    env = gym.make("PrefAcquire-v0", world=settings_on(pools, **changed), budget=12)
    agent, (observation, info) = agents.make("drts", seed=0), env.reset(seed=0)
    for _ in range(2):
        observation, _, _, _, info = env.step(agent.predict(observation)[0])
    numbers = {name: value for name, value in info.items() if isinstance(value, float)}
    return {name: value.tolist() for name, value in observation.items()} | numbers


@pytest.mark.parametrize("name", [*CHANGED, "reference_strength", "simpo_margin"])
def test_every_setting_changes_something(pools, name):
    base = {"reference": "column:safe"} if name == "reference_strength" else {}
    base |= {"loss": "simpo", "beta": 2.0, "learning_rate": 1.0} if name == "simpo_margin" else {}
    value = CHANGED.get(name, 0.5)
    assert what_happens(pools, **base) != what_happens(pools, **base | {name: value})


def test_all_settings_are_known_here():
    names = {field.name for field in dataclasses.fields(ReplaySettings)}
    assert names == {*CHANGED, "reference_strength", "simpo_margin", "pools"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_prompts": 0}, "n_prompts=0"), ({"n_candidates": 1}, "n_candidates=1"), ({"judge": "gpt"}, "bradley-terry"),
        ({"scale": 0.0}, "scale=0.0"), ({"scale": float("nan")}, "scale=nan"), ({"certainty": 0.5}, "certainty=0.5"),
        ({"warm_share": 1.0}, "warm_share=1.0"), ({"reference": "best"}, "generator:NAME"), ({"loss": "dop"}, "dpo"),
        ({"oracle_flip": 1.5}, "oracle_flip=1.5"), ({"learning_rate": -1.0}, "learning_rate=-1.0"),
        ({"oracle_tie": float("inf")}, "oracle_tie=inf"), ({"beta": 0.0}, "beta=0.0"),
        ({"prior_std": 0.0}, "prior_std=0.0"), ({"reference_strength": -1.0}, "reference_strength=-1.0"),
        ({"simpo_margin": float("nan")}, "simpo_margin=nan"), ({"n_eval_prompts": 2.5}, "n_eval_prompts=2.5"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(wrong, message):
    with pytest.raises(ValueError, match=message):
        ReplaySettings(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"score": "scores"}, "did you mean 'score'"), ({"score": "response"}, "holds no numbers"),
        ({"reference": "generator:bob"}, "did you mean 'bo'"), ({"reference": "column:saf"}, "did you mean 'safe'"),
        ({"n_eval_prompts": 39}, "40 prompts: 1 are left"), ({"pools": None}, "pools=PATH"),
    ],
)  # fmt: skip
def test_worlds_that_cannot_be(pools, wrong, message):
    with pytest.raises(ValueError, match=message):
        world_on(**{"pools": pools} | wrong)
    with pytest.raises(FileNotFoundError, match="no table at"):
        prefenv.make_world("replay", pools="nowhere.parquet")


def test_pools_belong_to_the_replay_world(pools):
    with pytest.raises(ValueError, match="pools"):
        gym.make("PrefAcquire-v0", pools=pools)
    with pytest.raises(ValueError, match="pools"):
        gym.make_vec("PrefAcquire-v0", num_envs=2, pools=pools)
    with pytest.raises(ValueError, match="has its table already"):
        gym.make("PrefAcquire-v0", world=make_replay_world(settings_on(pools)), pools=pools)
    envs = gym.make_vec("PrefAcquireBudget-v0", num_envs=2, world=settings_on(pools), labels_per_round=2)
    observation, _ = envs.reset(seed=0)
    assert observation["embedding"].shape[:3] == (2, 4, 5)
    parts = [env.unwrapped.world.source.data for env in envs.envs]
    assert parts[0] is parts[1]
