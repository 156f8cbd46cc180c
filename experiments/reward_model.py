"""A fresh reward model on acquired pairs, and held-out pairs that it is asked to rank; B worlds side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from prefenv.noise import Words, normals, uniforms, unit_noise
from prefenv.synthetic.settings import SyntheticSettings
from prefenv.synthetic.story import Hidden, project
from prefenv.types import FloatArray, whole_number

STEPS, STEP_SIZE = 300, 1.0  # of gradient descent from zero: most labels are then ranked as they were given
HELD_OUT_PAIRS = 256  # of each kind and world
STREAM = 777  # of the held-out pairs: with the seed, so that all methods of a seed are asked the same


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Pairs on new prompts, as differences of features and in which direction the truth goes.

    Attributes:
        in_style: (B, K, D) float32, of responses of two of the episode's generators.
        off_style: (B, K, D) float32, of responses of two writers who are not among them.
        reward: (B, D) float32, the hidden direction that says which is better.
    """

    in_style: FloatArray
    off_style: FloatArray
    reward: FloatArray


def fit_reward_model(
    chosen: FloatArray, rejected: FloatArray, steps: int = STEPS, step_size: float = STEP_SIZE
) -> FloatArray:
    """(B, d) float64 weights of a linear reward model on embeddings, trained from zero.

    Gradient descent on the mean over the labels of ``-log sig(w · (chosen - rejected))``, all labels in every step.
    Labels that a hyperplane can part have no minimum, so the number of steps is part of the model.

    Args:
        chosen: (B, k, d) embeddings.
        rejected: (B, k, d); the chosen one again is no label.
        steps: of gradient descent.
        step_size: of each.

    >>> fit_reward_model(np.ones((1, 1, 1)), np.zeros((1, 1, 1)), steps=1)
    array([[0.5]])
    """
    whole_number("steps", steps)
    difference = np.subtract(chosen, rejected, dtype=np.float64)
    rate = step_size / difference.shape[1]
    weights = np.zeros((len(difference), difference.shape[2]))
    for _ in range(steps):
        margin = np.matmul(difference, weights[..., None])
        weights += rate * np.matmul(difference.swapaxes(1, 2), expit(-margin))[..., 0]
    return weights


def held_out_pairs(
    settings: SyntheticSettings, hidden: Hidden, seeds: Sequence[int], count: int = HELD_OUT_PAIRS
) -> HeldOut:
    """New pairs of two kinds, ``count`` of each in every world, that depend on world and seed alone.

    In style: the responses of two different generators of the episode, drawn alike, to a new prompt.

    Off style: the responses of two writers who are not among the generators, to a new prompt, every pair with its own
    two. A writer's style is drawn anew, as a generator's is (of standard deviation ``style_spread`` in each feature,
    orthogonal to the reward). Both writers of a pair have the same skill, so that nothing but the responses themselves
    tells which is better. So it is in benchmarks whose texts come from people and from models that nobody trained on.
    """
    words = Words([np.random.PCG64([seed, STREAM]) for seed in seeds])
    b, g, size = hidden.generator_mean.shape
    choice = uniforms(words, 2 * count).reshape(b, 2, count)
    first = (choice[:, 0] * g).astype(np.int64)
    second = (first + 1 + (choice[:, 1] * (g - 1)).astype(np.int64)) % g
    world, sides = np.arange(b)[:, None], []
    for generator in (first, second):
        mean, spread = hidden.generator_mean[world, generator], hidden.consistency[world, generator]
        sides.append(mean + spread[..., None] * unit_noise(words, count * size).reshape(b, count, size))
    style = normals(words, 2 * count * size).reshape(b, 2, count, size)
    style = np.float32(settings.style_spread) * (style[:, 0] - style[:, 1])
    style -= project(style, hidden.reward)[..., None] * hidden.reward[:, None]
    own = unit_noise(words, 2 * count * size).reshape(b, 2, count, size)
    return HeldOut(
        in_style=sides[0] - sides[1],
        off_style=style + own[:, 0] - own[:, 1],
        reward=hidden.reward,
    )


def ranking_accuracy(weights: FloatArray, difference: FloatArray, reward: FloatArray) -> FloatArray:
    """(B,) share of pairs that a reward model ranks as the truth does; equal scores count one half.

    Args:
        weights: (B, d) on the first d features, which are the embedding.
        difference: (B, K, D) of features, first less second.
        reward: (B, D).

    >>> pairs, truth = np.array([[[1.0, 0.0], [-1.0, 0.0]]]), np.array([[1.0, 0.0]])
    >>> ranking_accuracy(np.array([[2.0]]), pairs, truth)
    array([1.])
    """
    believed = project(difference[..., : weights.shape[1]], weights)
    agreement = np.sign(believed) * np.sign(project(difference, reward))
    return np.asarray(0.5 + 0.5 * agreement.mean(axis=1, dtype=np.float64))
