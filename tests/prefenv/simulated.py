"""One simulated world for a test, and what is hidden in it."""

import numpy as np

from prefenv.synthetic.settings import SyntheticSettings
from prefenv.synthetic.world import make_synthetic_world


def fresh(seed=0, **settings):
    world = make_synthetic_world(SyntheticSettings(**settings))
    world.reset(np.random.default_rng(seed))
    return world


def hidden_of(world):
    """What is hidden in the episode of a world, without the leading axis."""
    return world.source.sources.hidden[slice(0, 1)]


def set_theta(world, theta):
    world.learner.policies.theta = np.asarray(theta, dtype=np.float64)[None]


def held_out(world):
    """Features (E, G, D), reference probability (E, G) and reward (E, G) of a world's held-out prompts, float64."""
    evaluators, hidden = world.evaluator.evaluators, hidden_of(world)
    e, g = world.settings.n_eval_prompts, world.settings.n_generators
    features = evaluators._features[0].reshape(-1, g, e).T.astype(np.float64)
    reference = np.exp(evaluators._reference[0].T.astype(np.float64))
    return features, reference, world.settings.reward_scale * features @ hidden.reward[0]


def policy_prob(world, features, reference):
    weight = reference * np.exp(features @ world.learner.policies.theta[0])
    return weight / weight.sum(axis=-1, keepdims=True)
