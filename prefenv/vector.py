"""``PrefAcquire-v0`` and ``PrefAcquireBudget-v0`` over B simulated worlds at once, as ``gymnasium.make_vec`` makes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces as gym_spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from prefenv import spaces
from prefenv.clock import Stopwatch
from prefenv.env import (
    DEFAULT_ROUNDS,
    PLAIN,
    STATE_VERSION,
    Info,
    Observation,
    require_same_maker,
)
from prefenv.noise import bit_generator, seeds
from prefenv.oracles.bradley_terry import label_sign
from prefenv.protocols import PART_NAMES, State
from prefenv.synthetic.labellers import Labellers
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
from prefenv.types import IntArray, Recipe, whole_number

Belief = tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.floating]]


class PrefAcquireVectorEnv(VectorEnv[Observation, NDArray[np.int64], NDArray[Any]]):
    """B simulated worlds in step, on arrays with a leading axis B.

    World b, seeded with s, walks exactly like ``gym.make("PrefAcquire-v0")`` seeded with s (or, given
    ``labels_per_round``, like ``PrefAcquireBudget-v0``); observations, actions and ``info`` are those of
    :class:`prefenv.env.PrefAcquireEnv` with a leading axis B (``info["seconds"]`` is the time of
    all B worlds together). All episodes have the same length, so they end together; the step after that resets them,
    whatever the action, with reward 0 (``AutoresetMode.NEXT_STEP``).

    Args:
        settings: of the simulator.
        num_envs: B.
        budget: labels allowed in an episode; ten rounds when None.
        privileged: show ``oracle_score`` and ``oracle_gain``.
        recipe: as in PrefAcquireEnv.
        labels_per_round: k pairs anywhere in the pool, as in ``PrefAcquireBudget-v0``; None is one pair of each prompt.

    Raises:
        ValueError: k is not in 1 … n·P; as PrefAcquireEnv.

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
        self,
        settings: SyntheticSettings,
        num_envs: int,
        budget: int | None = None,
        privileged: bool = False,
        recipe: Recipe = PLAIN,
        labels_per_round: int | None = None,
    ) -> None:
        self.settings, self.privileged, self.recipe = settings, bool(privileged), recipe
        self.num_envs = whole_number("num_envs", num_envs)
        self.labels_per_round = labels_per_round
        self.single_action_space = choices = self._choices(labels_per_round)
        n, k = settings.n_prompts, len(choices.nvec)
        self._slots_per_round, self._n_choices = k, int(choices.nvec[0])
        self.budget = DEFAULT_ROUNDS * k if budget is None else whole_number("budget", budget)
        recipe.require_prompts(n, k)
        self.single_observation_space = spaces.observation_space(
            n, settings.n_candidates, settings.embedding_size, settings.n_samples,
            privileged=self.privileged, gain=self.privileged,
        )  # fmt: skip
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._policies = Policies(settings, num_envs, settings.embedding_size + 1)
        rounds = -(-self.budget // k)
        self._labellers = Labellers(settings, recipe, labels_per_round is not None, ahead=rounds)
        self._sources = Sources(settings, self._policies, ahead=rounds)
        self._beliefs = make_beliefs(settings, num_envs, ahead=rounds + 1)
        self._evaluators = Evaluators(settings, self._policies, self._sources)
        self._rngs: list[np.random.Generator] | None = None
        self._seeds: list[int | None] = [None] * num_envs
        self._over = True
        self._mask = np.ones((num_envs, n, settings.n_candidates), dtype=np.int8)

    def _choices(self, labels_per_round: int | None) -> gym_spaces.MultiDiscrete:
        """The action space of one world."""
        n, m = self.settings.n_prompts, self.settings.n_candidates
        if labels_per_round is None:
            return spaces.per_prompt_space(n, m)
        k, most = whole_number("labels_per_round", labels_per_round), n * spaces.n_pairs(m)
        if k > most:
            raise ValueError(f"labels_per_round={k} must lie in 1 … {most}, the pairs of a pool")
        return spaces.budget_space(n, m, k)

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
        clock = Stopwatch()
        self._spent, self._over = 0, False
        self._labels, self._judged = np.zeros((2, self.num_envs), dtype=np.int64)
        rows = np.array([seeds(rng, len(PART_NAMES)) for rng in self._rngs]).swapaxes(0, 1)
        source, oracle, posterior, evaluator = (
            [bit_generator(row) for row in rows[PART_NAMES.index(name)]]
            for name in ("source", "oracle", "posterior", "evaluator")  # the policy draws nothing
        )
        own = [bit_generator(seeds(rng, 1)[0]) for rng in self._rngs] if self.recipe.self_labelled else []
        self._labellers.reset(oracle, own)
        self._sources.reset(source)
        start_beliefs(self.settings, self._sources.hidden, posterior, self._beliefs)
        self._policies.reset()
        self._evaluators.reset(evaluator)
        self._evaluations = self._evaluators.evaluate(self._beliefs.mean)
        clock.lap("evaluate")
        self._draw(clock)
        none = {name: np.zeros(self.num_envs, dtype=np.int64) for name in ("abstained", "repeated", "self_labelled")}
        nothing = self._padded(np.empty((self.num_envs, 0, 3), dtype=np.int64))
        return self._observe(), self._info(none | {"preferences": nothing}, clock)

    def _draw(self, clock: Stopwatch) -> None:
        self._pools = self._sources.draw()
        clock.lap("draw")
        self._belief = self._beliefs.predict(self._pools.embedding)
        clock.lap("observe")
        if self.privileged:  # then the oracle judges every candidate shown
            self._judged = self._judged + self.settings.n_prompts * self.settings.n_candidates

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
        clock = Stopwatch()
        asked = min(self._slots_per_round, self.budget - self._spent)
        labels, round_info = self._labellers.label(self._pools, self._checked(actions)[:, :asked])
        lesson, round_info["self_labelled"] = self._labellers.with_own(labels, self._belief[2], asked)
        clock.lap("label")
        embedding = self._pools.embedding
        chosen = labels.take(embedding, labels.chosen)
        self._beliefs.absorb(chosen, labels.take(embedding, labels.rejected))
        clock.lap("update")
        self._policies.step(self._pools.features, lesson, self._pools.responses, self.recipe.exploration_bonus)
        clock.lap("step")
        before = self._evaluations.win_rate
        self._evaluations = self._evaluators.evaluate(self._beliefs.mean)
        clock.lap("evaluate")
        self._spent += asked
        self._labels = self._labels + labels.valid.sum(axis=1)
        round_info["preferences"] = self._padded(round_info["preferences"])
        if not self.privileged and self.recipe.labels == "oracle":
            self._judged = self._judged + 2 * (asked - round_info["repeated"])
        self._over = self._spent >= self.budget
        if self._over:
            flags[0] = True
            self._belief = self._beliefs.predict(embedding)
            clock.lap("observe")
        else:
            self._draw(clock)
        gain = self._evaluations.win_rate - before
        return self._observe(), gain, flags[0], flags[1], self._info(round_info, clock)

    def mean_gain(self, actions: IntArray, rng: np.random.Generator, labellings: int) -> NDArray[np.float64]:
        """(B,) gain in win rate that a pair of each prompt would bring, averaged over labels the oracle might give.

        Nothing changes. It knows the truth: a reward to train by, of less noise, with the gain's own expectation.

        Args:
            actions: (B, n) pairs.
            rng: draws the labels.
            labellings: how many times; even, for half of them are drawn and the others are their mirror images.

        Raises:
            ValueError: an odd number of labellings, or fewer than 2.
        """
        settings, pools, theta = self.settings, self._pools, self._policies.theta
        world, prompt = np.arange(self.num_envs)[:, None], np.tile(np.arange(settings.n_prompts), (self.num_envs, 1))
        first, second = (side[actions] for side in spaces.pair_table(settings.n_candidates))
        gap = pools.reward[world, prompt, first].astype(np.float64) - pools.reward[world, prompt, second]
        if whole_number("labellings", labellings, 2) % 2:
            raise ValueError(f"labellings={labellings} must be even")
        shares = rng.random((labellings // 2, *actions.shape))
        total = np.zeros(self.num_envs)
        for share in (*shares, *(1 - shares)):
            sign = label_sign(gap, share, settings.oracle_temperature, settings.oracle_tie, settings.oracle_flip)
            rejected = np.where(sign > 0, second, first)
            labels = Labels(prompt, np.where(sign == 0, rejected, first + second - rejected), rejected, sign != 0)
            self._policies.step(pools.features, labels, pools.responses, self.recipe.exploration_bonus)
            total += self._evaluators.win_rate() - self._evaluations.win_rate
            self._policies.theta = theta
        return total / (2 * len(shares))

    def _checked(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        given = np.asarray(actions)
        shape, choices = (self.num_envs, self._slots_per_round), self._n_choices
        if given.shape != shape or given.dtype.kind not in "iu" or given.min() < 0 or given.max() >= choices:
            raise ValueError(f"actions must be {shape} integers in 0 … {choices - 1}, got {actions!r}")
        return given.astype(np.int64, copy=False)

    def _padded(self, preferences: IntArray) -> IntArray:
        """(B, labels a round, 3) with -1 after the (B, k, 3) given."""
        table = np.full((self.num_envs, self._slots_per_round, 3), -1, dtype=np.int64)
        table[:, : preferences.shape[1]] = preferences
        return table

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

    def _info(self, round_info: Info, clock: Stopwatch) -> Info:
        b, found = self.num_envs, self._evaluations
        seconds = np.empty(b, dtype=object)
        seconds[:] = clock.seconds()
        info = round_info | {
            "illegal": np.zeros(b, dtype=np.int64),
            "win_rate": found.win_rate.copy(),
            "win_rate_low": found.low.copy(),
            "win_rate_high": found.high.copy(),
            "win_rate_second": found.second.copy(),
            "capability": found.capability.copy(),
            "kl": found.kl.copy(),
            "posterior_accuracy": found.posterior_accuracy.copy(),
            "labels": self._labels.copy(),
            "spent": np.full(b, self._spent),
            "judged": self._judged.copy(),
            "seconds": seconds,
        }
        return {f"_{name}": np.ones(b, dtype=np.bool_) for name in info if not name.startswith("_")} | info

    def action_masks(self) -> NDArray[np.bool_]:
        """(B, sum of nvec) bool, all True: the simulator's pools have no missing candidates."""
        return np.ones((self.num_envs, self._slots_per_round * self._n_choices), dtype=np.bool_)

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
        names = ("settings", "num_envs", "budget", "privileged", "recipe", "labels_per_round")
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
            "kept": copy.deepcopy(kept),
            "counts": (self._spent, self._judged.copy(), self._over),
            "seeds": list(self._seeds),
        }

    def _parts(self) -> tuple[_Saved, ...]:
        return self._sources, self._beliefs, self._policies, self._evaluators, self._labellers

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
        self._pools, self._belief, self._evaluations, self._labels = copy.deepcopy(state["kept"])
        self._spent, judged, self._over = state["counts"]
        self._judged = judged.copy()
        self._seeds = list(state["seeds"])


class _Saved(Protocol):
    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...
