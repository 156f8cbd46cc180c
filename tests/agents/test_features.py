"""What a learned agent sees of a pair."""

import gymnasium as gym
import numpy as np
import pytest

import agents.learned.features as module
from agents.learned.features import EVEN, FEATURES, ODD, feature_space, pair_features
from prefenv.spaces import pair_index, pair_table
from tests.conftest import make_observation


def column(features, name):
    return features[..., FEATURES.index(name)]


def test_features_by_hand():
    observation = make_observation(np.random.default_rng(0), n=1, m=2, d=2)
    observation["reward_samples"] = np.array([[[5.0, 1.0]], [[1.0, 5.0]], [[9.0, 1.0]], [[9.0, 1.0]]])
    observation["reward_mean"] = np.array([[6.0, 2.0]], dtype=np.float32)
    observation["reward_std"] = np.array([[3.0, 1.0]], dtype=np.float32)
    observation["generator"] = np.array([[7.0, 3.0]])
    observation["logprob"] = np.array([[-1.0, -3.0]])
    observation["length"] = np.array([[100.0, 200.0]])
    observation["embedding"] = np.array([[[3.0, 0.0], [0.0, 4.0]]])
    observation["budget"] = np.array([0.25])
    features = pair_features(observation)[0, 0]
    unit = np.sqrt((4 + 4 + 16 + 16) / 4)  # within-prompt squares of the four draws
    expected = {
        "reward": 4 / unit, "generator": 2, "log-probability": 2, "log-length": -2,
        "chance to be the best": 0.5, "chance to be the worst": -0.5,
        "sum of the rewards": 0, "sum of the generators": 0,
        "spread of the reward difference": np.std([4, -4, 8, 8]) / unit,
        "sum of the reward deviations": 4 / unit, "difference of the reward deviations": 2 / unit,
        "distance of the embeddings": 1, "budget left": 0.25, "legal": 1,
        "confidence": 2 / unit, "reward follows generator": 1, "reward follows log-probability": 1,
        "concentration of the policy": 0.5 + 0.5 * np.tanh(1.0) ** 2,
    }  # fmt: skip
    for name, value in expected.items():
        assert column(features, name) == pytest.approx(value, abs=1e-5), name
    assert column(features, "gradient") == pytest.approx(2)  # two candidates: one up, one down
    assert column(features, "expected gain") == pytest.approx(1)  # in units of itself


def test_expected_gain_is_that_of_brute_force():
    """Gradient of the policy's expected worth by differences, the label's expectation by many draws."""
    rng = np.random.default_rng(1)
    n, m, d, s = 3, 4, 5, 4000
    weight = rng.normal(size=d)
    embedding = rng.normal(size=(n, m, d))
    draws = embedding @ (weight + 0.3 * rng.normal(size=(s, d))).T  # (n, m, S)
    observation = make_observation(rng, n=n, m=m, d=d) | {
        "embedding": embedding,
        "reward_samples": draws.transpose(2, 0, 1),
        "reward_mean": draws.mean(axis=-1),
        "logprob": np.log(rng.dirichlet(np.ones(m), size=n)).clip(-3),
    }
    found = column(pair_features(observation), "expected gain")
    reward = draws - draws.mean(axis=1, keepdims=True)
    reward /= np.sqrt((reward**2).mean())
    worth = reward / np.sqrt(1 + reward**2)

    def expected_worth(theta):
        logits = observation["logprob"] + embedding @ theta
        policy = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        return (policy[..., None] * worth).sum(axis=1).mean(axis=0)  # (S,)

    step = 1e-4
    gradient = np.stack([(expected_worth(step * e) - expected_worth(-step * e)) / (2 * step) for e in np.eye(d)], -1)
    i, j = pair_table(m)
    gap = reward[:, i] - reward[:, j]
    way = np.einsum("npd,sd->nps", embedding[:, i] - embedding[:, j], gradient)
    gain = (gap / np.sqrt(1 + gap**2) * way).mean(axis=-1)
    np.testing.assert_allclose(found, gain / np.sqrt((gain**2).mean()), atol=0.1)


def test_units_of_reward_and_embedding_do_not_matter():
    observation = make_observation(np.random.default_rng(0))
    scaled = observation | {
        "reward_mean": observation["reward_mean"] * 7, "reward_std": observation["reward_std"] * 7,
        "reward_samples": observation["reward_samples"] * 7, "embedding": observation["embedding"] * 3,
        "logprob": observation["logprob"] - 4, "implicit_reward": observation["implicit_reward"] * 0.01 + 3,
        "generator": observation["generator"] * 5 + 2, "length": observation["length"] * 9,
    }  # fmt: skip
    scaled["reward_mean"], scaled["reward_samples"] = scaled["reward_mean"] + 5, scaled["reward_samples"] + 5
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(observation["embedding"].shape[-1],) * 2))[0]
    scaled["embedding"] = scaled["embedding"] @ turn + 1
    np.testing.assert_allclose(pair_features(observation), pair_features(scaled), atol=1e-4)


def test_features_of_a_pool_without_any_spread_are_finite():
    observation = make_observation(np.random.default_rng(0))
    for name in observation:
        if name != "mask":
            observation[name] = np.zeros_like(observation[name])
    assert np.all(np.isfinite(pair_features(observation)))


def test_embeddings_that_follow_the_generators_are_told_from_those_that_do_not():
    rng = np.random.default_rng(0)
    observation = make_observation(rng, n=40, m=6, d=8)
    observation["generator"] = np.tile(np.arange(6.0), (40, 1))
    nothing = column(pair_features(observation), "generators differ")
    assert abs(nothing).max() < 1.5
    skilled = observation["embedding"] + np.arange(6.0)[:, None] * rng.normal(size=8)
    assert column(pair_features(observation | {"embedding": skilled}), "generators differ").min() > 3


def test_gaps_turn_round_with_the_candidates_and_the_rest_does_not():
    observation = make_observation(np.random.default_rng(0), n=2, m=2)
    turned = {
        name: value[..., ::-1] if value.shape[-2:] == (2, 2) and name != "embedding" else value
        for name, value in observation.items()
    }
    turned["embedding"] = observation["embedding"][:, ::-1]
    before, after = pair_features(observation), pair_features(turned)
    np.testing.assert_allclose(after[..., : len(ODD)], -before[..., : len(ODD)], atol=1e-5)
    np.testing.assert_allclose(after[..., len(ODD) :], before[..., len(ODD) :], atol=1e-5)
    assert np.abs(before[..., : len(ODD)]).max() > 0.5


@pytest.mark.parametrize("size", [1e-30, 1e-8, 1e-3, 1e8, 1e30])
def test_very_small_and_very_large_units_do_not_matter_either(size):
    observation = make_observation(np.random.default_rng(0), n=4, m=5, d=6)
    scaled = dict(observation)
    for name in ("reward_mean", "reward_std", "reward_samples", "embedding", "implicit_reward", "generator"):
        scaled[name] = (observation[name].astype(np.float64) * size).astype(np.float32)
    np.testing.assert_allclose(pair_features(scaled), pair_features(observation), atol=2e-3)


@pytest.mark.parametrize("value", [0.0, 3.7, 777.1])
def test_no_spread_is_no_feature_whatever_the_constant(value):
    observation = make_observation(np.random.default_rng(0), n=3, m=30, d=5)
    for name in ("reward_mean", "reward_samples", "length", "implicit_reward", "generator", "embedding"):
        observation[name] = np.full_like(observation[name], value)
    features = pair_features(observation)
    for name in (*ODD, *EVEN):
        if name not in ("log-probability", "sum of the log-probabilities", "entropy of the prompt", "budget left",
                        "concentration of the policy", "sum of the reward deviations",
                        "difference of the reward deviations"):  # fmt: skip
            assert np.abs(column(features, name)).max() < 1e-6, name


def test_embeddings_that_differ_by_little_still_tell():
    observation = make_observation(np.random.default_rng(0), n=3, m=4, d=6)
    near = observation | {"embedding": (1.0 + 1e-3 * observation["embedding"].astype(np.float64)).astype(np.float32)}
    np.testing.assert_allclose(pair_features(near), pair_features(observation), atol=0.02)


def test_large_batches_are_worked_on_in_blocks(monkeypatch):
    many = [make_observation(np.random.default_rng(seed), n=3, m=4) for seed in range(7)]
    batch = {name: np.stack([each[name] for each in many]) for name in many[0]}
    whole = pair_features(batch)
    monkeypatch.setattr(module, "BLOCK", 3 * 3 * 4 * many[0]["reward_samples"].shape[0])
    observed = []
    fill = module._fill
    monkeypatch.setattr(module, "_fill", lambda part, pools: (observed.append(len(part)), fill(part, pools)))
    np.testing.assert_array_equal(pair_features(batch), whole)
    assert observed == [3, 3, 1]


def test_variants_of_the_expected_gain_by_hand():
    """One prompt of two candidates: the gain is that of the pair's label, whose sign the hint can turn round."""
    observation = make_observation(np.random.default_rng(0), n=2, m=2, d=1) | {
        "embedding": np.array([[[1.0], [0.0]], [[3.0], [0.0]]]),
        "reward_mean": np.array([[0.1, 0.0], [0.1, 0.0]]),
        "reward_samples": np.array([[[1.1, 0.0]] * 2, [[-0.9, 0.0]] * 2]),
        "generator": np.array([[0.0, 1.0], [0.0, 1.0]]),
        "logprob": np.array([[0.0, 0.0], [0.0, -9.0]]),
    }
    features = pair_features(observation)[:, 0]
    plain, hinted, alike = (
        column(features, f"expected gain{name}") for name in ("", ", generators as a hint", ", all alike")
    )
    # in proportion to the embeddings' distance, by the policy of both prompts together: units of the root mean square
    np.testing.assert_allclose(plain, np.array([1, 3]) / np.sqrt(5), rtol=1e-4)
    np.testing.assert_allclose(alike, np.array([1, 3]) / np.sqrt(5), rtol=1e-4)
    np.testing.assert_allclose(hinted, np.array([1, 3]) / np.sqrt(5), rtol=1e-4)
    assert column(features, "gradient").max() > 0  # the first is believed to be better
    assert column(features, "gradient by generator").max() < 0  # and the second has the stronger generator


def test_the_third_gain_takes_no_notice_of_the_policy_and_the_second_none_where_the_belief_is_sure():
    rng = np.random.default_rng(3)
    observation = make_observation(rng, n=3, m=4, d=5)
    other = observation | {"logprob": observation["logprob"] + rng.normal(size=(3, 4)).astype(np.float32)}
    before, after = pair_features(observation), pair_features(other)
    for name, changes in (("expected gain", True), ("expected gain, generators as a hint", True),
                          ("expected gain, all alike", False), ("gradient, all alike", False)):  # fmt: skip
        assert np.allclose(column(before, name), column(after, name)) != changes, name
    turned = observation | {"generator": -observation["generator"]}
    hint = "expected gain, generators as a hint"
    assert not np.allclose(column(pair_features(turned), hint), column(before, hint))
    sure = observation | {"reward_samples": np.stack([observation["reward_mean"]] * 4)}
    turned = sure | {"generator": -observation["generator"]}
    np.testing.assert_allclose(column(pair_features(turned), hint), column(pair_features(sure), hint), atol=1e-5)
    found = pair_features(sure)
    np.testing.assert_allclose(column(found, hint), column(found, "expected gain"), atol=1e-5)


def test_entropy_of_the_prompt_keeps_its_sign():
    observation = make_observation(np.random.default_rng(0), n=2, m=3) | {"entropy": np.array([1.0, 3.0])}
    found = column(pair_features(observation), "entropy of the prompt")
    np.testing.assert_allclose(found, [[-1] * 3, [1] * 3], rtol=1e-5)


def test_a_batch_has_the_features_of_its_members():
    many = [make_observation(np.random.default_rng(seed), n=3, m=4, samples=64) for seed in range(40)]
    many[1]["mask"][0, 2] = 0
    batch = {name: np.stack([each[name] for each in many]) for name in many[0]}
    np.testing.assert_allclose(pair_features(batch), np.stack([pair_features(each) for each in many]), atol=1e-5)


def test_selected_pairs_are_not_legal_and_something_always_is():
    observation = make_observation(np.random.default_rng(0), n=2, m=3)
    selected = np.zeros(6, dtype=np.float32)
    selected[[0, 4]] = 1
    legal = column(pair_features(observation | {"selected": selected}), "legal")
    np.testing.assert_array_equal(legal.reshape(-1), 1 - selected)
    selected[:3] = 1  # all of the first prompt: nothing is left of it
    legal = column(pair_features(observation | {"selected": selected}), "legal")
    np.testing.assert_array_equal(legal.reshape(-1), 1 - selected)
    assert column(pair_features(observation | {"selected": np.ones(6, dtype=np.float32)}), "legal").all()


def test_padding_of_a_pool_changes_nothing():
    observation = make_observation(np.random.default_rng(0), n=2, m=3)
    wide = dict(observation)
    for name, value in observation.items():
        if name == "entropy":
            wide[name] = np.append(value, 9.0)
        elif value.shape[-2:] == (2, 3):
            wide[name] = np.pad(value, [(0, 0)] * (value.ndim - 2) + [(0, 1), (0, 2)])
    wide["embedding"] = np.pad(observation["embedding"], [(0, 1), (0, 2), (0, 0)])
    i, j = pair_table(3)
    there = pair_features(wide)[:2, pair_index(i, j, 5)]
    np.testing.assert_allclose(there, pair_features(observation), atol=1e-5)
    assert not pair_features(wide)[2].any()


def test_masked_values_do_not_leak():
    observation = make_observation(np.random.default_rng(0), m=4)
    observation["mask"][:, 3] = 0
    other = {name: value.copy() for name, value in observation.items()}
    for name in ("reward_mean", "reward_std", "logprob", "implicit_reward", "length"):
        other[name][:, 3] += 100
    other["reward_samples"][..., 3] += 100
    other["embedding"][:, 3] += 100
    other["generator"][:, 3] += 100
    np.testing.assert_array_equal(pair_features(observation), pair_features(other))


def test_features_lie_in_their_space_and_keep_masks(ragged_world):
    env = gym.make("prefenv:PrefAcquire-v0", world=ragged_world)
    features = pair_features(env.reset(seed=0)[0])
    assert feature_space(env.observation_space).contains(features)
    np.testing.assert_array_equal(env.unwrapped.action_masks(), column(features, "legal").reshape(-1) > 0)


def test_chances_of_best_and_worst_by_hand():
    observation = make_observation(np.random.default_rng(0), n=1, m=3)
    # candidate 2 is best in three of four draws and 1 in one; 0 is worst in all but one, where 0 and 1 tie
    observation["reward_samples"] = np.array([[[0.0, 1, 2]], [[0, 1, 2]], [[1, 1, 2]], [[0, 2, 1]]])
    features = pair_features(observation)[0]
    best, worst = np.array([0.0, 0.25, 0.75]), np.array([0.875, 0.125, 0.0])
    i, j = pair_table(3)
    np.testing.assert_allclose(column(features, "chance to be the best"), best[i] - best[j], atol=1e-6)
    np.testing.assert_allclose(column(features, "chance that one is the worst"), worst[i] + worst[j] - 2 / 3, atol=1e-6)
