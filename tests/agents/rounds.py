"""What the tests of designs share: the rules, and agents and rounds in each form of the action."""

from functools import partial

import gymnasium as gym
import numpy as np

from agents.heuristic import DesignAgent
from agents.scores import coverage, design, herding, policy
from prefenv.spaces import n_pairs

PROMPT_RULES = {
    "entropy": policy.entropy,
    "entropy-neg": policy.entropy_neg,
    "apl": policy.apl,
    "apl-neg": policy.apl_neg,
    "apl-both": policy.apl_both,
    "coreset": coverage.coreset,
    "kmeans": coverage.kmeans,
    "div-reward": coverage.div_reward,
    "max-herding": herding.max_herding,
    "knn-herding": herding.knn_herding,
    "u-herding": herding.u_herding,
}
RULES = PROMPT_RULES | {"dopt": design.dopt}
COVERAGE = ["coreset", "kmeans", "div-reward", "max-herding", "knn-herding", "u-herding"]
DRAWN = ["kmeans", "div-reward"]  # these draw prompts; with a pair score that does not draw the others do not either
MEMORY = ["coreset", "div-reward", "max-herding", "knn-herding", "u-herding", "dopt"]


def budget_agent(rule, observation, k, seed=0, **settings):
    """An agent for k pairs anywhere."""
    n, m = observation["mask"].shape[-2:]
    return DesignAgent(partial(rule, **settings), gym.spaces.MultiDiscrete([n * n_pairs(m)] * k), seed)


def prompts_of(action, observation):
    return np.asarray(action) // n_pairs(observation["mask"].shape[-1])


def chosen_prompts(rule, observation, k, seed=0, **settings):
    """(..., k) prompts of k pairs anywhere, in the order of their scores."""
    return prompts_of(budget_agent(rule, observation, k, seed, **settings).predict(observation)[0], observation)


def one_by_one(rule, observation, k, seed=0, state=None, **settings):
    """The k pairs (index into n·P) that the sequential form selects, from this memory on."""
    n, m = observation["mask"].shape[-2:]
    size = n * n_pairs(m)
    agent = DesignAgent(partial(rule, **settings), gym.spaces.Discrete(size), seed)
    selected, actions = np.zeros(size, dtype=np.float32), []
    for _ in range(k):
        action, state = agent.predict(observation | {"selected": selected.copy()}, state)
        selected[action] = 1
        actions.append(int(action))
    return actions


def points_observation(points, **entries):
    """m = 2 candidates at the same place, so that the midpoint of the one pair of prompt i is point i."""
    points = np.asarray(points, dtype=np.float32)
    n = len(points)
    shown = {
        "embedding": np.stack([points, points], axis=1),
        "mask": np.ones((n, 2), dtype=np.int8),
        "entropy": np.ones(n, dtype=np.float32),
        "implicit_reward": np.tile(np.array([0, 1], dtype=np.float32), (n, 1)),
    }
    return shown | {name: np.asarray(value, dtype=np.float32) for name, value in entries.items()}


def memory_of(points):
    """State of an agent that has labelled pairs at these points."""
    points = np.asarray(points, dtype=np.float32)
    return np.stack([points, points], axis=1), np.ones(len(points), dtype=bool)


def repeated(observation, times):
    """The observation ``times`` over, as a batch."""
    return {name: np.broadcast_to(value, (times, *np.shape(value))) for name, value in observation.items()}


def member(batch, b):
    return {name: value[b] for name, value in batch.items()}


def permuted(observation, order):
    """The observation with its prompts in another order."""
    axis = {"reward_samples": 1, "budget": None}
    return {
        name: value if axis.get(name, 0) is None else np.take(value, order, axis=axis.get(name, 0))
        for name, value in observation.items()
    }
