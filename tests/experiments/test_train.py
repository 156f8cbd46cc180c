"""``prefenv train``: imitation, reinforcement learning, resuming, errors."""

import itertools
import json

import gymnasium as gym
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import agents  # noqa: E402
import experiments.train as command  # noqa: E402
from agents.learned import SEEDS_A_RUN, TRAINING_SEEDS, VALIDATION_SEEDS, imitation  # noqa: E402
from agents.learned.features import FEATURES, pair_features  # noqa: E402
from agents.learned.imitation import CHOICE, SHARPNESS, gain_loss, imitate  # noqa: E402
from agents.learned.network import PairScorer, load_scorer  # noqa: E402
from agents.learned.scorer import load_score, read_weights  # noqa: E402
from experiments import cli, held_out  # noqa: E402
from experiments.held_out import HeldOut  # noqa: E402
from experiments.train import TrainConfig, train  # noqa: E402
from prefenv.synthetic.ranges import Ranges  # noqa: E402
from prefenv.synthetic.settings import SyntheticSettings  # noqa: E402
from prefenv.training_worlds import TrainingWorlds  # noqa: E402
from prefenv.vector import PrefAcquireVectorEnv  # noqa: E402


@pytest.fixture
def small(monkeypatch):
    """Fewer and smaller worlds."""
    monkeypatch.setattr(held_out, "WORLDS", {"synthetic": 4})
    monkeypatch.setattr(held_out, "DRAWN", (2, 2))
    monkeypatch.setattr(held_out, "ROUNDS", 2)
    monkeypatch.setattr(command, "RL_RANGES", Ranges(n_prompts=(2, 3), n_candidates=(3, 4), embedding_size=(4, 8)))
    monkeypatch.setattr(command, "POOLS_OF_MANY", Ranges(n_prompts=(2, 3), n_candidates=(5, 6), embedding_size=(4, 8)))


def config(out, **changes):
    return TrainConfig(**({"out": out, "imitation": 3, "steps": 640, "n_envs": 8, "progress": False} | changes))


def test_the_default_number_of_environments_may_be_named(tmp_path, small):
    train(config(tmp_path, world="synthetic", algorithm="a2c", imitation=0, steps=160, n_envs=None, held_out=False))
    train(config(tmp_path, world="synthetic", algorithm="a2c", imitation=0, steps=320, n_envs=16, held_out=False))


def curve(folder):
    return [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]


def test_imitation_then_ppo_and_the_same_seed_gives_the_same_weights(tmp_path, small):
    first, second, other = (train(config(tmp_path / name, seed=seed)) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert first == tmp_path / "a" / "ppo.safetensors"
    assert first.read_bytes() == second.read_bytes()
    assert any(
        not np.array_equal(one, two)
        for one, two in zip(read_weights(first).values(), read_weights(other).values(), strict=True)
    )
    entries = curve(tmp_path / "a")
    assert [entry.get("imitation") for entry in entries[:3]] == [1, 2, 3]
    assert entries[3]["steps"] == 0
    assert entries[-1]["steps"] == 640
    assert {"synthetic", "drawn"} <= entries[0].keys()
    # reinforcement learning began from what imitation had found
    assert {k: v for k, v in entries[2].items() if k != "imitation"} == {
        k: v for k, v in entries[3].items() if k != "steps"
    }
    assert list((tmp_path / "a" / "tensorboard").rglob("*tfevents*"))
    assert (tmp_path / "a" / "curve.png").stat().st_size > 5_000
    assert agents.make("ppo", weights=str(first)).score is not None


def test_a_stopped_imitation_goes_on_to_the_same_weights(tmp_path, small, monkeypatch):
    whole = train(config(tmp_path / "whole"))
    walk, walked = imitation._walk, []

    def stops(*arguments):
        if len(walked) == 2:
            raise KeyboardInterrupt
        walked.append(1)
        return walk(*arguments)

    monkeypatch.setattr(imitation, "_walk", stops)
    with pytest.raises(KeyboardInterrupt):
        train(config(tmp_path / "cut"))
    walked.clear()  # one episode is left
    assert train(config(tmp_path / "cut")).read_bytes() == whole.read_bytes()
    assert len(walked) == 1


def test_a_stopped_training_goes_on_and_a_finished_one_does_nothing(tmp_path, small):
    train(config(tmp_path, steps=320))
    before = read_weights(tmp_path / "ppo.safetensors")
    path = train(config(tmp_path, steps=640))
    after = read_weights(path)
    assert any(not np.array_equal(before[name], after[name]) for name in after)
    content, lines = path.read_bytes(), len(curve(tmp_path))
    train(config(tmp_path, steps=640))
    assert (path.read_bytes(), len(curve(tmp_path))) == (content, lines)


@pytest.mark.parametrize("algorithm", ["a2c", "maskable-ppo", "dqn"])
def test_other_algorithms_train_in_a_named_world(tmp_path, small, algorithm):
    path = train(config(tmp_path, algorithm=algorithm, world="synthetic", imitation=1, n_envs=2, steps=600, rounds=2))
    assert path.name == f"{algorithm}.safetensors"
    env = gym.make("PrefAcquireSequential-v0")
    observation, _ = env.reset(seed=0)
    scores = load_score(path)(observation, np.random.default_rng(0))
    assert np.isfinite(scores).all()
    start = read_weights(tmp_path / "imitation.safetensors")
    assert not np.array_equal(start["odd.weight"], read_weights(path)["odd.weight"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "steps=0"),
        (["--imitation", "-1"], "imitation=-1"),
        (["--rounds", "0"], "rounds=0"),
        (["--n-envs", "0"], "n_envs=0"),
        (["--n-envs", "12"], "8 at a time"),
        (["--seed", "100"], "seed=100"),
        (["--steps", "5000000"], "run out"),
        (["--imitation", "5000"], "run out"),
        (["--algorithm", "dqn"], "pass --world synthetic"),
        (["--world", "synthetik"], "did you mean 'synthetic'"),
        (["--world", "llm", "--n-envs", "2"], "pass --n-envs 1"),
    ],
)
def test_what_cannot_be_is_told(tmp_path, arguments, message, capsys):
    assert cli.main(["train", "--out", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_it_never_goes_on_under_other_settings(tmp_path, small):
    train(config(tmp_path, imitation=0, steps=320))
    for changes in ({"imitation": 1}, {"seed": 1}, {"rounds": 3}, {"n_envs": 16}, {"algorithm": "a2c"}):
        with pytest.raises(ValueError, match="other settings"):
            train(config(tmp_path, **({"imitation": 0, "steps": 320} | changes)))


def test_gain_loss_by_hand():
    gain = torch.tensor([[[3.0, -4.0]], [[2.0, 0.0]]])  # roots of the mean squares 5 / sqrt(2) and 2
    legal = torch.tensor([[[1.0, 1.0]], [[1.0, 0.0]]])
    foreseen = torch.tensor([[[0.0, 0.0]], [[3.0, -1e8]]])
    chosen = -0.5 / (5 / np.sqrt(2)), 1.0  # one of two alike; the only one
    by_hand = ((1.0 - CHOICE * chosen[0]) + (4.0 - CHOICE * chosen[1])) / 2
    assert gain_loss(foreseen, gain, legal).item() == pytest.approx(by_hand)
    assert gain_loss(foreseen, 100 * gain, legal).item() == pytest.approx(by_hand)
    assert gain_loss(foreseen, 0 * gain, legal).item() == pytest.approx((0.0 + 9.0) / 2)


def test_imitation_learns_what_can_be_foreseen(tmp_path):
    """With a posterior that knows the reward, the gain of oracle-greedy can be worked out from what is seen."""
    ranges = Ranges(
        n_prompts=(8, 8), n_candidates=(4, 4), embedding_size=(4, 4), misspecification=(0.0, 1e-9),
        warm_labels=(2000, 2000), on_policy=0.0, losses=("dpo",),
    )  # fmt: skip

    def lessons(number):
        settings = ranges.draw(np.random.default_rng(number))
        warm = {**vars(settings), "warm_labels": 2000}
        return [(PrefAcquireVectorEnv(type(settings)(**warm), 16, 32, privileged=True), 16 * number)]

    path = imitate(lessons, tmp_path, episodes=60, progress=False)
    score, [(envs, _)] = load_score(path), lessons(10_000)
    observation, _ = envs.reset(seed=0)
    features = pair_features(observation)
    foreseen = score(observation, np.random.default_rng(0)) / SHARPNESS
    gain = observation["oracle_gain"] / np.sqrt((observation["oracle_gain"] ** 2).mean(axis=(1, 2), keepdims=True))
    assert ((foreseen - gain) ** 2).mean() < 0.35  # 1 for a network that foresees nothing
    assert features[..., -1].all()
    best = foreseen.argmax(axis=-1)
    taken = np.take_along_axis(observation["oracle_gain"], best[..., None], axis=-1).mean()
    assert taken > 0.8 * observation["oracle_gain"].max(axis=-1).mean()


def test_seeds_of_lessons_rollouts_validation_and_comparisons_lie_apart(small, monkeypatch):
    resets = []
    reset = PrefAcquireVectorEnv.reset

    def spy(self, *, seed=None, options=None):
        if seed is not None:
            resets.extend([seed + b for b in range(self.num_envs)] if isinstance(seed, int) else seed)
        return reset(self, seed=seed, options=options)

    monkeypatch.setattr(PrefAcquireVectorEnv, "reset", spy)
    lessons = set()
    for seed in (0, 99):
        for number in (0, 1, 4999):
            for envs, first in command._lessons(seed)(number):
                lessons |= set(range(first, first + envs.num_envs))
    assert TRAINING_SEEDS <= min(lessons) < max(lessons) < VALIDATION_SEEDS
    HeldOut()(lambda observation, _: np.zeros((*observation["mask"].shape[:-1], pairs(observation))))
    assert min(resets) >= VALIDATION_SEEDS


def test_seeds_of_rollouts_lie_apart_from_lessons_and_from_other_trainings(tmp_path, small, monkeypatch):
    given = {}
    reset = TrainingWorlds.reset

    def spy(self, *, seed=None, options=None):
        found = reset(self, seed=seed, options=options)
        given.setdefault(run, []).extend(value - self.num_envs for value in self._next_seeds)
        return found

    monkeypatch.setattr(TrainingWorlds, "reset", spy)
    for run in (0, 1):
        train(config(tmp_path / str(run), seed=run, imitation=0, held_out=False))
        assert len(given[run]) == len(set(given[run])) >= 3 * 8  # several episodes, all of other worlds
        lessons = [first for number in (0, 4999) for _, first in command._lessons(run)(number)]
        assert TRAINING_SEEDS + run * SEEDS_A_RUN <= min(given[run])
        assert max(given[run]) + 1_000_000 < min(lessons)
        assert max(lessons) < TRAINING_SEEDS + (run + 1) * SEEDS_A_RUN
    assert not set(given[0]) & set(given[1])


def test_every_setting_of_a_lesson_has_seeds_of_its_own():
    firsts = [(first, first + envs.num_envs) for number in (0, 1) for envs, first in command._lessons(0)(number)]
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(firsts))
    settings = [envs.settings for envs, _ in command._lessons(0)(0)]
    assert len(set(settings)) == len(settings) == 11
    assert settings != [envs.settings for envs, _ in command._lessons(1)(0)]
    assert sum(each.n_candidates > 8 for each in settings) == 3


def test_rounds_of_a_named_world(tmp_path, small):
    worlds = command._named_worlds(config(tmp_path, world="synthetic", rounds=3), SyntheticSettings(), False)
    assert (worlds.num_envs, worlds.budget) == (8, 3 * 8)


def test_held_out_worlds_are_watched_in_named_worlds_too_and_not_where_nobody_asks(tmp_path, small):
    train(config(tmp_path / "a", algorithm="a2c", world="synthetic", imitation=0, steps=200, rounds=2))
    assert {"steps", "synthetic", "drawn"} == curve(tmp_path / "a")[-1].keys()
    train(config(tmp_path / "b", imitation=0, held_out=False))
    assert not (tmp_path / "b" / "curve.jsonl").exists()


def test_headroom_of_drawn_worlds_is_larger_for_a_better_score(small, monkeypatch):
    monkeypatch.setattr(held_out, "DRAWN", (6, 16))
    monkeypatch.setattr(held_out, "ROUNDS", 6)
    place, found = FEATURES.index("expected gain, generators as a hint"), HeldOut()
    good = found(lambda observation, _: pair_features(observation)[..., place])["drawn"]
    bad = found(lambda observation, _: -pair_features(observation)[..., place])["drawn"]
    assert good > 0.05 > -0.05 > bad


def pairs(observation):
    m = observation["mask"].shape[-1]
    return m * (m - 1) // 2


def test_held_out_worlds_know_a_better_score(small, monkeypatch):
    monkeypatch.setattr(held_out, "WORLDS", {"synthetic": 100})
    monkeypatch.setattr(held_out, "ROUNDS", 10)
    place = FEATURES.index("expected gain, generators as a hint")
    found = HeldOut()
    good = found(lambda observation, _: pair_features(observation)[..., place])
    bad = found(lambda observation, _: -pair_features(observation)[..., place])
    nothing = found(lambda observation, rng: rng.random((*observation["mask"].shape[:-1], pairs(observation))))
    assert good["synthetic"] > 0.5 > nothing["synthetic"] > -0.5 > bad["synthetic"]
    assert found(lambda observation, _: pair_features(observation)[..., place]) == good


def test_weights_are_halfway_between_imitation_and_what_reinforcement_learning_made_of_them(tmp_path, small):
    from agents.learned.prompt_ppo import PromptPPO

    path = train(config(tmp_path))
    start, written = read_weights(tmp_path / "imitation.safetensors"), read_weights(path)
    after = PromptPPO.load(tmp_path / "checkpoint.zip", device="cpu").policy.scorer.state_dict()
    assert not np.array_equal(start["odd.weight"], after["odd.weight"])
    for name, value in written.items():
        np.testing.assert_allclose(value, (start[name] + after[name].numpy()) / 2, atol=1e-7)


def test_a_line_of_the_curve_that_a_crash_cut_short_is_dropped(tmp_path, small):
    train(config(tmp_path, steps=320))
    lines = len(curve(tmp_path))
    with (tmp_path / "curve.jsonl").open("a") as file:
        file.write('{"steps": 320, "synth')
    train(config(tmp_path, steps=640))
    assert len(curve(tmp_path)) > lines
    assert all("synthetic" in entry for entry in curve(tmp_path))


def test_a_finished_training_that_nobody_watched_can_be_started_again(tmp_path, small):
    first = train(config(tmp_path, imitation=0, steps=320, held_out=False)).read_bytes()
    assert train(config(tmp_path, imitation=0, steps=320)).read_bytes() == first


def test_imitation_leaves_torchs_own_generator_alone(tmp_path):
    before = torch.random.get_rng_state()
    imitate(lambda number: command._lessons(0)(number)[:1], tmp_path, episodes=1, progress=False)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_network_begins_as_the_random_agent(tmp_path):
    torch.manual_seed(0)
    scorer = PairScorer()
    assert not scorer.last.weight.any()
    with pytest.raises(FileNotFoundError, match="prefenv train"):
        load_scorer(tmp_path / "none")
