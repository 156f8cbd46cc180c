"""What must hold for every design, whatever it is after."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest

from agents.heuristic import DesignAgent, ScoreAgent
from agents.scores import Plan, policy, prompts
from agents.select import legal_pairs
from prefenv.spaces import n_pairs
from tests.agents.rounds import (
    COVERAGE,
    DRAWN,
    MEMORY,
    PROMPT_RULES,
    RULES,
    budget_agent,
    chosen_prompts,
    member,
    one_by_one,
    permuted,
    prompts_of,
    repeated,
)
from tests.conftest import make_observation

every_rule = pytest.mark.parametrize("key", RULES)
every_prompt_rule = pytest.mark.parametrize("key", PROMPT_RULES)
SETTINGS = {
    "keep": 0.1, "iterations": 1, "gamma": 3.0, "oversample": 5, "bandwidth": 0.2, "neighbours": 1, "ridge": 100.0,
}  # fmt: skip


def ragged(observation, junk):
    """The last candidates of every second prompt missing, with this in all that they hold."""
    observation = {name: value.copy() for name, value in observation.items()}
    observation["mask"][..., ::2, -2:] = 0
    for name, value in observation.items():
        if name in ("embedding",):
            value[..., ::2, -2:, :] = junk
        elif value.shape[-2:] == observation["mask"].shape[-2:] and name != "mask":
            value[..., ::2, -2:] = junk
    return observation


@every_rule
@pytest.mark.parametrize(("n", "m"), [(1, 2), (3, 4), (2, 7), (1, 5), (5, 2)])
@pytest.mark.parametrize("each_prompt", [True, False])
def test_shape_and_finite(key, n, m, each_prompt):
    rng = np.random.default_rng(0)
    for batch in ((), (2, 3)):
        known = np.ones((*batch, 4), dtype=bool)
        plan = Plan(n, each_prompt, rng.standard_normal((*batch, 4, 2, 5)).astype(np.float32), known, rng)
        score = RULES[key](make_observation(rng, batch=batch, n=n, m=m), rng, plan)
        assert score.shape == (*batch, n, n_pairs(m))
        assert np.all(np.isfinite(score))


@every_rule
@pytest.mark.parametrize("form", ["each prompt", "budget", "sequential"])
def test_a_batch_with_episodes_that_begin_at_different_times_is_its_members(key, form):
    n, m, worlds, rounds = 6, 4, 4, 5
    space = {
        "each prompt": gym.spaces.MultiDiscrete([n_pairs(m)] * n),
        "budget": gym.spaces.MultiDiscrete([n * n_pairs(m)] * 3),
        "sequential": gym.spaces.Discrete(n * n_pairs(m)),
    }[form]
    rng = np.random.default_rng(1)
    batches = [make_observation(rng, batch=(worlds,), n=n, m=m) for _ in range(rounds)]
    if form == "sequential":
        batches = [batch | {"selected": np.zeros((worlds, n * n_pairs(m)), dtype=np.float32)} for batch in batches]
        for t, batch in enumerate(batches):
            batch["selected"][:, : 4 * t] = 1
    starts = rng.random((rounds, worlds)) < 0.4
    together, alone = (DesignAgent(partial(RULES[key]), space, seed=3) for _ in range(2))
    state, states = None, [None] * worlds
    for batch, start in zip(batches, starts, strict=True):
        actions, state = together.predict(batch, state, episode_start=start)
        for world in range(worlds):
            known = None if start[world] else states[world]
            action, states[world] = alone.predict(member(batch, world), known)
            np.testing.assert_array_equal(actions[world], action)


@pytest.mark.parametrize("key", MEMORY)
def test_what_was_labelled_changes_what_comes_next(key):
    rng = np.random.default_rng(2)
    first, second = make_observation(rng, n=12, m=3, d=3), make_observation(rng, n=12, m=3, d=3)
    settings_ = {} if key == "dopt" else {"pair": "margin"}
    agent = partial(budget_agent, RULES[key], first, 4, **settings_)
    _, state = agent().predict(first)
    differs = [
        set(np.asarray(agent(seed=s).predict(second, state)[0])) != set(agent(seed=s).predict(second)[0])
        for s in range(10)
    ]
    assert any(differs)
    again, _ = agent().predict(second, state, episode_start=np.array(True))
    np.testing.assert_array_equal(again, agent().predict(second)[0])


@every_rule
def test_two_rounds_on_the_same_pool_take_different_pairs(key):
    # a rule that seeds anew in every round takes the same random subset again
    observation = make_observation(np.random.default_rng(0), n=40, m=4)
    if key in ("entropy", "entropy-neg", "apl", "apl-neg", "apl-both"):
        observation["entropy"] = np.ones_like(observation["entropy"])
    if key.startswith("apl"):
        observation["implicit_reward"] = np.zeros_like(observation["implicit_reward"])
    agent = budget_agent(RULES[key], observation, 8)
    one, state = agent.predict(observation)
    other, _ = agent.predict(observation, state)
    assert set(one.tolist()) != set(other.tolist())


@pytest.mark.parametrize("key", DRAWN)
def test_drawing_rules_draw_anew_in_every_round(key):
    observation = make_observation(np.random.default_rng(0), n=40, m=2)
    agent = budget_agent(RULES[key], observation, 8)
    assert len({frozenset(agent.predict(observation)[0].tolist()) for _ in range(5)}) > 1


@every_rule
@pytest.mark.parametrize("junk", [1e30, -1e30, 0.0])
def test_padding_has_no_influence(key, junk):
    plain = make_observation(np.random.default_rng(3), n=6, m=6)
    pairs = ["random", "margin", "deltaucb", "infomax", "dts", "drts", "maxminlcb"] if key != "dopt" else [None]
    for pair in pairs:
        settings_ = {} if pair is None else {"pair": pair}
        for k, each in ((3, False), (6, True), (30, False)):
            chosen = []
            for fill in (junk, 7.0):
                observation = ragged(plain, fill)
                space = gym.spaces.MultiDiscrete([15] * 6 if each else [90] * k)
                agent = DesignAgent(partial(RULES[key], **settings_), space, seed=0)
                one, state = agent.predict(observation)
                other, _ = agent.predict(observation, state)
                chosen.append((one, other))
                where = (np.arange(6), one) if each else (one // 15, one % 15)
                assert np.all(legal_pairs(observation)[where])
            np.testing.assert_array_equal(chosen[0], chosen[1])


@every_prompt_rule
def test_with_one_pair_a_prompt_only_the_pair_score_matters(key):
    observation = make_observation(np.random.default_rng(0), batch=(20,), n=5, m=6)
    action, _ = DesignAgent(partial(RULES[key], pair="margin"), seed=0).predict(observation)
    np.testing.assert_array_equal(action, ScoreAgent(policy.margin, seed=0).predict(observation)[0])


@every_prompt_rule
def test_one_pair_of_every_prompt_before_a_second_of_any(key):
    observation = make_observation(np.random.default_rng(0), n=5, m=4)
    for seed in range(5):
        action, _ = budget_agent(RULES[key], observation, 12, seed).predict(observation)
        assert sorted(prompts_of(action[:5], observation)) == [0, 1, 2, 3, 4]
        assert len(set(action.tolist())) == 12
        selected = one_by_one(RULES[key], observation, 12, seed)
        assert sorted(prompts_of(selected[:5], observation)) == [0, 1, 2, 3, 4]
        assert len(set(selected)) == 12


@every_prompt_rule
def test_more_labels_than_prompts_are_filled_by_the_pair_score(key):
    observation = make_observation(np.random.default_rng(0), n=3, m=4)
    margins = policy.margin(observation, np.random.default_rng(0)).ravel()
    action, _ = budget_agent(RULES[key], observation, 18, pair="margin").predict(observation)
    assert set(action[:3]) == {int(row.argmax()) + 6 * i for i, row in enumerate(margins.reshape(3, 6))}
    assert np.all(np.diff(margins[action[3:]]) <= 0)


@every_rule
def test_k_of_all_pairs_is_all_pairs(key):
    observation = ragged(make_observation(np.random.default_rng(0), n=3, m=4), 1e30)
    action, _ = budget_agent(RULES[key], observation, 18).predict(observation)
    legal = np.flatnonzero(legal_pairs(observation))
    assert set(action[: len(legal)]) == set(legal)


@every_rule
def test_the_smallest_pool(key):
    observation = make_observation(np.random.default_rng(0), n=1, m=2)
    agent = budget_agent(RULES[key], observation, 1)
    one, state = agent.predict(observation)
    other, _ = agent.predict(observation, state)
    assert (one, other) == ([0], [0])


@every_rule
def test_equal_prompts_are_chosen_equally_often(key):
    observation = make_observation(np.random.default_rng(0), n=4, m=3)
    observation = {name: np.ones_like(value) for name, value in observation.items()}
    batch = repeated(observation, 4000)
    for k in (1, 2):
        action, _ = budget_agent(RULES[key], observation, k).predict(batch)
        for t in range(k):
            counts = np.bincount(action[:, t], minlength=12)
            assert counts.min() > 250, (t, counts)  # 333 each, standard deviation 17.5
            assert counts.max() < 420, (t, counts)
        assert np.all(np.diff(np.sort(prompts_of(action, observation)), axis=-1) > 0) or key == "dopt"


@pytest.mark.parametrize("key", COVERAGE)
def test_equal_prompts_far_from_zero_and_a_label_among_them(key):
    # equal to within rounding is equal: all that float32 holds of 1000.1
    observation = make_observation(np.random.default_rng(0), n=5, m=2)
    observation["embedding"] = np.full_like(observation["embedding"], 1000.1)
    observation["implicit_reward"] = np.zeros_like(observation["implicit_reward"])
    observation["entropy"] = np.ones_like(observation["entropy"])
    batch = repeated(observation, 3000)
    agent = budget_agent(RULES[key], observation, 2)
    action, state = agent.predict(batch)
    for chosen in (action, agent.predict(batch, state)[0]):
        counts = np.bincount(chosen.ravel(), minlength=5)
        assert counts.min() > 1080, counts  # 1200 each, standard deviation 27
        assert counts.max() < 1320, counts


@pytest.mark.parametrize("key", [key for key in RULES if key not in DRAWN])
def test_permuting_prompts_permutes_the_answer(key):
    observation = make_observation(np.random.default_rng(5), n=9, m=4)
    settings_ = {} if key == "dopt" else {"pair": "margin"}
    order = np.random.default_rng(0).permutation(9)
    rng = np.random.default_rng(6)
    labelled = rng.standard_normal((3, 2, 5)).astype(np.float32), np.ones(3, dtype=bool)
    for k in (1, 4):  # of the last few, two that would cover each other are equal
        agents_ = [budget_agent(RULES[key], observation, k, seed, **settings_) for seed in (0, 1)]
        one, _ = agents_[0].predict(observation, labelled)
        other, _ = agents_[1].predict(permuted(observation, order), labelled)
        np.testing.assert_array_equal(one, order[other // 6] * 6 + other % 6)


@pytest.mark.parametrize("key", ["entropy", "entropy-neg", "coreset", "max-herding", "knn-herding", "dopt"])
def test_one_by_one_is_all_at_once(key):
    observation = make_observation(np.random.default_rng(8), n=10, m=4)
    settings_ = {} if key == "dopt" else {"pair": "margin"}  # a pair score that does not draw
    state = np.ones((1, 2, 5), dtype=np.float32), np.ones(1, dtype=bool)  # else the first of coreset is random
    for seed in range(3):
        sequential = one_by_one(RULES[key], observation, 6, seed, state, **settings_)
        together, _ = budget_agent(RULES[key], observation, 6, seed, **settings_).predict(observation, state)
        assert sequential == together.tolist()


@every_rule
def test_every_setting_changes_some_choice(key):
    observation = make_observation(np.random.default_rng(0), n=24, m=5, batch=(20,))
    keywords = RULES[key].__kwdefaults__
    default, _ = budget_agent(RULES[key], observation, 6).predict(observation)
    for name in keywords:
        other = ("margin" if keywords["pair"] == "random" else "random") if name == "pair" else SETTINGS[name]
        changed, _ = budget_agent(RULES[key], observation, 6, **{name: other}).predict(observation)
        assert np.any(prompts_of(changed, observation) != prompts_of(default, observation)) or name == "pair", name
        assert np.any(changed != default), name


@every_prompt_rule
def test_every_pair_score_can_be_named_and_an_unknown_one_is_refused(key):
    observation = make_observation(np.random.default_rng(0), batch=(20,), n=6, m=5)
    chosen = {
        name: budget_agent(RULES[key], observation, 6, pair=name).predict(observation)[0].tobytes()
        for name in policy.PAIR_SCORES
    }
    assert len(set(chosen.values())) == len(chosen)
    for wrong in ("margins", 3):
        with pytest.raises(ValueError, match="unknown pair score"):
            budget_agent(RULES[key], observation, 2, pair=wrong).predict(observation)


@pytest.mark.parametrize(
    ("key", "wrong", "message"),
    [
        ("apl-both", {"keep": 0.0}, "keep=0.0"),
        ("apl-neg", {"keep": float("nan")}, "keep=nan"),
        ("kmeans", {"iterations": 0}, "iterations=0"),
        ("div-reward", {"gamma": -0.1}, "gamma=-0.1"),
        ("div-reward", {"gamma": float("nan")}, "gamma=nan"),
        ("div-reward", {"oversample": 1.5}, "oversample=1.5"),
        ("u-herding", {"oversample": 0}, "oversample=0"),
        ("u-herding", {"bandwidth": 0.0}, "bandwidth=0.0"),
        ("max-herding", {"bandwidth": float("inf")}, "bandwidth=inf"),
        ("knn-herding", {"bandwidth": float("nan")}, "bandwidth=nan"),
        ("knn-herding", {"neighbours": 0}, "neighbours=0"),
        ("dopt", {"ridge": 0.0}, "ridge=0.0"),
        ("dopt", {"ridge": float("inf")}, "ridge=inf"),
    ],
)
@pytest.mark.parametrize("each_prompt", [True, False])
def test_settings_that_cannot_be(key, wrong, message, each_prompt):
    plan = Plan.at_start(3, d=5, each_prompt=each_prompt)
    with pytest.raises(ValueError, match=message):
        RULES[key](make_observation(np.random.default_rng(0)), np.random.default_rng(0), plan, **wrong)


def test_entropy_prefers_high_and_entropy_neg_low():
    # the sign: prompt 2 is the least sure, prompt 1 the surest
    observation = make_observation(np.random.default_rng(0), n=4, m=3)
    observation["entropy"] = np.array([1.0, -0.5, 3.0, 2.0], dtype=np.float32)
    assert chosen_prompts(RULES["entropy"], observation, 4).tolist() == [2, 3, 0, 1]
    assert chosen_prompts(RULES["entropy-neg"], observation, 4).tolist() == [1, 0, 3, 2]


def test_the_pair_of_a_prompt_is_the_best_of_its_pair_score():
    observation = make_observation(np.random.default_rng(0), n=5, m=4)
    action, _ = budget_agent(RULES["entropy"], observation, 5, pair="deltaucb").predict(observation)
    best = policy.PAIR_SCORES["deltaucb"](observation, np.random.default_rng(0)).argmax(axis=-1)
    assert sorted(action) == sorted(best + 6 * np.arange(5))


def test_entropy_spreads_its_ties():
    observation = make_observation(np.random.default_rng(0), n=4, m=2)
    observation["entropy"] = np.array([2.0, 0.0, 2.0, 2.0], dtype=np.float32)
    prompts_ = chosen_prompts(RULES["entropy"], repeated(observation, 3000), 1)
    np.testing.assert_allclose(np.bincount(prompts_.ravel(), minlength=4) / 3000, [1 / 3, 0, 1 / 3, 1 / 3], atol=0.04)


def test_draws_follow_their_chances_and_fall_back_to_any():
    plan = Plan(2, False, np.zeros((6000, 0, 2, 1)), np.zeros((6000, 0), dtype=bool), np.random.default_rng(0))
    observation = repeated(make_observation(np.random.default_rng(0), n=3, m=2), 6000)
    firsts = prompts.first_pairs(observation, np.random.default_rng(0), plan, policy.margin, columns=3)
    taken = prompts.Taken(firsts, 3)
    first = taken.drawn(np.tile([1.0, 0.0, 3.0], (6000, 1)), firsts.noise[:, 0, 1])
    np.testing.assert_allclose(np.bincount(first, minlength=3) / 6000, [0.25, 0, 0.75], atol=0.025)
    second = taken.drawn(np.zeros((6000, 3)), firsts.noise[:, 1, 1])
    assert np.all(second != first)
    np.testing.assert_allclose(
        np.bincount(second[first == 2], minlength=3) / np.sum(first == 2), [0.5, 0.5, 0], atol=0.03
    )
    third = taken.drawn(np.zeros((6000, 3)), firsts.noise[:, 2, 1])
    assert np.all(first + second + third == 3)
    assert np.all(np.sort(taken.place) == [1, 2, 3])


def test_a_draw_at_the_very_end_takes_what_has_a_chance():
    plan = Plan.at_start(1, d=1)
    firsts = prompts.first_pairs(
        {"mask": np.ones((3, 2))}, np.random.default_rng(0), plan, policy.PAIR_SCORES["random"]
    )
    for uniform, expected in ((np.nextafter(1.0, 0), 1), (0.0, 0), (0.0999999, 0), (0.1, 1)):
        taken = prompts.Taken(firsts, 1)
        assert taken.drawn(np.array([[0.1, 0.9, 0.0]]), np.array([uniform]))[0] == expected
