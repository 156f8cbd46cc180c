"""What ``gymnasium.make_vec`` calls: B environments, in the simulator all at once."""

from __future__ import annotations

import dataclasses

from gymnasium.vector import SyncVectorEnv, VectorEnv

from prefenv.env import PLAIN, PrefAcquireEnv
from prefenv.forms import PrefAcquireBudgetEnv
from prefenv.protocols import World
from prefenv.synthetic.settings import SyntheticSettings
from prefenv.types import Recipe, whole_number
from prefenv.vector import PrefAcquireVectorEnv
from prefenv.worlds import world_spec


def make_vector_env(
    num_envs: int = 1,
    world: str | SyntheticSettings | World = "synthetic",
    n_prompts: int | None = None,
    n_candidates: int | None = None,
    budget: int | None = None,
    privileged: bool = False,
    recipe: Recipe = PLAIN,
    pools: str | None = None,
) -> VectorEnv:
    """B environments: :class:`PrefAcquireVectorEnv` in the simulator, gymnasium's ``SyncVectorEnv`` in other worlds.

    Args:
        num_envs: B.
        world: a key of :data:`prefenv.worlds.WORLDS`, or settings of a world. A World object serves one environment,
            so it is refused.
        n_prompts: as in :class:`prefenv.env.PrefAcquireEnv`, and so are the others.
        n_candidates: likewise.
        budget: likewise.
        privileged: likewise.
        recipe: likewise.
        pools: likewise.

    Raises:
        ValueError: as PrefAcquireEnv; a World object; num_envs below 1.
    """
    settings = _simulated(num_envs, world, n_prompts, n_candidates, pools)
    if settings is None:
        return SyncVectorEnv(
            [lambda: PrefAcquireEnv(world, n_prompts, n_candidates, budget, privileged, recipe, pools)] * num_envs
        )
    return PrefAcquireVectorEnv(settings, num_envs, budget, privileged, recipe)


def make_budget_vector_env(
    num_envs: int = 1,
    world: str | SyntheticSettings | World = "synthetic",
    n_prompts: int | None = None,
    n_candidates: int | None = None,
    budget: int | None = None,
    privileged: bool = False,
    recipe: Recipe = PLAIN,
    pools: str | None = None,
    labels_per_round: int | None = None,
) -> VectorEnv:
    """As :func:`make_vector_env`, of :class:`prefenv.forms.PrefAcquireBudgetEnv`.

    Args:
        num_envs: B.
        world: as in :func:`make_vector_env`, and so are the others.
        n_prompts: likewise.
        n_candidates: likewise.
        budget: likewise.
        privileged: likewise.
        recipe: likewise.
        pools: likewise.
        labels_per_round: k; n when None.

    Raises:
        ValueError: as PrefAcquireBudgetEnv; a World object; num_envs below 1.
    """
    settings = _simulated(num_envs, world, n_prompts, n_candidates, pools)
    if settings is None:
        return SyncVectorEnv(
            [
                lambda: PrefAcquireBudgetEnv(
                    world, n_prompts, n_candidates, budget, privileged, recipe, pools, labels_per_round
                )
            ]
            * num_envs
        )
    k = settings.n_prompts if labels_per_round is None else labels_per_round
    return PrefAcquireVectorEnv(settings, num_envs, budget, privileged, recipe, labels_per_round=k)


def _simulated(
    num_envs: int,
    world: str | SyntheticSettings | World,
    n_prompts: int | None,
    n_candidates: int | None,
    pools: str | None,
) -> SyntheticSettings | None:
    """The settings of a simulated world of these sizes; None for another world."""
    whole_number("num_envs", num_envs)
    if isinstance(world, World):
        raise ValueError(
            "a World serves one environment, and make_vec makes several: pass its settings, "
            "world=prefenv.world_settings(key, name=value)"
        )
    settings = world_spec(world).settings if isinstance(world, str) else world
    if not isinstance(settings, SyntheticSettings):
        return None
    if pools is not None:
        raise ValueError(f"pools={pools!r} is a table of the world replay, and a simulated world has none")
    return dataclasses.replace(
        settings,
        n_prompts=settings.n_prompts if n_prompts is None else n_prompts,
        n_candidates=settings.n_candidates if n_candidates is None else n_candidates,
    )
