"""The learned agent: features, network, training."""

import json

import gymnasium as gym
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from gymnasium.vector import SyncVectorEnv  # noqa: E402
from stable_baselines3 import PPO  # noqa: E402

import agents  # noqa: E402
from agents.learned import TRAINING_SEEDS  # noqa: E402
from agents.learned.features import FEATURES, pair_features  # noqa: E402
from agents.learned.network import PairScorer, load_scorer, save_scorer  # noqa: E402
from agents.learned.prompt_ppo import PromptPPO  # noqa: E402
from agents.learned.scorer import FORMAT, load_score  # noqa: E402
from agents.learned.training import torch_score, train_agent  # noqa: E402
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


@pytest.mark.parametrize(("n", "m", "d"), [(1, 2, 3), (3, 30, 64), (256, 4, 1)])
def test_same_weights_choose_in_pools_of_any_size(n, m, d):
    observation = make_observation(np.random.default_rng(0), n=n, m=m, d=d)
    score = torch_score(random_scorer())(observation, np.random.default_rng(0))
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
    score = torch_score(random_scorer())
    i, j = pair_table(5)
    where = pair_index(order[i], order[j], 5)
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(score(moved, rng), score(observation, rng)[prompts][:, where], rtol=1e-4, atol=1e-5)


def test_weights_go_round_and_wrong_files_are_told(tmp_path):
    scorer, path = random_scorer(), tmp_path / "w.safetensors"
    save_scorer(scorer, path)
    observation = make_observation(np.random.default_rng(0))
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(torch_score(scorer)(observation, rng), load_score(path)(observation, rng))
    np.testing.assert_allclose(
        load_scorer(path).logits(torch.from_numpy(pair_features(observation))).detach().numpy(),
        load_score(path)(observation, rng), rtol=1e-4, atol=1e-5,
    )  # fmt: skip
    with pytest.raises(FileNotFoundError, match="prefenv train"):
        load_scorer(tmp_path / "none.safetensors")
    (tmp_path / "bad").write_bytes(b"not weights at all")
    with pytest.raises(ValueError, match="no safetensors file"):
        load_scorer(tmp_path / "bad")
    from safetensors.torch import save_file

    tensors = {name: value.contiguous() for name, value in random_scorer().state_dict().items()}
    about = {"format": FORMAT, "features": list(FEATURES)}
    for number, (changed, note) in enumerate([
        ({"a": torch.zeros(1)}, None), (tensors, "[1]"), (tensors, "{"), (tensors, "{}"),
        (tensors, json.dumps(about | {"features": None})), (tensors, json.dumps(about | {"features": ["x"]})),
        (tensors | {"odd.weight": torch.zeros(2, 2)}, json.dumps(about)),
        ({k: v for k, v in tensors.items() if k != "last.weight"}, json.dumps(about)),
    ]):  # fmt: skip
        path = tmp_path / f"other{number}.safetensors"
        save_file(changed, str(path), None if note is None else {"prefenv": note})
        with pytest.raises(ValueError, match="holds no weights of format"):
            agents.make("learned", weights=str(path))
    save_file(tensors, str(tmp_path / "good.safetensors"), {"prefenv": json.dumps(about)})
    agents.make("learned", weights=str(tmp_path / "good.safetensors"))
    save_file({"a": torch.zeros(1)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(ValueError, match="holds no weights of format"):
        load_scorer(tmp_path / "other.safetensors")


def small_env():
    return gym.make("prefenv:PrefAcquire-v0", n_prompts=2, n_candidates=3, budget=8)


def small_envs():
    return gym.make_vec("prefenv:PrefAcquire-v0", num_envs=2, n_prompts=2, n_candidates=3, budget=8)


def test_training_is_deterministic_and_goes_on(tmp_path):
    first = train_agent(small_envs(), tmp_path / "a", steps=320, progress=False)
    second = train_agent(small_envs(), tmp_path / "b", steps=320, progress=False)
    other = train_agent(small_envs(), tmp_path / "c", steps=320, seed=1, progress=False)
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes() != other.read_bytes()
    before = first.read_bytes()
    train_agent(small_envs(), tmp_path / "a", steps=320, progress=False)  # nothing is left to do
    assert first.read_bytes() == before
    train_agent(small_envs(), tmp_path / "a", steps=480, progress=False)
    assert first.read_bytes() != before
    assert (
        PromptPPO.load(tmp_path / "a" / "checkpoint.zip", device="cpu")._n_updates == 6 * 4
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
    path = train_agent(SyncVectorEnv([Trivial] * 8), tmp_path, steps=10_000, progress=False)
    env, agent = Trivial(), agents.make("ppo", weights=str(path))
    observation, _ = env.reset(seed=0)
    rewards = []
    for _ in range(200):
        observation, reward, *_ = env.step(agent.predict(observation)[0])
        rewards.append(reward)
    assert np.mean(rewards) > 0.9  # chance is 1/3


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
        train_agent(spies, tmp_path / str(seed), steps=80, seed=seed, progress=False)
    given = [seed for seed in seeds if seed is not None]
    assert len(given) == len(set(given)) == 4
    assert min(given) >= TRAINING_SEEDS
