"""Steps that several tests of the language model world take."""

from __future__ import annotations

import numpy as np

from prefenv.llm.pool import TextPool
from prefenv.protocols import World
from prefenv.spaces import pair_table
from prefenv.types import Evaluation, Pairs, Preferences

POOL_ARRAYS = ("prompt_id", "embedding", "logprob", "length", "implicit_reward", "entropy", "generator", "mask")


def widest_pairs(world: World, pool: TextPool) -> Pairs:
    """For each prompt the two candidates of best and worst reward."""
    first, second = pair_table(pool.n_candidates)
    score = world.oracle.score(pool)
    chosen = np.abs(score[:, first] - score[:, second]).argmax(axis=1)
    return Pairs(np.arange(pool.n_prompts), first[chosen], second[chosen])


def play(world: World) -> tuple[TextPool, Preferences, Evaluation]:
    """One round."""
    pool = world.source.draw()
    world.posterior.predict(pool.embedding)
    preferences = world.oracle.compare(pool, widest_pairs(world, pool))
    world.posterior.update(pool, preferences)
    world.learner.step(pool, preferences)
    return pool, preferences, world.evaluator.evaluate(world.posterior)


def assert_same_pool(one: TextPool, other: TextPool) -> None:
    """Bit for bit."""
    assert one.prompts == other.prompts
    assert one.candidates == other.candidates
    for name in POOL_ARRAYS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
