"""The worlds there are, by key. The modules behind a key are imported when the world is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prefenv.llm.settings import LLMSettings
from prefenv.protocols import World
from prefenv.replay.settings import ReplaySettings
from prefenv.synthetic.settings import PRESETS, SyntheticSettings
from prefenv.types import unknown_name


@dataclass(frozen=True)
class WorldSpec:
    """One entry of the list of worlds.

    Attributes:
        key: what ``gym.make(..., world=key)`` and ``--world key`` take.
        summary: one line.
        source: where the design or its parts come from.
        settings: the settings as they are when nothing is said, of the dataclass of what can be set.
        build: settings, name → world.
        aliases: other names for the key.
    """

    key: str
    summary: str
    source: str
    settings: Any
    build: Callable[[Any, str], World]
    aliases: tuple[str, ...] = ()


def _synthetic(settings: SyntheticSettings, name: str) -> World:
    from prefenv.synthetic.world import make_synthetic_world

    return make_synthetic_world(settings, name)


def _replay(settings: ReplaySettings, name: str) -> World:
    try:
        from prefenv.replay.world import make_replay_world
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the replay world needs the package '{error.name}': pip install 'prefenv[replay]'", name=error.name
        ) from error
    return make_replay_world(settings, name)


def _llm(settings: LLMSettings, name: str) -> World:
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
            PRESETS["synthetic"],
            _synthetic,
            aliases=("default",),
        ),
        WorldSpec(
            "active-ultrafeedback",
            "simulator: 30 generators of different skill, one pair a prompt, a posterior that starts warm",
            "the setting of ActiveUltraFeedback, arXiv 2603.09692",
            PRESETS["active-ultrafeedback"],
            _synthetic,
        ),
        WorldSpec(
            "on-policy",
            "simulator: candidates of the current policy, strong reference, capability opposed to the reward",
            "the setting of Random Is Hard to Beat, arXiv 2604.02766",
            PRESETS["on-policy"],
            _synthetic,
        ),
        WorldSpec(
            "replay",
            "a table of real prompts with annotated candidates (pools=PATH); its scores label, a log-linear policy",
            "replayed judges: ActiveUltraFeedback, arXiv 2603.09692; AlpacaEval, arXiv 2404.04475",
            ReplaySettings(),
            _replay,
        ),
        WorldSpec(
            "llm",
            "a causal language model writes reviews; sentiment labels, DPO on a LoRA adapter, sampled win rate",
            "controlled sentiment: arXiv 2305.18290, arXiv 2402.08114; model: SmolLM2-135M-Instruct, arXiv 2502.02737",
            LLMSettings(),
            _llm,
        ),
    )
}


def world_spec(key: str) -> WorldSpec:
    """What the list says of a world, by key or alias.

    Raises:
        ValueError: there is none; the closest is named.
    """
    for spec in WORLDS.values():
        if key == spec.key or key in spec.aliases:
            return spec
    raise unknown_name("world", key, WORLDS)


def world_settings(key: str, **settings: Any) -> Any:
    """The settings dataclass of a world with some of them changed, checked.

    Raises:
        ValueError: no such world, no such setting (the closest is named), or a value that cannot be.
    """
    return _changed(world_spec(key).settings, f"world '{key}'", settings)


def _changed(base: Any, of: str, settings: dict[str, Any]) -> Any:
    known = [field.name for field in dataclasses.fields(base)]
    for name in settings:
        if name not in known:
            raise unknown_name(f"setting of {of}", name, known)
    return dataclasses.replace(base, **settings)


def make_world(key: str = "synthetic", **settings: Any) -> World:
    """The world of a key, with settings by name; :data:`WORLDS` is the list.

    Example:
        >>> make_world("synthetic", n_prompts=2, n_candidates=3).n_candidates
        3

    Raises:
        ValueError: as :func:`world_settings`.
        ModuleNotFoundError: the world needs an extra that is not installed; the message names it.
    """
    spec = world_spec(key)
    return spec.build(world_settings(key, **settings), spec.key)


def build_world(base: Any, **settings: Any) -> World:
    """The world of a settings dataclass, such as ``SyntheticSettings``, with some of them changed.

    Raises:
        ValueError: it is none, or as :func:`world_settings`.
    """
    for spec in WORLDS.values():
        if type(base) is type(spec.settings):
            return spec.build(_changed(base, f"world '{spec.key}'", settings), spec.key)
    raise ValueError(
        f"world={base!r}: give a key such as 'synthetic', settings such as SyntheticSettings(), or a World "
        "(prefenv.make_world makes one)"
    )
