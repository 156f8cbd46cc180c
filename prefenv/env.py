"""The environments: choose pairs, have them labelled, take a DPO step, see the gain in win rate."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from prefenv import spaces
from prefenv.clock import Clock
from prefenv.noise import Words, bit_generator, seeds, uniforms
from prefenv.oracles.unjudged import label_by_generator, own_labels
from prefenv.protocols import State, TextRows, World
from prefenv.types import Belief, Evaluation, Pairs, Pool, Preferences, Recipe, whole_number
from prefenv.worlds import build_world, make_world

Observation = dict[str, NDArray[Any]]
Info = dict[str, Any]

DEFAULT_ROUNDS = 10
STATE_VERSION = 3
PLAIN = Recipe()
NO_LABELS = Preferences(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))


class PrefAcquireEnv(gym.Env[Observation, Any]):
    """``PrefAcquire-v0``: one pair for each of n prompts, every step.

    A step has the chosen pairs labelled by the oracle, updates the reward posterior, takes one DPO step, measures the
    policy on held-out prompts and draws the next pool. P = m (m - 1) / 2 pairs of m candidates, numbered as in
    :mod:`prefenv.spaces`.

    Action: ``MultiDiscrete([P] * n)``. A pair that the mask forbids is not labelled, costs its label, and is counted.

    Observation, all float32 but ``mask``:

    ================== ============ ==============================================================
    ``embedding``      (n, m, d)    of every candidate
    ``reward_mean``    (n, m)       posterior mean of the reward, log-odds
    ``reward_std``     (n, m)       its standard deviation
    ``reward_samples`` (S, n, m)    joint posterior draws
    ``logprob``        (n, m)       log-probability of the response under the policy, nats
    ``length``         (n, m)       tokens (in the world ``replay`` words)
    ``implicit_reward`` (n, m)      beta * log(policy / reference)
    ``entropy``        (n,)         predictive entropy of the policy at the prompt, nats
    ``generator``      (n, m)       which model wrote the candidate
    ``mask``           (n, m) int8  1 where there is a candidate
    ``budget``         (1,)         share of the episode's labels that is left, in [0, 1]
    ``oracle_score``   (n, m)       the oracle's reward; only with ``privileged=True``
    ``oracle_gain``    (n, P)       expected gain of each pair's label; likewise, in worlds that know it
    ================== ============ ==============================================================

    Reward: gain in win rate against the reference since the step before; an episode's rewards sum to its final win
    rate less one half. The episode terminates when the budget is spent; its last observation shows the last pool
    again, under the last posterior.

    ``info`` of reset and step: ``win_rate``, ``win_rate_low``, ``win_rate_high`` (95 %), ``kl``,
    ``posterior_accuracy``; where the world measures them ``win_rate_second`` (a judge who did not label),
    ``win_rate_length_controlled``, ``capability``; ``labels`` received and ``spent`` so far;
    ``judged`` responses that the oracle looked at so far; of this step ``illegal`` and ``repeated`` pairs,
    ``self_labelled`` ones that the posterior added by the recipe, ``abstained`` comparisons, ``preferences`` ((labels a
    round, 3) int64: prompt row, chosen, rejected; the labels first, then -1; none of the posterior's own) and, where
    labels came, ``label_agreement`` (share that agrees with the oracle's own reward);
    ``seconds`` of each part; in worlds of text ``rows``, the labels as dicts with prompt_id, prompt, chosen, rejected.

    Args:
        world: a key of :data:`prefenv.worlds.WORLDS`; or settings (``prefenv.world_settings(key, name=value)``); or a
            :class:`~prefenv.protocols.World` of this environment's own, as ``prefenv.make_world`` makes it.
        n_prompts: n; the world's own when None. Not with a World.
        n_candidates: m; likewise.
        budget: labels allowed in an episode; ten rounds when None.
        privileged: show ``oracle_score`` and ``oracle_gain``.
        recipe: how labels are made and learned from, where a method says more than which pairs to choose:
            ``agents.recipe(key)``.
        pools: the table of the world ``replay``.

    Raises:
        ValueError: an unknown world, a size that cannot be, sizes given beside a World object, a recipe that wants more
            labels of the posterior's own than there are prompts.

    Example:
        >>> import gymnasium as gym, prefenv
        >>> env = gym.make("PrefAcquire-v0", n_prompts=2, n_candidates=3)
        >>> observation, info = env.reset(seed=0)
        >>> observation["reward_mean"].shape, round(info["win_rate"], 6)
        ((2, 3), 0.5)
        >>> env.action_space
        MultiDiscrete([3 3])
    """

    metadata = {"render_modes": []}  # noqa: RUF012  # as gymnasium declares it
    _shows_selected: ClassVar[bool] = False
    _pool: Pool
    _belief: Belief
    _evaluation: Evaluation

    def __init__(
        self,
        world: str | World | Any = "synthetic",
        n_prompts: int | None = None,
        n_candidates: int | None = None,
        budget: int | None = None,
        privileged: bool = False,
        recipe: Recipe = PLAIN,
        pools: str | None = None,
    ) -> None:
        self.world = _resolve_world(world, n_prompts, n_candidates, pools)
        self.privileged, self.recipe = bool(privileged), recipe
        self._episode: object | None = None
        n, m = self.world.n_prompts, self.world.n_candidates
        self.n_pairs = spaces.n_pairs(m)
        self.action_space = self._make_action_space()
        self.budget = DEFAULT_ROUNDS * self._labels_per_round() if budget is None else whole_number("budget", budget)
        recipe.require_prompts(n, self._labels_per_round())
        self.observation_space = spaces.observation_space(  # type: ignore[assignment]
            n, m, self.world.embedding_size, self.world.n_samples,
            selected=self._shows_selected, privileged=self.privileged,
            gain=self.privileged and self.world.gain is not None,
        )  # fmt: skip

    # What the forms of the action differ in

    def _make_action_space(self) -> gym.Space[Any]:
        return spaces.per_prompt_space(self.world.n_prompts, self.world.n_candidates)

    def _labels_per_round(self) -> int:
        return self.world.n_prompts

    def _slots(self, action: Any) -> NDArray[np.int64]:
        """(slots,) the pairs that an action asks for, as prompt · P + pair, in the order of spending."""
        return np.arange(self.world.n_prompts) * self.n_pairs + np.asarray(action, dtype=np.int64)

    def action_masks(self) -> NDArray[np.bool_]:
        """Flat bool array of ``sum(nvec)`` (or n·P) entries: True where a pair may be chosen."""
        self._require_episode()
        return spaces.pair_mask(self._pool.mask).reshape(-1)

    # The loop

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Info]:
        """Begin an episode: a new world from the seed, the policy back at the reference."""
        super().reset(seed=seed)
        self._spent = self._labels = self._judged = self._rounds = 0
        self.world.reset(self.np_random)
        if self.recipe.self_labelled:  # after the world's own seeds, which so are the same for every recipe
            self._words = Words([bit_generator(seeds(self.np_random, 1)[0])])
        self._episode = self.world.episode
        clock = Clock()
        self._evaluation = clock("evaluate", lambda: self.world.evaluator.evaluate(self.world.posterior))
        self._draw(clock)
        return self._observe(), self._info(self._round_info(NO_LABELS), clock)

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, Info]:
        """Spend one round of labels."""
        self._require_open(action)
        return self._round(self._slots(action))

    def _require_episode(self) -> None:
        if self._episode is None:
            raise RuntimeError("no episode has begun: call reset() first")
        if self._episode is not self.world.episode:
            raise RuntimeError(
                "another environment has reset this World: give each its own, as prefenv.make_world() makes it"
            )

    def _require_open(self, action: Any) -> None:
        self._require_episode()
        if self._spent >= self.budget:
            raise RuntimeError("the budget is spent and the episode is over: call reset()")
        if not self.action_space.contains(action):
            raise ValueError(f"action {action!r} is not in {self.action_space}")

    def _round(self, asked: NDArray[np.int64]) -> tuple[Observation, float, bool, bool, Info]:
        """Label the asked slots, as far as the budget goes; learn, measure, draw."""
        asked = asked[: self.budget - self._spent]
        legal, first = self._legal(asked), _first_of_each(asked)
        pairs = self._pairs(asked[legal & first])
        clock, world, pool = Clock(), self.world, self._pool
        preferences = clock("label", lambda: self._label(pairs))
        own = self._own_labels(len(asked))
        clock("update", lambda: world.posterior.update(pool, preferences))
        clock("step", lambda: world.learner.step(pool, _both(preferences, own), self.recipe.exploration_bonus))
        before = self._evaluation.win_rate.mean
        self._evaluation = clock("evaluate", lambda: world.evaluator.evaluate(world.posterior))
        self._spent += len(asked)
        self._rounds += 1
        self._labels += len(preferences)
        self._judged += 0 if self.privileged or self.recipe.labels != "oracle" else 2 * len(pairs)
        round_info = self._round_info(preferences, int((~legal).sum()), int((legal & ~first).sum()), len(own))
        terminated = self._spent >= self.budget
        if terminated:
            self._belief = clock("observe", lambda: world.posterior.predict(pool.embedding))
        else:
            self._draw(clock)
        gain = self._evaluation.win_rate.mean - before
        return self._observe(), gain, terminated, False, self._info(round_info, clock)

    def _label(self, pairs: Pairs) -> Preferences:
        if self.recipe.labels == "generator":
            return label_by_generator(self._pool, pairs)
        return self.world.oracle.compare(self._pool, pairs)

    def _own_labels(self, asked: int) -> Preferences:
        """What the posterior, before it learns of this round, labels by itself."""
        count = self.recipe.self_labels(asked)
        if not self.recipe.self_labelled or self._rounds < self.recipe.burn_in:
            return NO_LABELS
        n, m = self._pool.mask.shape
        share = uniforms(self._words, 2 * n + n * m)
        columns = own_labels(self._belief.samples[None], self._pool.mask[None], share, count)
        prompt, chosen, rejected, valid = (column[0] for column in columns)
        return Preferences(prompt[valid], chosen[valid], rejected[valid])

    def _draw(self, clock: Clock) -> None:
        self._pool = clock("draw", self.world.source.draw)
        self._belief = clock("observe", lambda: self.world.posterior.predict(self._pool.embedding))
        if self.privileged:  # then the oracle judges every candidate shown
            self._judged += int(self._pool.mask.sum())

    def _legal(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(slots,) bool: both candidates of the asked pair exist."""
        return np.asarray(spaces.pair_mask(self._pool.mask).reshape(-1)[slots])

    def _pairs(self, slots: NDArray[np.int64]) -> Pairs:
        first, second = spaces.pair_table(self.world.n_candidates)
        pair = slots % self.n_pairs
        return Pairs(slots // self.n_pairs, first[pair], second[pair])

    # What is shown

    def _observe(self) -> Observation:
        pool, belief = self._pool, self._belief
        observation: Observation = {
            "embedding": pool.embedding.astype(np.float32),
            "reward_mean": belief.mean.copy(),
            "reward_std": belief.std.copy(),
            "reward_samples": belief.samples.copy(),
            "logprob": pool.logprob.astype(np.float32),
            "length": pool.length.astype(np.float32),
            "implicit_reward": pool.implicit_reward.astype(np.float32),
            "entropy": pool.entropy.astype(np.float32),
            "generator": pool.generator.astype(np.float32),
            "mask": pool.mask.astype(np.int8),
            "budget": np.array([1 - self._spent / self.budget], dtype=np.float32),
        }
        if self.privileged:
            observation["oracle_score"] = self.world.oracle.score(pool).astype(np.float32)
            if self.world.gain is not None:
                observation["oracle_gain"] = self.world.gain(pool).astype(np.float32)
        return observation

    def _round_info(
        self, preferences: Preferences, illegal: int = 0, repeated: int = 0, self_labelled: int = 0
    ) -> Info:
        """What came of one round's questions, told of the pool that they were asked about."""
        info: Info = {
            "illegal": illegal,
            "repeated": repeated,
            "self_labelled": self_labelled,
            "abstained": preferences.abstained,
            "preferences": _padded(preferences, self._labels_per_round()),
        }
        if len(preferences):
            info["label_agreement"] = self._agreement(preferences)
        if isinstance(self._pool, TextRows):
            info["rows"] = self._pool.rows(preferences)
        return info

    def _info(self, round_info: Info, clock: Clock) -> Info:
        evaluation = self._evaluation
        measured = {
            "win_rate_second": evaluation.second,
            "win_rate_length_controlled": evaluation.length_controlled,
            "capability": evaluation.capability,
        }
        return (
            round_info
            | {name: value for name, value in measured.items() if value is not None}
            | {
                "win_rate": evaluation.win_rate.mean,
                "win_rate_low": evaluation.win_rate.low,
                "win_rate_high": evaluation.win_rate.high,
                "kl": evaluation.kl,
                "posterior_accuracy": evaluation.posterior_accuracy,
                "labels": self._labels,
                "spent": self._spent,
                "judged": self._judged,
                "seconds": clock.seconds(),
            }
        )

    def _agreement(self, preferences: Preferences) -> float:
        """Share of labels that agree with the oracle's own reward; equal rewards count one half."""
        reward = self.world.oracle.score(self._pool)
        rows = preferences.prompt
        gap = reward[rows, preferences.chosen] - reward[rows, preferences.rejected]
        return float((0.5 + 0.5 * np.sign(gap)).mean(dtype=np.float64))

    # Saving and going on

    def _made_with(self) -> dict[str, Any]:
        """What must agree between the environment that saves a state and the one that loads it."""
        names = ("name", "n_prompts", "n_candidates", "embedding_size", "n_samples", "settings", "digest")
        form = {
            "form": type(self).__name__,
            "budget": self.budget,
            "privileged": self.privileged,
            "recipe": self.recipe,
        }
        return (
            form | {"labels_per_round": self._labels_per_round()} | {name: getattr(self.world, name) for name in names}
        )

    def state_dict(self) -> State:
        """All that the rest of the episode depends on; :meth:`load_state_dict` goes on exactly from here.

        Raises:
            RuntimeError: no episode has begun, or another environment has taken the world.
        """
        self._require_episode()
        return {
            "version": STATE_VERSION,
            "made_with": self._made_with(),
            "world": self.world.state_dict(),
            "np_random": copy.deepcopy(self.np_random.bit_generator.state),
            "pool": copy.deepcopy(self._pool),
            "belief": copy.deepcopy(self._belief),
            "evaluation": self._evaluation,
            "counts": (self._spent, self._labels, self._judged, self._rounds),
            "words": self._words.state_dict() if self.recipe.self_labelled else None,
        }

    def load_state_dict(self, state: State) -> None:
        """Go on from a state that an environment with the same arguments saved.

        Gymnasium's wrappers want ``reset`` called once before they step.

        Raises:
            ValueError: the state is of another version or of an environment made with other arguments; then nothing
                has changed here.
        """
        require_same_maker(state, self._made_with())
        self.world.load_state_dict(state["world"])
        self._episode = self.world.episode
        self.np_random.bit_generator.state = copy.deepcopy(state["np_random"])
        self._pool, self._belief = copy.deepcopy(state["pool"]), copy.deepcopy(state["belief"])
        self._evaluation = state["evaluation"]
        self._spent, self._labels, self._judged, self._rounds = state["counts"]
        if self.recipe.self_labelled:
            self._words = Words([np.random.PCG64()])
            self._words.load_state_dict(state["words"])


def require_same_maker(state: State, own: dict[str, Any]) -> None:
    """Check that a saved state is of this version and of an environment with the same arguments.

    Raises:
        ValueError: it is not; the message says in what they differ.
    """
    if state.get("version") != STATE_VERSION:
        raise ValueError(f"state of version {state.get('version')!r}, this package reads version {STATE_VERSION}")
    saved = state["made_with"]
    differing = [
        f"{name} {saved.get(name)!r} there, {own[name]!r} here" for name in own if saved.get(name) != own[name]
    ]
    if differing:
        raise ValueError(f"the state is of another environment: {'; '.join(differing)}")


def _resolve_world(world: Any, n_prompts: int | None, n_candidates: int | None, pools: str | None) -> World:
    given = (("n_prompts", n_prompts), ("n_candidates", n_candidates))
    sizes = {name: whole_number(name, value) for name, value in given if value is not None}
    table = {} if pools is None else {"pools": str(pools)}
    if isinstance(world, str):
        return make_world(world, **sizes, **table)
    if not isinstance(world, World):
        return build_world(world, **sizes, **table)
    if table:
        raise ValueError("pools goes with a key or settings: a World has its table already")
    for name, value in sizes.items():
        if value != getattr(world, name):
            raise ValueError(f"{name}={value}, but the World given has {getattr(world, name)}: set it where it is made")
    return world


def _first_of_each(slots: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(slots,) bool: the first time that this pair is asked for."""
    first = np.zeros(len(slots), dtype=np.bool_)
    first[np.unique(slots, return_index=True)[1]] = True
    return first


def _both(preferences: Preferences, own: Preferences) -> Preferences:
    prompt, chosen, rejected = (
        np.concatenate([getattr(preferences, name), getattr(own, name)]) for name in ("prompt", "chosen", "rejected")
    )
    return Preferences(prompt, chosen, rejected)


def _padded(preferences: Preferences, rows: int) -> NDArray[np.int64]:
    table = np.full((rows, 3), -1, dtype=np.int64)
    table[: len(preferences)] = np.stack([preferences.prompt, preferences.chosen, preferences.rejected], axis=1)
    return table
