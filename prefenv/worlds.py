"""The worlds there are, by key. The modules behind a key are imported when the world is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prefenv.llm.settings import LLMSettings
from prefenv.protocols import World
from prefenv.synthetic.settings import SyntheticSettings
from prefenv.types import unknown_name


@dataclass(frozen=True)
class WorldSpec:
    """One entry of the list of worlds.

    Attributes:
        key: what ``gym.make(..., world=key)`` and ``--world key`` take.
        summary: one line.
        source: where the design or its parts come from.
        settings: the dataclass of what can be set.
        build: settings → world.
    """

    key: str
    summary: str
    source: str
    settings: type
    build: Callable[[Any], World]


def _synthetic(settings: SyntheticSettings) -> World:
    from prefenv.synthetic.world import make_synthetic_world

    return make_synthetic_world(settings)


def _llm(settings: LLMSettings) -> World:
    try:
        from prefenv.llm.world import make_llm_world
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the llm world needs the package '{error.name}': pip install 'prefenv[llm]'", name=error.name
        ) from error
    return make_llm_world(settings)


WORLDS: dict[str, WorldSpec] = {
    spec.key: spec
    for spec in (
        WorldSpec(
            "synthetic",
            "simulator: hidden reward, generators of different skill, log-linear policy, exact DPO and win rate",
            "DPO: Rafailov et al. 2023, arXiv 2305.18290",
            SyntheticSettings,
            _synthetic,
        ),
        WorldSpec(
            "llm",
            "a causal language model writes reviews; sentiment labels, DPO on a LoRA adapter, sampled win rate",
            "controlled sentiment: arXiv 2305.18290, arXiv 2402.08114; model: SmolLM2-135M-Instruct, arXiv 2502.02737",
            LLMSettings,
            _llm,
        ),
    )
}


def world_settings(key: str, **settings: Any) -> Any:
    """The settings dataclass of a world, checked.

    Raises:
        ValueError: no such world, no such setting (the closest is named), or a value that cannot be.
    """
    if not isinstance(key, str) or key not in WORLDS:
        raise unknown_name("world", key, WORLDS)
    known = [field.name for field in dataclasses.fields(WORLDS[key].settings)]
    for name in settings:
        if name not in known:
            raise unknown_name(f"setting of world '{key}'", name, known)
    return WORLDS[key].settings(**settings)


def make_world(key: str = "synthetic", **settings: Any) -> World:
    """The world of a key, with settings by name; :data:`WORLDS` is the list.

    Example:
        >>> make_world("synthetic", n_prompts=2, n_candidates=3).n_candidates
        3

    Raises:
        ValueError: as :func:`world_settings`.
        ModuleNotFoundError: the world needs an extra that is not installed; the message names it.
    """
    checked = world_settings(key, **settings)
    return WORLDS[key].build(checked)
