"""Labels that no judge gives: by the generators' known strength, and by the reward posterior itself."""

from __future__ import annotations

import numpy as np

from prefenv.oracles.bradley_terry import preferences_of
from prefenv.types import BoolArray, FloatArray, IntArray, Pairs, Pool, Preferences


def label_by_generator(pool: Pool, pairs: Pairs) -> Preferences:
    """The response of the generator with the larger number is chosen; a pair of one generator gets no label."""
    first, second = (pool.generator[pairs.prompt, side] for side in (pairs.first, pairs.second))
    return preferences_of(pairs, np.sign(first - second))


def own_labels(
    samples: FloatArray, mask: BoolArray, share: FloatArray, count: int
) -> tuple[IntArray, IntArray, IntArray, BoolArray]:
    """Labels that the posterior makes: on random prompts the best against the worst candidate of a random joint draw.

    Args:
        samples: (B, S, n, m) joint draws of the posterior of B worlds.
        mask: (B, n, m) bool, which candidates exist.
        share: (B, 2n + nm) uniform random numbers in [0, 1): n that order the prompts, n that choose each one's draw,
            and n × m that choose among equal rewards.
        count: how many in each world, at most n.

    Returns:
        (B, count) int64 prompt, chosen and rejected, and (B, count) bool: False where the draw knows no difference.

    >>> draws = np.array([[[[0.0, 2.0, 1.0]]]])
    >>> own_labels(draws, np.ones((1, 1, 3), dtype=bool), np.zeros((1, 5)), 1)[1:3]
    (array([[1]]), array([[0]]))
    """
    b, n_samples, n, m = samples.shape
    world = np.arange(b)[:, None]
    prompt = np.argsort(share[:, :n], axis=1)[:, :count]
    draw = (share[:, n : 2 * n] * n_samples).astype(np.int64)[world, prompt]
    reward, exists = samples[world, draw, prompt], mask[world, prompt]
    noise = share[:, 2 * n :].reshape(b, n, m)[world, prompt]
    best = np.where(exists, reward, -np.inf).max(axis=-1, keepdims=True)
    worst = np.where(exists, reward, np.inf).min(axis=-1, keepdims=True)
    chosen, rejected = (np.where(exists & (reward == end), noise, -1.0).argmax(axis=-1) for end in (best, worst))
    return prompt, chosen, rejected, (best != worst)[..., 0]
