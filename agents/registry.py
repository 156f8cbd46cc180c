"""Key → agent, in one place."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from gymnasium import spaces

from agents.heuristic import ScoreAgent
from agents.scores import Score, baseline, intervals, policy, thompson
from prefenv.types import unknown_name


@dataclass(frozen=True)
class AgentSpec:
    """One entry of the list of agents.

    Attributes:
        key: what ``agents.make`` and ``--agents`` take.
        family: what it wants of a pair.
        summary: one line.
        source: where the method comes from.
        judged: responses that the oracle has to look at for each prompt, as the method is published.
        method: the score itself; its keyword-only parameters are the settings. Or, for a learned agent, what makes
            the score from such settings.
        privileged: sees the oracle's scores.
        learned: ``method`` makes the score.
        aliases: other names that :func:`spec` and :func:`make` take.
    """

    key: str
    family: str
    summary: str
    source: str
    judged: str
    method: Callable[..., Any]
    privileged: bool = False
    learned: bool = False
    aliases: tuple[str, ...] = ()

    def settings(self) -> dict[str, Any]:
        """Name → default of each setting."""
        parameters = inspect.signature(self.method).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def _load_learned(*, weights: str | None = None) -> Score:
    """The score of a trained network.

    Raises:
        ValueError: no weights are named.
        ModuleNotFoundError: the package is installed without its extra ``rl``.
    """
    if weights is None:
        raise ValueError("ppo needs trained weights: agents.make('ppo', weights='FILE.safetensors'); "
                         "`prefenv train` makes them")  # fmt: skip
    try:
        from agents.learned.network import load_score
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"ppo needs '{error.name}': pip install 'prefenv[rl]'", name=error.name) from error
    return load_score(weights)


AUF = "ActiveUltraFeedback, arXiv 2603.09692"
APL = "APL, arXiv 2402.08114; Random Is Hard to Beat, arXiv 2604.02766"

AGENTS: dict[str, AgentSpec] = {
    spec.key: spec
    for spec in (
        AgentSpec("random", "baseline", "uniform over pairs", "baseline of both papers", "2", baseline.random),
        AgentSpec("dts", "two best", "best of one posterior draw against best of another", AUF, "2", thompson.dts),
        AgentSpec("drts", "large gap", "best of one posterior draw against worst of another", AUF, "2", thompson.drts),
        AgentSpec("deltaucb", "large gap", "largest optimistic gap of the rewards", AUF, "2", intervals.deltaucb),
        AgentSpec("infomax", "exploration", "widest interval of the preference chance", AUF, "2", intervals.infomax),
        AgentSpec(
            "maxminlcb", "two best", "best worst-case lower bound against the opponent that makes it so",
            f"MaxMinLCB, arXiv 2406.16745; {AUF}", "2", intervals.maxminlcb,
        ),
        AgentSpec(
            "margin", "large gap", "largest gap of the policy's implicit reward", APL, "2", policy.margin,
            aliases=("rmargin",),
        ),
        AgentSpec("apl", "large gap", "prompts of high entropy first, then the largest margin", APL, "2", policy.apl),
        AgentSpec(
            "deltaqwen", "large gap", "strongest generator against weakest", f"Delta, arXiv 2507.06187; {AUF}", "0",
            baseline.deltaqwen, aliases=("delta-generator",),
        ),
        AgentSpec(
            "ultrafeedback", "large gap", "oracle's best of four drawn candidates against another of them",
            f"UltraFeedback, arXiv 2310.01377; {AUF}", "4", baseline.ultrafeedback, privileged=True,
        ),
        AgentSpec("maxmin", "large gap", "oracle's best against its worst", AUF, "m", baseline.maxmin, privileged=True),
        AgentSpec(
            "oracle-greedy", "reference", "largest expected one-step gain in win rate, by the world's own truth",
            "reference for headroom", "m", baseline.oracle_greedy, privileged=True,
        ),
        AgentSpec(
            "ppo", "learned", "a pair scorer trained by PPO in the simulator",
            "ours; PPO: arXiv 1707.06347, Stable-Baselines3", "2", _load_learned, learned=True,
        ),
    )
}  # fmt: skip

_KEY_OF = {name: entry.key for entry in AGENTS.values() for name in (entry.key, *entry.aliases)}


def keys() -> list[str]:
    """All agents' keys, each once, without aliases."""
    return list(AGENTS)


def spec(key: str) -> AgentSpec:
    """What the list says of an agent, by its key or an alias.

    Raises:
        ValueError: there is none of this name; the closest is named.

    >>> spec("rmargin").key
    'margin'
    """
    if not isinstance(key, str) or key not in _KEY_OF:
        raise unknown_name("agent", key, _KEY_OF)
    return AGENTS[_KEY_OF[key]]


def make(key: str, action_space: spaces.Space | None = None, seed: int | None = None, **settings: Any) -> ScoreAgent:
    """The agent of a key.

    Args:
        key: one of :func:`keys`, or an alias.
        action_space: of one environment. ``PrefAcquireBudget-v0`` needs it, for nothing in an observation tells k pairs
            anywhere from one pair a prompt; None is one pair a prompt (or one pair, where the observation has
            ``selected``).
        seed: of the agent's own draws.
        **settings: the method's, by name, as its docstring has them.

    Raises:
        ValueError: no such agent or setting; the closest is named.

    Example:
        >>> make("drts", seed=0, draw="interval").score.keywords
        {'draw': 'interval'}
    """
    entry = spec(key)
    for name in settings:
        if name not in entry.settings():
            raise unknown_name(f"setting of agent '{key}'", name, entry.settings())
    score = entry.method(**settings) if entry.learned else partial(entry.method, **settings)
    return ScoreAgent(score, action_space, seed)
