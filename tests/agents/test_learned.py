"""The learned agent: features, network, training."""

import gymnasium as gym
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from gymnasium.vector import SyncVectorEnv  # noqa: E402
from stable_baselines3 import PPO  # noqa: E402

import agents  # noqa: E402
from agents.learned import TRAINING_SEEDS  # noqa: E402
from agents.learned.features import FEATURES, feature_space, pair_features  # noqa: E402
from agents.learned.network import PairScorer, load_scorer, save_scorer, scorer_score  # noqa: E402
from agents.learned.training import train_ppo  # noqa: E402
from prefenv.spaces import n_pairs, pair_index, pair_table  # noqa: E402
from tests.conftest import make_observation  # noqa: E402


def column(features, name):
    return features[..., FEATURES.index(name)]


def random_scorer(seed=0):
    torch.manual_seed(seed)
    scorer = PairScorer()
    for parameter in scorer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return scorer


def test_features_by_hand():
    observation = make_observation(np.random.default_rng(0), n=1, m=2)
    observation["reward_mean"] = np.array([[3.0, -3.0]], dtype=np.float32)
    observation["reward_std"] = np.array([[4.0, 4.0]], dtype=np.float32)
    observation["reward_samples"] = np.array([[[5.0, 1.0]], [[1.0, 5.0]], [[9.0, 1.0]], [[9.0, 1.0]]])
    observation["budget"] = np.array([0.25])
    features = pair_features(observation)[0, 0]
    # the unit of reward is the root of mean r² + s² = 9 + 16
    assert column(features, "gap of the reward means") == pytest.approx(6 / 5)
    assert column(features, "sum of the reward deviations") == pytest.approx(8 / 5)
    assert column(features, "standard deviation of the reward difference") == pytest.approx(np.std([4, -4, 8, 8]) / 5)
    assert column(features, "larger reward mean, above the prompt's") == pytest.approx(3 / 5)
    assert column(features, "chance that one of the two is the best") == pytest.approx(1.0)
    assert column(features, "does the policy prefer the better one") == pytest.approx(
        2 * np.sign(observation["logprob"][0, 0] - observation["logprob"][0, 1])
    )
    assert column(features, "distance of the embeddings") == pytest.approx(1.0)
    assert column(features, "share of the budget left") == pytest.approx(0.25)
    assert column(features, "legal") == 1.0


@pytest.mark.parametrize(("n", "m", "d"), [(1, 2, 3), (3, 30, 64), (256, 4, 1)])
def test_same_weights_choose_in_pools_of_any_size(n, m, d):
    observation = make_observation(np.random.default_rng(0), n=n, m=m, d=d)
    score = scorer_score(random_scorer())(observation, np.random.default_rng(0))
    assert score.shape == (n, n_pairs(m))
    assert np.all(np.isfinite(score))


def test_order_of_candidates_and_prompts_does_not_matter():
    observation = make_observation(np.random.default_rng(0), n=3, m=5)
    observation["mask"][1, 4] = 0
    order, prompts = np.array([3, 0, 4, 1, 2]), np.array([2, 0, 1])
    moved = dict(observation)
    for name, value in observation.items():
        if name == "embedding":
            moved[name] = value[prompts][:, order]
        elif value.shape[-2:] == (3, 5):
            moved[name] = value[..., prompts, :][..., order]
    moved["entropy"] = observation["entropy"][prompts]
    score = scorer_score(random_scorer())
    i, j = pair_table(5)
    where = pair_index(order[i], order[j], 5)
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(score(moved, rng), score(observation, rng)[prompts][:, where], rtol=1e-4, atol=1e-5)


def test_units_of_reward_and_embedding_do_not_matter():
    observation = make_observation(np.random.default_rng(0))
    scaled = observation | {
        "reward_mean": observation["reward_mean"] * 7, "reward_std": observation["reward_std"] * 7,
        "reward_samples": observation["reward_samples"] * 7, "embedding": observation["embedding"] * 3,
        "logprob": observation["logprob"] * 50 - 4, "implicit_reward": observation["implicit_reward"] * 0.01,
    }  # fmt: skip
    np.testing.assert_allclose(pair_features(observation), pair_features(scaled), atol=1e-4)


def test_features_of_a_pool_without_any_spread_are_finite():
    observation = make_observation(np.random.default_rng(0))
    for name in observation:
        if name != "mask":
            observation[name] = np.zeros_like(observation[name])
    assert np.all(np.isfinite(pair_features(observation)))


def test_masked_values_do_not_leak():
    observation = make_observation(np.random.default_rng(0), m=4)
    observation["mask"][:, 3] = 0
    other = {name: value.copy() for name, value in observation.items()}
    for name in ("reward_mean", "reward_std", "logprob", "implicit_reward", "length"):
        other[name][:, 3] += 100
    other["reward_samples"][..., 3] += 100
    other["embedding"][:, 3] += 100
    np.testing.assert_array_equal(pair_features(observation), pair_features(other))


def test_weights_go_round_and_wrong_files_are_told(tmp_path):
    scorer, path = random_scorer(), tmp_path / "w.safetensors"
    save_scorer(scorer, path)
    observation = make_observation(np.random.default_rng(0))
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(
        scorer_score(scorer)(observation, rng), scorer_score(load_scorer(path))(observation, rng)
    )
    with pytest.raises(FileNotFoundError, match="prefenv train"):
        load_scorer(tmp_path / "none.safetensors")
    (tmp_path / "bad").write_bytes(b"not weights at all")
    with pytest.raises(ValueError, match="no safetensors file"):
        load_scorer(tmp_path / "bad")
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(ValueError, match="format None"):
        load_scorer(tmp_path / "other.safetensors")


def small_env():
    return gym.make("prefenv:PrefAcquire-v0", n_prompts=2, n_candidates=3, budget=8)


def small_envs():
    return gym.make_vec("prefenv:PrefAcquire-v0", num_envs=2, n_prompts=2, n_candidates=3, budget=8)


def test_training_is_deterministic_and_goes_on(tmp_path):
    first = train_ppo(small_envs(), tmp_path / "a", steps=320, progress=False)
    second = train_ppo(small_envs(), tmp_path / "b", steps=320, progress=False)
    other = train_ppo(small_envs(), tmp_path / "c", steps=320, seed=1, progress=False)
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes() != other.read_bytes()
    before = first.read_bytes()
    train_ppo(small_envs(), tmp_path / "a", steps=320, progress=False)  # nothing is left to do
    assert first.read_bytes() == before
    train_ppo(small_envs(), tmp_path / "a", steps=480, progress=False)
    assert first.read_bytes() != before
    assert (
        PPO.load(tmp_path / "a" / "checkpoint.zip", device="cpu")._n_updates == 6 * 8
    )  # six rollouts, not four and six


class Trivial(gym.Env):
    """One prompt, three pairs; the pair with the largest gap of means pays 1."""

    observation_space = small_env().observation_space
    action_space = gym.spaces.MultiDiscrete([3, 3])

    def _draw(self):
        self.observation = make_observation(self.np_random, n=2, m=3, d=16, samples=32)
        del self.observation["oracle_score"]
        return self.observation

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._draw(), {}

    def step(self, action):
        best = np.abs(np.subtract(*(self.observation["reward_mean"][:, side] for side in pair_table(3)))).argmax(axis=1)
        return self._draw(), float((best == action).mean()), True, False, {}


def test_learns_a_trivial_task(tmp_path):
    path = train_ppo(SyncVectorEnv([Trivial] * 8), tmp_path, steps=10_000, progress=False)
    env, agent = Trivial(), agents.make("ppo", weights=str(path))
    observation, _ = env.reset(seed=0)
    rewards = []
    for _ in range(200):
        observation, reward, *_ = env.step(agent.predict(observation)[0])
        rewards.append(reward)
    assert np.mean(rewards) > 0.9  # chance is 1/3


def test_features_lie_in_their_space_and_keep_masks(ragged_world):
    env = gym.make("prefenv:PrefAcquire-v0", world=ragged_world)
    features = pair_features(env.reset(seed=0)[0])
    assert feature_space(env.observation_space).contains(features)
    np.testing.assert_array_equal(env.unwrapped.action_masks(), column(features, "legal").reshape(-1) > 0)


def test_plain_stable_baselines3_trains_on_the_dict_observation():
    model = PPO("MultiInputPolicy", small_env(), n_steps=16, batch_size=16, n_epochs=1, device="cpu")
    model.learn(32)
    assert small_env().action_space.contains(model.predict(small_env().reset(seed=0)[0])[0])


def test_maskable_ppo_obeys_the_masks(ragged_world):
    maskable = pytest.importorskip("sb3_contrib")
    env = gym.make("prefenv:PrefAcquireSequential-v0", world=ragged_world, labels_per_round=4, budget=8)
    model = maskable.MaskablePPO("MultiInputPolicy", env, n_steps=16, batch_size=16, n_epochs=1, device="cpu", seed=0)
    model.learn(32)
    observation, _ = env.reset(seed=0)
    terminated = False
    while not terminated:
        masks = env.get_wrapper_attr("action_masks")()
        action, _ = model.predict(observation, action_masks=masks)
        observation, _, terminated, _, info = env.step(int(action))
        assert info["illegal"] == info["repeated"] == 0


def test_chances_of_best_and_worst_by_hand():
    observation = make_observation(np.random.default_rng(0), n=1, m=3)
    # candidate 2 is best in three of four draws and 1 in one; 0 is worst in all but one, where 0 and 1 tie
    observation["reward_samples"] = np.array([[[0.0, 1, 2]], [[0, 1, 2]], [[1, 1, 2]], [[0, 2, 1]]])
    features = pair_features(observation)[0]
    np.testing.assert_allclose(column(features, "chance that one of the two is the best"), [0.25, 0.75, 1.0])
    np.testing.assert_allclose(column(features, "chance that one of the two is the worst"), [1.0, 0.875, 0.125])


def test_forbidden_pairs_have_no_chance():
    observation = make_observation(np.random.default_rng(0), m=4)
    observation["mask"][:, 0] = 0
    logits = random_scorer().logits(torch.from_numpy(pair_features(observation)))
    chances = logits.softmax(-1).detach().numpy()
    assert np.all(chances[:, :3] == 0)
    assert np.all(chances[:, 3:] > 0)


def test_training_worlds_are_seeded_apart_from_compared_ones(tmp_path):
    seeds = []

    class Spy(gym.Wrapper):
        def reset(self, *, seed=None, options=None):
            seeds.append(seed)
            return self.env.reset(seed=seed)

    for seed in (0, 1):
        spies = SyncVectorEnv([lambda: Spy(small_env())] * 2)
        train_ppo(spies, tmp_path / str(seed), steps=80, seed=seed, progress=False)
    given = [seed for seed in seeds if seed is not None]
    assert len(given) == len(set(given)) == 4
    assert min(given) >= TRAINING_SEEDS
