"""The weights that come with the package: what they are, and what they do."""

import dataclasses
import pickle
import re
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import agents
import prefenv
from agents.learned.scorer import SHIPPED, pair_logits, read_weights
from prefenv.spaces import n_pairs, pair_index, pair_table
from prefenv.synthetic.settings import PRESETS
from prefenv.vector import PrefAcquireVectorEnv
from tests.conftest import make_observation


def area(key, settings, seeds, rounds=10):
    """(B,) area under the win-rate curve of an agent, with all that its method needs."""
    spec = agents.spec(key)
    envs = PrefAcquireVectorEnv(settings, len(seeds), rounds * settings.n_prompts, spec.privileged, agents.recipe(key))
    agent, state = agents.make(key, envs.single_action_space, seed=0), None
    observation, info = envs.reset(seed=list(seeds))
    curve = [info["win_rate"]]
    for number in range(rounds):
        action, state = agent.predict(observation, state, episode_start=np.full(len(seeds), number == 0))
        observation, _, _, _, info = envs.step(action)
        curve.append(info["win_rate"])
    return np.trapezoid(np.stack(curve), axis=0) / rounds


def test_they_are_small_have_a_card_and_are_no_pickle():
    assert SHIPPED.stat().st_size < 200_000
    card = (SHIPPED.parent / "CARD.md").read_text(encoding="utf-8")
    parts = dict(zip(*[iter(re.split(r"^## (.*)$", card, flags=re.MULTILINE)[1:])] * 2, strict=True))
    assert parts.keys() == {"Data", "Command", "Results", "Limits"}
    assert all(len(text) > 100 for text in parts.values())
    assert "prefenv train --preset full" in parts["Command"]
    assert "@@" not in card
    with pytest.raises((pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError)):
        pickle.loads(SHIPPED.read_bytes())
    assert all(value.dtype == np.float32 and np.isfinite(value).all() for value in read_weights(SHIPPED).values())


def test_choosing_never_unpickles(monkeypatch):
    def refuse(*arguments, **keywords):
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    assert agents.make("learned").score is not None


def test_a_pickle_is_refused_and_not_read(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "opened",)

    (tmp_path / "evil.safetensors").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="no safetensors file"):
        agents.make("learned", weights=str(tmp_path / "evil.safetensors"))
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize(("preset", "n_seeds"), [("synthetic", 300), ("active-ultrafeedback", 24)])
def test_ahead_of_random_and_of_the_best_methods_of_the_presets(preset, n_seeds):
    """All methods, with more seeds, are in docs/methods.md."""
    seeds, settings = range(500_000, 500_000 + n_seeds), PRESETS[preset]
    learned = area("learned", settings, seeds)
    for key in ("random", "dopt", "sea", "deltaucb", "drts"):
        ahead = learned - area(key, settings, seeds)
        assert ahead.mean() > 3 * ahead.std(ddof=1) / np.sqrt(n_seeds), key


@pytest.mark.parametrize(
    "changes",
    [
        {"posterior": "ensemble"},  # a kind that no training has met
        {"consistency_spread": 0.7},  # nor this
        {"embedding_size": 40},
        {"n_prompts": 1},
        {"n_candidates": 8},
        {"loss": "simpo", "beta": 2.0},
    ],
)
def test_ahead_of_random_in_worlds_of_other_settings(changes):
    settings = dataclasses.replace(PRESETS["synthetic"], **changes)
    seeds = range(600_000, 600_200)
    ahead = area("learned", settings, seeds) - area("random", settings, seeds)
    assert ahead.mean() > 3 * ahead.std(ddof=1) / np.sqrt(len(seeds))


@pytest.mark.parametrize(("n", "m", "d"), [(1, 2, 3), (1, 30, 7), (256, 2, 64), (256, 30, 1)])
def test_pools_of_any_size(n, m, d):
    observation = make_observation(np.random.default_rng(0), n=n, m=m, d=d)
    action, _ = agents.make("learned", seed=0).predict(observation)
    assert action.shape == (n,)
    assert action.max() < n_pairs(m)


def test_moved_candidates_and_prompts_get_the_same_pairs():
    rng = np.random.default_rng(0)
    observation = make_observation(rng, n=6, m=7)
    agent = agents.make("learned", seed=0)
    first, _ = agent.predict(observation)
    order, prompts = rng.permutation(7), rng.permutation(6)
    moved = {
        name: value[..., prompts, :][..., order] if value.shape[-2:] == (6, 7) else value
        for name, value in observation.items()
    }
    moved["embedding"] = observation["embedding"][prompts][:, order]
    moved["entropy"] = observation["entropy"][prompts]
    i, j = pair_table(7)
    then, _ = agent.predict(moved)
    np.testing.assert_array_equal(pair_index(order[i[then]], order[j[then]], 7), first[prompts])


def test_a_batch_chooses_as_its_members():
    many = [make_observation(np.random.default_rng(seed), n=4, m=5) for seed in range(5)]
    batch = {name: np.stack([each[name] for each in many]) for name in many[0]}
    together, _ = agents.make("learned", seed=0).predict(batch)
    np.testing.assert_array_equal(together, [agents.make("learned", seed=0).predict(each)[0] for each in many])


@pytest.mark.parametrize("env_id", prefenv.ENV_IDS)
def test_the_same_choices_in_every_form_and_seed(env_id):
    """Nothing is drawn: another seed of the agent chooses the same."""
    env = gym.make(env_id)
    observation, _ = env.reset(seed=0)
    one, two = (agents.make("learned", env.action_space, seed=seed).predict(observation)[0] for seed in (0, 1))
    np.testing.assert_array_equal(one, two)


def test_logits_by_hand():
    weights = {
        "odd.weight": np.zeros((2, 10)), "even.weight": np.zeros((2, 22)), "even.bias": np.array([1.0, -1.0]),
        "middle.weight": np.eye(2), "middle.bias": np.array([0.0, 0.5]), "last.weight": np.array([[2.0, 3.0]]),
    }  # fmt: skip
    weights["odd.weight"][0, 0], weights["even.weight"][1, 0] = 1.0, 1.0
    features = np.zeros((1, 33), dtype=np.float32)
    features[0, 0], features[0, 10] = 4.0, 3.0  # first odd feature, first even one
    # even part (1, 2); with the odd one (5, 2) and (-3, 2); after relu (5, 2) and (0, 2); middle (5, 2.5) and (0, 2.5)
    by_hand = (2 * 5 + 3 * 2.5) + (0 + 3 * 2.5)
    assert pair_logits(features, {k: v.astype(np.float32) for k, v in weights.items()})[0] == pytest.approx(by_hand)
