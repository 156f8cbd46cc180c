"""The environments: choose pairs, have them labelled, take a DPO step, see the gain in win rate."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from prefenv import spaces
from prefenv.protocols import State, TextRows, World
from prefenv.types import Belief, Evaluation, Pairs, Pool, Preferences, Seconds
from prefenv.worlds import make_world

Observation = dict[str, NDArray[Any]]
Info = dict[str, Any]
Result = TypeVar("Result")

DEFAULT_ROUNDS = 10
STATE_VERSION = 1
NO_SLOTS = np.empty(0, dtype=np.int64)
NO_LABELS = Preferences(NO_SLOTS, NO_SLOTS, NO_SLOTS)


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
    ``length``         (n, m)       tokens
    ``implicit_reward`` (n, m)      beta * log(policy / reference)
    ``entropy``        (n,)         predictive entropy of the policy at the prompt, nats
    ``generator``      (n, m)       which model wrote the candidate
    ``mask``           (n, m) int8  1 where there is a candidate
    ``budget``         (1,)         share of the episode's labels that is left, in [0, 1]
    ``oracle_score``   (n, m)       the oracle's reward; only with ``privileged=True``
    ================== ============ ==============================================================

    Reward: gain in win rate against the reference since the step before; an episode's rewards sum to its final win
    rate less one half. The episode terminates when the budget is spent; its last observation shows the last pool
    again, under the last posterior.

    ``info`` of reset and step: ``win_rate``, ``win_rate_low``, ``win_rate_high`` (95 %), ``win_rate_second`` (a judge
    who did not label), ``capability``, ``kl``, ``posterior_accuracy``; ``labels`` received and ``spent`` so far;
    ``judged`` responses that the oracle looked at so far; of this step ``illegal`` and ``repeated`` pairs,
    ``abstained`` comparisons, ``preferences`` ((labels a round, 3) int64: prompt row, chosen, rejected; the labels
    first, then -1) and, where labels came, ``label_agreement`` (share that agrees with the oracle's own reward); ``seconds`` of each
    part; in worlds of text ``rows``, the labels as dicts with prompt_id, prompt, chosen, rejected.

    Args:
        world: a key of :data:`prefenv.worlds.WORLDS`, or a :class:`~prefenv.protocols.World`.
        n_prompts: n; the world's own when None. Only with a key.
        n_candidates: m; likewise.
        budget: labels allowed in an episode; ten rounds when None.
        privileged: show ``oracle_score``.

    Raises:
        ValueError: an unknown world, a size that cannot be, sizes given beside a World object.

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
        world: str | World = "synthetic",
        n_prompts: int | None = None,
        n_candidates: int | None = None,
        budget: int | None = None,
        privileged: bool = False,
    ) -> None:
        self.world = _resolve_world(world, n_prompts, n_candidates)
        self.privileged = privileged
        n, m = self.world.n_prompts, self.world.n_candidates
        self.n_pairs = spaces.n_pairs(m)
        self.action_space = self._make_action_space()
        self.budget = DEFAULT_ROUNDS * self._labels_per_round() if budget is None else budget
        if self.budget < 1:
            raise ValueError(f"budget={self.budget} labels: at least 1 is needed")
        self.observation_space = spaces.observation_space(  # type: ignore[assignment]
            n, m, self.world.embedding_size, self.world.n_samples,
            selected=self._shows_selected, privileged=privileged,
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
        return spaces.pair_mask(self._pool.mask).reshape(-1)

    # The loop

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Info]:
        """Begin an episode: a new world from the seed, the policy back at the reference."""
        super().reset(seed=seed)
        self._spent = self._labels = self._judged = 0
        self.world.reset(self.np_random)
        clock = _Clock()
        self._evaluation = clock("evaluate", lambda: self.world.evaluator.evaluate(self.world.posterior))
        self._draw(clock)
        return self._observe(), self._info(self._round_info(NO_LABELS, NO_SLOTS), clock)

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, Info]:
        """Spend one round of labels."""
        if self._spent >= self.budget:
            raise RuntimeError("the budget is spent and the episode is over: call reset()")
        if not self.action_space.contains(action):
            raise ValueError(f"action {action!r} is not in {self.action_space}")
        return self._round(self._slots(action))

    def _round(self, asked: NDArray[np.int64]) -> tuple[Observation, float, bool, bool, Info]:
        """Label the asked slots, as far as the budget goes; learn, measure, draw."""
        asked = asked[: self.budget - self._spent]
        pairs = self._pairs(asked[self._kept(asked)])
        clock, world, pool = _Clock(), self.world, self._pool
        preferences = clock("label", lambda: world.oracle.compare(pool, pairs))
        clock("update", lambda: world.posterior.update(pool, preferences))
        clock("step", lambda: world.learner.step(pool, preferences))
        before = self._evaluation.win_rate.mean
        self._evaluation = clock("evaluate", lambda: world.evaluator.evaluate(world.posterior))
        self._spent += len(asked)
        self._labels += len(preferences)
        self._judged += 0 if self.privileged else 2 * len(pairs)
        round_info = self._round_info(preferences, asked)
        terminated = self._spent >= self.budget
        if terminated:
            self._belief = clock("observe", lambda: world.posterior.predict(pool.embedding))
        else:
            self._draw(clock)
        gain = self._evaluation.win_rate.mean - before
        return self._observe(), gain, terminated, False, self._info(round_info, clock)

    def _draw(self, clock: _Clock) -> None:
        self._pool = clock("draw", self.world.source.draw)
        self._belief = clock("observe", lambda: self.world.posterior.predict(self._pool.embedding))
        if self.privileged:  # then the oracle judges every candidate shown
            self._judged += int(self._pool.mask.sum())

    def _legal(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(slots,) bool: both candidates of the asked pair exist."""
        return np.asarray(spaces.pair_mask(self._pool.mask).reshape(-1)[slots])

    def _kept(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(slots,) bool: legal, and the first time that this pair is asked for."""
        first = np.zeros(len(slots), dtype=np.bool_)
        first[np.unique(slots, return_index=True)[1]] = True
        return first & self._legal(slots)

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
        return observation

    def _round_info(self, preferences: Preferences, asked: NDArray[np.int64]) -> Info:
        """What came of one round's questions, told of the pool that they were asked about."""
        legal = self._legal(asked)
        info: Info = {
            "illegal": int((~legal).sum()),
            "repeated": int(legal.sum() - self._kept(asked).sum()),
            "abstained": preferences.abstained,
            "preferences": _padded(preferences, self._labels_per_round()),
        }
        if len(preferences):
            info["label_agreement"] = self._agreement(preferences)
        if isinstance(self._pool, TextRows):
            info["rows"] = self._pool.rows(preferences)
        return info

    def _info(self, round_info: Info, clock: _Clock) -> Info:
        evaluation = self._evaluation
        return round_info | {
            "win_rate": evaluation.win_rate.mean,
            "win_rate_low": evaluation.win_rate.low,
            "win_rate_high": evaluation.win_rate.high,
            "win_rate_second": evaluation.second.mean,
            "capability": evaluation.capability,
            "kl": evaluation.kl,
            "posterior_accuracy": evaluation.posterior_accuracy,
            "labels": self._labels,
            "spent": self._spent,
            "judged": self._judged,
            "seconds": clock.seconds(),
        }

    def _agreement(self, preferences: Preferences) -> float:
        """Share of labels that agree with the oracle's own reward; equal rewards count one half."""
        reward = self.world.oracle.score(self._pool)
        rows = preferences.prompt
        gap = reward[rows, preferences.chosen] - reward[rows, preferences.rejected]
        return float((0.5 + 0.5 * np.sign(gap)).mean())

    # Saving and going on

    def state_dict(self) -> State:
        """All that the rest of the episode depends on; :meth:`load_state_dict` goes on exactly from here."""
        return {
            "version": STATE_VERSION,
            "world": self.world.state_dict(),
            "np_random": copy.deepcopy(self.np_random.bit_generator.state),
            "pool": copy.deepcopy(self._pool),
            "belief": copy.deepcopy(self._belief),
            "evaluation": self._evaluation,
            "counts": (self._spent, self._labels, self._judged),
        }

    def load_state_dict(self, state: State) -> None:
        """Go on from a state that an environment with the same arguments saved.

        Raises:
            ValueError: the state is of another version or of other sizes.
        """
        if state.get("version") != STATE_VERSION:
            raise ValueError(f"state of version {state.get('version')}, this package reads version {STATE_VERSION}")
        shape = (self.world.n_prompts, self.world.n_candidates, self.world.embedding_size)
        if state["pool"].embedding.shape != shape:
            raise ValueError(f"state of (n, m, d) = {state['pool'].embedding.shape}, this environment has {shape}")
        self.world.load_state_dict(state["world"])
        self.np_random.bit_generator.state = copy.deepcopy(state["np_random"])
        self._pool, self._belief = copy.deepcopy(state["pool"]), copy.deepcopy(state["belief"])
        self._evaluation = state["evaluation"]
        self._spent, self._labels, self._judged = state["counts"]


class PrefAcquireBudgetEnv(PrefAcquireEnv):
    """``PrefAcquireBudget-v0``: k labels a step, anywhere in the pool.

    As :class:`PrefAcquireEnv`, but the action is ``MultiDiscrete([n·P] * k)``, each entry prompt · P + pair. A pair
    asked for twice in a step is labelled once, costs twice, and is counted in ``info["repeated"]``.

    Args:
        labels_per_round: k; n when None.

    Raises:
        ValueError: k is not in 1 … n·P.
    """

    def __init__(
        self,
        world: str | World = "synthetic",
        n_prompts: int | None = None,
        n_candidates: int | None = None,
        budget: int | None = None,
        privileged: bool = False,
        labels_per_round: int | None = None,
    ) -> None:
        self.labels_per_round = labels_per_round
        super().__init__(world, n_prompts, n_candidates, budget, privileged)

    def _make_action_space(self) -> gym.Space[Any]:
        k, size = self._labels_per_round(), self.world.n_prompts * self.n_pairs
        if not 1 <= k <= size:
            raise ValueError(f"labels_per_round={k} must lie in 1 … {size}, the pairs of a pool")
        return spaces.budget_space(self.world.n_prompts, self.world.n_candidates, k)

    def _labels_per_round(self) -> int:
        return self.world.n_prompts if self.labels_per_round is None else self.labels_per_round

    def _slots(self, action: Any) -> NDArray[np.int64]:
        return np.asarray(action, dtype=np.int64)

    def action_masks(self) -> NDArray[np.bool_]:
        """(k · n·P,) bool: each of the k choices has the same mask."""
        return np.tile(super().action_masks(), self._labels_per_round())


class PrefAcquireSequentialEnv(PrefAcquireBudgetEnv):
    """``PrefAcquireSequential-v0``: one pair a step; every k-th (or the last that the budget pays) ends a round.

    As :class:`PrefAcquireBudgetEnv`, but the action is ``Discrete(n·P)``. Between rounds the pool stays, the reward is
    0, ``spent`` and ``budget`` count the pairs selected, and the observation's ``selected`` (n·P,) marks them;
    ``action_masks`` forbids them. Labels come, and policy and posterior change, when the round ends.
    """

    _shows_selected: ClassVar[bool] = True

    def _make_action_space(self) -> gym.Space[Any]:
        super()._make_action_space()  # checks k
        return spaces.sequential_space(self.world.n_prompts, self.world.n_candidates)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Info]:
        """Begin an episode."""
        self._selected: list[int] = []
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, Info]:
        """Select one pair."""
        if self._spent >= self.budget:
            raise RuntimeError("the budget is spent and the episode is over: call reset()")
        if not self.action_space.contains(action):
            raise ValueError(f"action {action!r} is not in {self.action_space}")
        self._selected.append(int(action))
        if len(self._selected) < min(self._labels_per_round(), self.budget - self._spent):
            info = self._info(self._round_info(NO_LABELS, NO_SLOTS), _Clock())
            info["spent"] += len(self._selected)
            return self._observe(), 0.0, False, False, info
        asked = np.array(self._selected, dtype=np.int64)
        self._selected = []
        return self._round(asked)

    def action_masks(self) -> NDArray[np.bool_]:
        """(n·P,) bool: pairs that exist and are not selected yet."""
        allowed = PrefAcquireEnv.action_masks(self)
        allowed[self._selected] = False
        return allowed if allowed.any() else PrefAcquireEnv.action_masks(self)

    def _observe(self) -> Observation:
        observation = super()._observe()
        selected = np.zeros(self.world.n_prompts * self.n_pairs, dtype=np.float32)
        selected[self._selected] = 1.0
        left = 1 - (self._spent + len(self._selected)) / self.budget
        return observation | {"selected": selected, "budget": np.array([left], dtype=np.float32)}

    def state_dict(self) -> State:
        """As :meth:`PrefAcquireEnv.state_dict`, with the pairs selected so far."""
        return super().state_dict() | {"selected": list(self._selected)}

    def load_state_dict(self, state: State) -> None:
        """Restore."""
        super().load_state_dict(state)
        self._selected = list(state["selected"])


class _Clock:
    """Runs calls and keeps their wall-clock seconds by name."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}

    def __call__(self, name: str, call: Callable[[], Result]) -> Result:
        start = time.perf_counter()
        result = call()
        self._spent[name] = self._spent.get(name, 0.0) + time.perf_counter() - start
        return result

    def seconds(self) -> Seconds:
        return Seconds(**self._spent)


def _resolve_world(world: str | World, n_prompts: int | None, n_candidates: int | None) -> World:
    sizes = {
        name: value for name, value in (("n_prompts", n_prompts), ("n_candidates", n_candidates)) if value is not None
    }
    if isinstance(world, str):
        return make_world(world, **sizes)
    if not isinstance(world, World):
        raise ValueError(f"world={world!r}: give a key such as 'synthetic', or a World (prefenv.make_world makes one)")
    for name, value in sizes.items():
        if value != getattr(world, name):
            raise ValueError(f"{name}={value}, but the World given has {getattr(world, name)}: set it where it is made")
    return world


def _padded(preferences: Preferences, rows: int) -> NDArray[np.int64]:
    table = np.full((rows, 3), -1, dtype=np.int64)
    table[: len(preferences)] = np.stack([preferences.prompt, preferences.chosen, preferences.rejected], axis=1)
    return table
