"""``prefenv explain``: what a learned policy does."""

import json

import numpy as np
import pytest

import experiments.explain as command
from agents.learned.features import FEATURES, ODD, pair_features
from experiments import cli
from experiments.explain import AS_IT_IS, FILE, RELATIONS, WORLDS, Cell, ExplainConfig, explain, hide
from experiments.kept import Kept
from prefenv.synthetic.settings import PRESETS, SyntheticSettings
from tests.conftest import make_observation


@pytest.fixture
def small(monkeypatch):
    """The same presets, smaller, and fewer features hidden."""
    for name in WORLDS:
        changed = {"n_prompts": 3, "n_candidates": 3, "n_generators": 3, "n_eval_prompts": 4, "warm_labels": 0}
        monkeypatch.setitem(PRESETS, name, SyntheticSettings(**{**vars(PRESETS[name]), **changed, "embedding_size": 4}))
    monkeypatch.setattr(command, "ROUNDS", 2)


def test_tables_and_picture_and_it_goes_on(tmp_path, small, capsys):
    config = ExplainConfig(seeds=3, out=tmp_path)
    assert explain(config) == 0
    text = (tmp_path / "explain.md").read_text()
    for name in FEATURES[:-1]:
        assert text.count(f"| {name} (") == len(WORLDS), name
    for key in ("drts", "dopt", "deltaqwen"):
        assert text.count(f"| {key} ") == len(WORLDS)
    assert "ppo" not in text
    assert (tmp_path / "explain.png").stat().st_size > 20_000
    content = (tmp_path / FILE).read_text()
    lines = content.splitlines(keepends=True)
    (tmp_path / FILE).write_text("".join(lines[:-2]) + lines[-2][:30])
    assert explain(config) == 0
    assert (tmp_path / FILE).read_text() == content
    with pytest.raises(ValueError, match="seeds"):
        explain(ExplainConfig(seeds=4, out=tmp_path))
    capsys.readouterr()


def test_what_is_found_has_a_number_for_each_seed_and_round(tmp_path, small, capsys):
    explain(ExplainConfig(seeds=3, out=tmp_path))
    settings = json.loads((tmp_path / FILE).read_text().splitlines()[0])["settings"]
    found = Kept(tmp_path / FILE, settings, Cell).found
    assert len(found) == len(WORLDS) * len(FEATURES)
    whole = found[Cell("synthetic", AS_IT_IS)]
    assert not whole["changed"].any()
    for name in RELATIONS:
        assert whole[f"follows {name}"].shape == (3, 2)
        assert np.abs(whole[f"follows {name}"]).max() <= 1 + 1e-9
    shares = np.stack([values for name, values in whole.items() if name.startswith("agrees ")])
    assert shares.min() >= 0
    assert 0.1 < shares.mean() < 0.9  # one in three by chance
    assert any(found[Cell("synthetic", name)]["changed"].mean() > 0.05 for name in FEATURES[:-1])
    capsys.readouterr()


def test_hidden_features_by_hand():
    observation = make_observation(np.random.default_rng(0), n=2, m=3)
    observation["mask"][0, 2] = 0
    features = pair_features(observation)
    legal = features[..., -1]
    odd = hide(features, "reward")
    assert not odd[..., ODD.index("reward")].any()
    np.testing.assert_array_equal(np.delete(odd, 0, axis=-1), np.delete(features, 0, axis=-1))
    place = FEATURES.index("distance of the embeddings")
    even = hide(features, "distance of the embeddings")[..., place]
    np.testing.assert_allclose(even, features[..., place][legal > 0].mean() * legal, rtol=1e-5)
    assert features[..., place].std() > 0.01  # the features themselves stay
    np.testing.assert_array_equal(hide(features, "budget left")[..., FEATURES.index("budget left")], 0.5 * legal)
    assert not np.array_equal(features[..., FEATURES.index("budget left")], 0.5 * legal)


def test_what_a_hidden_feature_costs_is_what_the_policy_does_better_with_it():
    found = {Cell("synthetic", AS_IT_IS): {"area": np.array([0.7, 0.6])}}
    found[Cell("synthetic", "reward")] = {"area": np.array([0.65, 0.6])}
    np.testing.assert_allclose(command._lost(found, "synthetic", "reward"), [5.0, 0.0])


def test_what_cannot_be_is_told(tmp_path, capsys):
    assert cli.main(["explain", "--seeds", "1", "--out", str(tmp_path / "a")]) == 2
    assert "seeds=1" in capsys.readouterr().err
    assert cli.main(["explain", "--weights", "nowhere", "--out", str(tmp_path / "a")]) == 2
    assert "no weights at 'nowhere'" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
