"""``PrefAcquire-v0`` over B simulated worlds at once: what ``gymnasium.make_vec`` makes."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from prefenv import spaces
from prefenv.env import DEFAULT_ROUNDS, STATE_VERSION, Info, Observation, PrefAcquireEnv, require_same_maker
from prefenv.noise import Words, bit_generator, seeds, uniforms
from prefenv.oracles.bradley_terry import label_sign
from prefenv.protocols import PART_NAMES, State, World
from prefenv.synthetic.policy import Labels, Policies
from prefenv.synthetic.settings import SyntheticSettings
from prefenv.synthetic.simulator import (
    Evaluations,
    Evaluators,
    Pools,
    Sources,
    expected_gain,
    make_beliefs,
    start_beliefs,
)
from prefenv.types import IntArray, Seconds, whole_number
from prefenv.worlds import world_spec

Belief = tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.floating]]


def make_vector_env(
    num_envs: int = 1,
    world: str | SyntheticSettings | World = "synthetic",
    n_prompts: int | None = None,
    n_candidates: int | None = None,
    budget: int | None = None,
    privileged: bool = False,
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

    Raises:
        ValueError: as PrefAcquireEnv; a World object; num_envs below 1.
    """
    whole_number("num_envs", num_envs)
    if isinstance(world, World):
        raise ValueError(
            "a World serves one environment, and make_vec makes several: pass its settings, "
            "world=prefenv.world_settings(key, name=value)"
        )
    settings = world_spec(world).settings if isinstance(world, str) else world
    if not isinstance(settings, SyntheticSettings):
        return SyncVectorEnv([lambda: PrefAcquireEnv(world, n_prompts, n_candidates, budget, privileged)] * num_envs)
    settings = dataclasses.replace(
        settings,
        n_prompts=settings.n_prompts if n_prompts is None else n_prompts,
        n_candidates=settings.n_candidates if n_candidates is None else n_candidates,
    )
    return PrefAcquireVectorEnv(settings, num_envs, budget, privileged)


class PrefAcquireVectorEnv(VectorEnv[Observation, NDArray[np.int64], NDArray[Any]]):
    """B simulated worlds in step, on arrays with a leading axis B.

    World b, seeded with s, walks exactly like ``gym.make("PrefAcquire-v0")`` seeded with s; observations, actions and
    ``info`` are those of :class:`prefenv.env.PrefAcquireEnv` with a leading axis B (``info["seconds"]`` is the time of
    all B worlds together). All episodes have the same length, so they end together; the step after that resets them,
    whatever the action, with reward 0 (``AutoresetMode.NEXT_STEP``).

    Args:
        settings: of the simulator.
        num_envs: B.
        budget: labels allowed in an episode; ten rounds when None.
        privileged: show ``oracle_score`` and ``oracle_gain``.

    Example:
        >>> import gymnasium as gym, prefenv
        >>> envs = gym.make_vec("PrefAcquire-v0", num_envs=3, n_prompts=2)
        >>> observation, info = envs.reset(seed=[5, 6, 7])
        >>> observation["reward_mean"].shape, info["win_rate"].shape
        ((3, 2, 4), (3,))
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012  # as gymnasium declares it
    _pools: Pools
    _belief: Belief
    _evaluations: Evaluations

    def __init__(
        self, settings: SyntheticSettings, num_envs: int, budget: int | None = None, privileged: bool = False
    ) -> None:
        self.settings, self.privileged = settings, bool(privileged)
        self.num_envs = whole_number("num_envs", num_envs)
        n, m = settings.n_prompts, settings.n_candidates
        self.budget = DEFAULT_ROUNDS * n if budget is None else whole_number("budget", budget)
        self.single_action_space = spaces.per_prompt_space(n, m)
        self.single_observation_space = spaces.observation_space(
            n, m, settings.embedding_size, settings.n_samples, privileged=self.privileged, gain=self.privileged
        )
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._policies = Policies(settings, num_envs)
        self._rounds = -(-self.budget // n)
        self._sources = Sources(settings, self._policies, ahead=self._rounds)
        self._beliefs = make_beliefs(settings, num_envs, ahead=self._rounds + 1)
        self._evaluators = Evaluators(settings, self._policies, self._sources)
        self._rngs: list[np.random.Generator] | None = None
        self._seeds: list[int | None] = [None] * num_envs
        self._over = True
        self._mask = np.ones((num_envs, n, m), dtype=np.int8)

    # The loop

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, Info]:
        """Begin an episode in every world.

        Args:
            seed: world b gets ``seed + b``, or ``seed[b]``, or goes on with its generator where that is None.
            options: not used.

        Raises:
            ValueError: another number of seeds than worlds; a ``reset_mask``, for worlds in step are reset together.
        """
        if options and "reset_mask" in options:
            raise ValueError(
                "reset_mask: these worlds walk in step and are reset together; use vectorization_mode='sync'"
            )
        if seed is None:
            given: list[int | None] = [None] * self.num_envs
        elif isinstance(seed, (int, np.integer)):
            given = [int(seed) + b for b in range(self.num_envs)]
        else:
            given = [value if value is None else int(value) for value in seed]
        self._seed(given)
        return self._begin()

    def _seed(self, seeds: list[int | None]) -> None:
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds for {self.num_envs} environments")
        before = [(None, None)] * self.num_envs if self._rngs is None else zip(self._rngs, self._seeds, strict=True)
        made = [  # all of them before any is used: a wrong seed changes nothing
            (rng, known) if value is None and rng is not None else seeding.np_random(value)
            for value, (rng, known) in zip(seeds, before, strict=True)
        ]
        self._rngs, self._seeds = [rng for rng, _ in made], [known for _, known in made]

    def _begin(self) -> tuple[Observation, Info]:
        assert self._rngs is not None
        clock = _Stopwatch()
        self._spent, self._over = 0, False
        self._labels = np.zeros(self.num_envs, dtype=np.int64)
        self._judged = 0
        rows = np.array([seeds(rng, len(PART_NAMES)) for rng in self._rngs]).swapaxes(0, 1)
        source, oracle, posterior, evaluator = (
            [bit_generator(row) for row in rows[PART_NAMES.index(name)]]
            for name in ("source", "oracle", "posterior", "evaluator")  # the policy draws nothing
        )
        self._oracle = Words(oracle, self._rounds)
        self._sources.reset(source)
        start_beliefs(self.settings, self._sources.hidden, posterior, self._beliefs)
        self._policies.reset()
        self._evaluators.reset(evaluator)
        self._evaluations = self._evaluators.evaluate(self._beliefs.mean)
        clock.lap("evaluate")
        self._draw(clock)
        nothing = np.full((self.num_envs, self.settings.n_prompts, 3), -1, dtype=np.int64)
        return self._observe(), self._info(
            {"preferences": nothing, "abstained": np.zeros(self.num_envs, dtype=np.int64)}, clock
        )

    def _draw(self, clock: _Stopwatch) -> None:
        self._pools = self._sources.draw()
        clock.lap("draw")
        self._belief = self._beliefs.predict(self._pools.embedding)
        clock.lap("observe")
        if self.privileged:  # then the oracle judges every candidate shown
            self._judged += self.settings.n_prompts * self.settings.n_candidates

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[Observation, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Info]:
        """Spend one round of labels in every world, or begin new episodes where the last step ended them.

        Args:
            actions: (B, n) integers, the pair of every prompt.

        Raises:
            RuntimeError: before the first reset.
            ValueError: not actions of the action space.
        """
        if self._rngs is None:
            raise RuntimeError("no episode has begun: call reset() first")
        flags = np.zeros((2, self.num_envs), dtype=np.bool_)
        if self._over:
            observation, info = self._begin()
            return observation, np.zeros(self.num_envs), flags[0], flags[1], info
        clock = _Stopwatch()
        asked = min(self.settings.n_prompts, self.budget - self._spent)
        labels, round_info = self._label(self._checked(actions)[:, :asked])
        clock.lap("label")
        embedding = self._pools.embedding
        chosen = labels.take(embedding, labels.chosen)
        self._beliefs.absorb(chosen, labels.take(embedding, labels.rejected))
        clock.lap("update")
        self._policies.step(self._pools.features, labels, self._pools.responses)
        clock.lap("step")
        before = self._evaluations.win_rate
        self._evaluations = self._evaluators.evaluate(self._beliefs.mean)
        clock.lap("evaluate")
        self._spent += asked
        self._judged += 0 if self.privileged else 2 * asked
        self._over = self._spent >= self.budget
        if self._over:
            flags[0] = True
            self._belief = self._beliefs.predict(embedding)
            clock.lap("observe")
        else:
            self._draw(clock)
        gain = self._evaluations.win_rate - before
        return self._observe(), gain, flags[0], flags[1], self._info(round_info, clock)

    def _checked(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        given = np.asarray(actions)
        shape, n_pairs = (self.num_envs, self.settings.n_prompts), spaces.n_pairs(self.settings.n_candidates)
        if given.shape != shape or given.dtype.kind not in "iu" or given.min() < 0 or given.max() >= n_pairs:
            raise ValueError(f"actions must be {shape} integers in 0 … {n_pairs - 1}, got {actions!r}")
        return given.astype(np.int64, copy=False)

    def _label(self, pair: IntArray) -> tuple[Labels, Info]:
        """The oracle's answers to (B, k) pairs of the first k prompts, and what ``info`` says of them."""
        settings, (b, k) = self.settings, pair.shape
        world, prompt = np.arange(b)[:, None], np.tile(np.arange(k), (b, 1))
        first, second = (side[pair] for side in spaces.pair_table(settings.n_candidates))
        reward = self._pools.reward
        gap = reward[world, prompt, first].astype(np.float64) - reward[world, prompt, second]
        sign = label_sign(
            gap, uniforms(self._oracle, k), settings.oracle_temperature, settings.oracle_tie, settings.oracle_flip
        )
        told, wins = sign != 0, sign > 0
        counts = told.sum(axis=1)
        self._labels = self._labels + counts
        agreement = (told * (0.5 + 0.5 * sign * np.sign(gap))).sum(axis=1) / np.maximum(counts, 1)
        columns = [prompt, np.where(wins, first, second), np.where(wins | ~told, second, first)]
        if not told.all():  # the labels first, in their order
            order = np.argsort(~told, axis=1, kind="stable")
            columns, told = [column[world, order] for column in columns], told[world, order]
        preferences = np.full((b, settings.n_prompts, 3), -1, dtype=np.int64)
        preferences[:, :k] = np.where(told[..., None], np.stack(columns, axis=-1), -1)
        info: Info = {"preferences": preferences, "abstained": k - counts}
        if counts.any():
            info |= {"label_agreement": agreement, "_label_agreement": counts > 0}
        return Labels(columns[0], columns[1], columns[2], told), info

    def _observe(self) -> Observation:
        pools, (mean, std, samples) = self._pools, self._belief
        left = np.float32(1 - self._spent / self.budget)
        observation: Observation = {
            "embedding": pools.embedding.copy(),
            "reward_mean": mean.copy(),
            "reward_std": std.copy(),
            "reward_samples": samples,
            "logprob": pools.logprob.copy(),
            "length": pools.length.copy(),
            "implicit_reward": pools.implicit_reward.copy(),
            "entropy": pools.entropy.copy(),
            "generator": pools.generator.astype(np.float32),
            "mask": self._mask.copy(),
            "budget": np.full((self.num_envs, 1), left, dtype=np.float32),
        }
        if self.privileged:
            gradient = self._evaluators.win_rate_gradient()
            gain = expected_gain(self.settings, pools.features, pools.reward, self._policies.theta, gradient)
            observation |= {"oracle_score": pools.reward.copy(), "oracle_gain": gain.astype(np.float32)}
        return observation

    def _info(self, round_info: Info, clock: _Stopwatch) -> Info:
        b, found = self.num_envs, self._evaluations
        seconds = np.empty(b, dtype=object)
        seconds[:] = clock.seconds()
        info = round_info | {
            "illegal": np.zeros(b, dtype=np.int64),
            "repeated": np.zeros(b, dtype=np.int64),
            "win_rate": found.win_rate.copy(),
            "win_rate_low": found.low.copy(),
            "win_rate_high": found.high.copy(),
            "win_rate_second": found.second.copy(),
            "capability": found.capability.copy(),
            "kl": found.kl.copy(),
            "posterior_accuracy": found.posterior_accuracy.copy(),
            "labels": self._labels.copy(),
            "spent": np.full(b, self._spent),
            "judged": np.full(b, self._judged),
            "seconds": seconds,
        }
        return {f"_{name}": np.ones(b, dtype=np.bool_) for name in info if not name.startswith("_")} | info

    def action_masks(self) -> NDArray[np.bool_]:
        """(B, n · P) bool, all True: the simulator's pools have no missing candidates."""
        return np.ones(
            (self.num_envs, self.settings.n_prompts * spaces.n_pairs(self.settings.n_candidates)), dtype=np.bool_
        )

    @property
    def np_random_seed(self) -> tuple[int | None, ...]:  # type: ignore[override]
        """What each world was last seeded with; None before."""
        return tuple(self._seeds)

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override, misc]
        """The generator of each world."""
        return tuple(self._rngs or ())

    # Saving and going on

    def _made_with(self) -> dict[str, Any]:
        names = ("settings", "num_envs", "budget", "privileged")
        return {"form": type(self).__name__} | {name: getattr(self, name) for name in names}

    def state_dict(self) -> State:
        """All that the rest of the episodes depends on; :meth:`load_state_dict` goes on exactly from here.

        Raises:
            RuntimeError: no episode has begun.
        """
        if self._rngs is None:
            raise RuntimeError("no episode has begun: call reset() first")
        kept = (self._pools, self._belief, self._evaluations, self._labels)
        return {
            "version": STATE_VERSION,
            "made_with": self._made_with(),
            "parts": [part.state_dict() for part in self._parts()],
            "generators": [copy.deepcopy(rng.bit_generator.state) for rng in self._rngs],
            "oracle": self._oracle.state_dict(),
            "kept": copy.deepcopy(kept),
            "counts": (self._spent, self._judged, self._over),
            "seeds": list(self._seeds),
        }

    def _parts(self) -> tuple[_Saved, ...]:
        return self._sources, self._beliefs, self._policies, self._evaluators

    def load_state_dict(self, state: State) -> None:
        """Go on from a state that a vector environment with the same arguments saved.

        Raises:
            ValueError: the state is of another version or of an environment made with other arguments.
        """
        require_same_maker(state, self._made_with())
        if self._rngs is None:
            self.reset()
        for part, saved in zip(self._parts(), state["parts"], strict=True):
            part.load_state_dict(saved)
        assert self._rngs is not None
        for rng, saved in zip(self._rngs, state["generators"], strict=True):
            rng.bit_generator.state = copy.deepcopy(saved)
        self._oracle.load_state_dict(state["oracle"])
        self._pools, self._belief, self._evaluations, self._labels = copy.deepcopy(state["kept"])
        self._spent, self._judged, self._over = state["counts"]
        self._seeds = list(state["seeds"])


class _Saved(Protocol):
    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


class _Stopwatch:
    """Wall-clock seconds between laps, by name."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self._spent[name] = self._spent.get(name, 0.0) + now - self._last
        self._last = now

    def seconds(self) -> Seconds:
        return Seconds(**self._spent)
