"""Key → agent, in one place."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from gymnasium import spaces

from agents.heuristic import DesignAgent, ScoreAgent
from agents.learned.scorer import SHIPPED, load_score
from agents.scores import (
    Score,
    baseline,
    coverage,
    design,
    duels,
    herding,
    intervals,
    policy,
    samples,
    thompson,
)
from prefenv.types import Recipe, unknown_name


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
        needs_weights: of a learned agent, that its setting ``weights`` must be given.
        design: ``method`` is a :class:`~agents.scores.Design`: it chooses pairs together and remembers the episode.
        recipe: where the method also says how labels are made or learned from, what makes the environment's ``recipe``
            from keyword-only settings.
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
    needs_weights: bool = False
    design: bool = False
    recipe: Callable[..., Recipe] | None = None
    aliases: tuple[str, ...] = ()

    def settings(self) -> dict[str, Any]:
        """Name → default of each setting, of the choice and of the recipe."""
        return _keywords(self.method) | (_keywords(self.recipe) if self.recipe else {})


def _keywords(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def _load_learned(*, weights: str | None = None) -> Score:
    """The score of a trained network: of the weights that come with the package, or of those in a file."""
    return load_score(SHIPPED if weights is None else weights)


def _load_ppo(*, weights: str | None = None) -> Score:
    """The score of a network that the user has trained.

    Raises:
        ValueError: no weights are named.
    """
    if weights is None:
        raise ValueError("ppo needs trained weights: agents.make('ppo', weights='FILE.safetensors'); "
                         "`prefenv train` makes them, and 'learned' comes with its own")  # fmt: skip
    return load_score(weights)


def _sea_recipe(*, share: float = 0.3, burn_in: int = 5) -> Recipe:
    """SEA's own labels, with the share and the burn-in of its public code."""
    return Recipe(self_labelled=share, burn_in=burn_in)


def _xpo_recipe(*, alpha: float = 1e-5) -> Recipe:
    """XPO's bonus, with the weight of the public code of [Random Is Hard to Beat]."""
    return Recipe(exploration_bonus=alpha)


def _deltaqwen_recipe() -> Recipe:
    """The stronger generator's response is the chosen one."""
    return Recipe(labels="generator")


AUF = "ActiveUltraFeedback, arXiv 2603.09692"
APL = "APL, arXiv 2402.08114; Random Is Hard to Beat, arXiv 2604.02766"

RVA = "Random Is Hard to Beat, arXiv 2604.02766"
SEA = "SEA, arXiv 2411.01493"

AGENTS: dict[str, AgentSpec] = {
    spec.key: spec
    for spec in (
        AgentSpec("random", "baseline", "uniform over pairs", "baseline of both papers", "2", baseline.random),
        AgentSpec(
            "ultrafeedback", "large gap", "oracle's best of four drawn candidates against another of them",
            f"UltraFeedback, arXiv 2310.01377; {AUF}", "4", baseline.ultrafeedback, privileged=True,
        ),
        AgentSpec("maxmin", "large gap", "oracle's best against its worst", AUF, "m", baseline.maxmin, privileged=True),
        AgentSpec(
            "deltaqwen", "large gap", "strongest generator against weakest, labelled by just that",
            f"Delta, arXiv 2507.06187; {AUF}", "0", baseline.deltaqwen, recipe=_deltaqwen_recipe,
            aliases=("delta-generator",),
        ),
        AgentSpec("drts", "large gap", "best of one posterior draw against worst of another", AUF, "2", thompson.drts),
        AgentSpec("deltaucb", "large gap", "largest optimistic gap of the rewards", AUF, "2", intervals.deltaucb),
        AgentSpec(
            "deltaquantile", "large gap", "a pair near a quantile of the optimistic gaps", f"code of {AUF}", "2",
            intervals.deltaquantile,
        ),
        AgentSpec(
            "margin", "large gap", "largest gap of the policy's implicit reward", APL, "2", policy.margin,
            aliases=("rmargin",),
        ),
        AgentSpec(
            "dts", "dueling bandit", "best of one posterior draw against best of another", AUF, "2", thompson.dts
        ),
        AgentSpec(
            "maxminlcb", "dueling bandit", "best worst-case lower bound against the opponent that makes it so",
            f"MaxMinLCB, arXiv 2406.16745; {AUF}", "2", intervals.maxminlcb,
        ),
        AgentSpec(
            "infogain", "dueling bandit", "best of one posterior draw against the opponent with the widest interval",
            f"{AUF}; {SEA}", "2", duels.infogain,
        ),
        AgentSpec(
            "sea", "dueling bandit", "best of one posterior draw against the least known gap; labels of its own",
            SEA, "2", samples.sea, recipe=_sea_recipe,
        ),
        AgentSpec(
            "ids", "dueling bandit", "least squared regret for the information about the duel",
            f"arXiv 2105.11802; code of {AUF}", "2", duels.ids,
        ),
        AgentSpec(
            "rucb", "dueling bandit", "one that may be best against the likeliest to beat it",
            f"RUCB, arXiv 1312.3393; code of {AUF}", "2", duels.rucb,
        ),
        AgentSpec(
            "eubo", "dueling bandit", "largest expected reward of the better one", "EUBO, arXiv 2203.11382", "2",
            samples.eubo,
        ),
        AgentSpec("infomax", "exploration", "widest interval of the preference chance", AUF, "2", intervals.infomax),
        AgentSpec(
            "bald", "exploration", "most information between the label and the posterior draw",
            "BALD, arXiv 1112.5745", "2", samples.bald,
        ),
        AgentSpec(
            "variance", "exploration", "least known gap of the rewards", "optimal design", "2", samples.variance
        ),
        AgentSpec(
            "least-confidence", "exploration", "preference chance nearest to one half", RVA, "2",
            intervals.least_confidence,
        ),
        AgentSpec(
            "xpo", "exploration", "pairs at random; the learner's loss has a bonus for leaving the reference",
            f"XPO, arXiv 2405.21046; {RVA}", "2", baseline.random, recipe=_xpo_recipe,
        ),
        AgentSpec(
            "dopt", "exploration", "pairs that together tell most about a linear reward (greedy D-optimal design)",
            f"ADPO, arXiv 2503.01076; code of {RVA}", "2", design.dopt, design=True, aliases=("adpo",),
        ),
        AgentSpec("entropy", "prompts", "prompts of high entropy first", RVA, "2", policy.entropy, design=True),
        AgentSpec(
            "entropy-neg", "prompts", "prompts of low entropy first", RVA, "2", policy.entropy_neg, design=True
        ),
        AgentSpec(
            "apl", "prompts", "prompts of high entropy first, then the largest margin", APL, "2", policy.apl,
            design=True,
        ),
        AgentSpec(
            "apl-neg", "prompts", "prompts of low entropy first, then the largest margin", RVA, "2", policy.apl_neg,
            design=True,
        ),
        AgentSpec(
            "apl-both", "prompts", "prompts of highest and lowest entropy first, then the largest margin", RVA, "2",
            policy.apl_both, design=True,
        ),
        AgentSpec(
            "coreset", "prompts", "farthest from all that is labelled or picked",
            f"core-set, arXiv 1708.00489; {RVA}", "2", coverage.coreset, design=True,
        ),
        AgentSpec(
            "kmeans", "prompts", "nearest to each of k cluster centres", RVA, "2", coverage.kmeans, design=True
        ),
        AgentSpec(
            "div-reward", "prompts", "spread-out draws weighted by margin, then the largest margin", RVA, "2",
            coverage.div_reward, design=True,
        ),
        AgentSpec(
            "max-herding", "prompts", "largest gain in kernel coverage of the pool",
            f"MaxHerding, arXiv 2407.12212; {RVA}", "2", herding.max_herding, design=True,
        ),
        AgentSpec(
            "knn-herding", "prompts", "largest coverage by several neighbours together", RVA, "2",
            herding.knn_herding, design=True,
        ),
        AgentSpec(
            "u-herding", "prompts", "coverage weighted by entropy, then the largest margin",
            f"Uncertainty Herding, arXiv 2412.20644; {RVA}", "2", herding.u_herding, design=True,
        ),
        AgentSpec(
            "oracle-greedy", "reference", "largest expected one-step gain in win rate, by the world's own truth",
            "reference for headroom", "m", baseline.oracle_greedy, privileged=True,
        ),
        AgentSpec(
            "learned", "learned", "pair scorer trained in drawn worlds, by imitation and PPO",
            "ours; PPO: arXiv 1707.06347, Stable-Baselines3", "2", _load_learned, learned=True,
        ),
        AgentSpec(
            "ppo", "learned", "the same network with weights of your own training",
            "ours; PPO: arXiv 1707.06347, Stable-Baselines3", "2", _load_ppo, learned=True, needs_weights=True,
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


def make(
    key: str, action_space: spaces.Space | None = None, seed: int | None = None, **settings: Any
) -> ScoreAgent | DesignAgent:
    """The agent of a key.

    Args:
        key: one of :func:`keys`, or an alias.
        action_space: of one environment. ``PrefAcquireBudget-v0`` needs it, for nothing in an observation tells k pairs
            anywhere from one pair a prompt; None is one pair a prompt (or one pair, where the observation has
            ``selected``).
        seed: of the agent's own draws.
        **settings: the method's, by name, as its docstring has them. Those of its recipe are for the environment, see
            :func:`recipe`.

    Raises:
        ValueError: no such agent or setting; the closest is named.

    Example:
        >>> make("drts", seed=0, draw="interval").score.keywords
        {'draw': 'interval'}
    """
    entry = _known(key, settings)
    recipe(key, **settings)  # a wrong one is told here, too
    own = {name: value for name, value in settings.items() if name in _keywords(entry.method)}
    score = entry.method(**own) if entry.learned else partial(entry.method, **own)
    return (DesignAgent if entry.design else ScoreAgent)(score, action_space, seed)


def recipe(key: str, **settings: Any) -> Recipe:
    """What an environment has to be told for a method to be complete: ``gym.make(..., recipe=agents.recipe(key))``.

    Args:
        key: one of :func:`keys`, or an alias. Most methods only choose, and their recipe is the plain one.
        **settings: as in :func:`make`.

    Raises:
        ValueError: as :func:`make`; or a value that cannot be.

    >>> recipe("sea", share=0.2)
    Recipe(labels='oracle', self_labelled=0.2, burn_in=5, exploration_bonus=0.0)
    """
    entry = _known(key, settings)
    if entry.recipe is None:
        return Recipe()
    return entry.recipe(**{name: value for name, value in settings.items() if name in _keywords(entry.recipe)})


def _known(key: str, settings: dict[str, Any]) -> AgentSpec:
    """The entry of a key whose settings these are."""
    entry = spec(key)
    for name in settings:
        if name not in entry.settings():
            raise unknown_name(f"setting of agent '{key}'", name, entry.settings())
    return entry
