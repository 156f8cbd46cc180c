"""Worlds drawn at random, many at a time, for agents to be trained in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from prefenv import spaces
from prefenv.env import Info, Observation
from prefenv.synthetic.ranges import Ranges
from prefenv.synthetic.settings import SyntheticSettings
from prefenv.types import FloatArray, IntArray, whole_number
from prefenv.vector import PrefAcquireVectorEnv

LEAST_HEADROOM = 0.002  # of win rate: where there is less to gain, a difference is mostly noise
ANY_SEED = 1_000_000_000  # where seeds that nobody gave begin: not among those that people compare with
LABELLINGS = 8  # that a reward is averaged over: most of its noise is which labels happen to come
N_SAMPLES = 32  # posterior draws in an observation


class TrainingWorlds(VectorEnv[Observation, NDArray[np.int64], NDArray[Any]]):
    """Groups of simulated worlds, each of other settings, drawn anew for every episode; all walk in step.

    Observations and actions have the largest sizes of the ranges: smaller pools are padded, and ``mask`` says where
    candidates are. (An action that names a padded candidate is taken as the prompt's first pair; those of padded
    prompts are not read.) The reward is a gain in win rate, but shaped so that worlds can be learned from side by side:

    * weighted with the share of the episode that enjoys it, so that an episode's sum is an area under the curve;
    * less what the same world gives to random pairs in that round, which no action changes;
    * in units of the group's headroom, the mean area that ``oracle-greedy`` is ahead of random, or of its standard
      deviation where that is larger, so that no world of noise outweighs the others;
    * averaged over :data:`LABELLINGS` labellings that the oracle might have given to the chosen pairs.

    So the expected return of an episode is the headroom that the agent takes: 0 as random, at most 1 as
    ``oracle-greedy``, on average over the group. ``info`` has ``win_rate``, ``headroom`` (taken so far) and ``group``,
    each (B,).

    Args:
        ranges: what settings are drawn from.
        groups: how many settings side by side.
        worlds_each: of each group.
        rounds: of an episode, one pair of each prompt each.
        privileged: show ``oracle_gain``, for imitation.

    Example:
        >>> envs = TrainingWorlds(Ranges(n_prompts=(2, 3)), groups=2, worlds_each=3, rounds=4)
        >>> observation, info = envs.reset(seed=0)
        >>> observation["reward_mean"].shape
        (6, 3, 8)
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012  # as gymnasium declares it

    def __init__(
        self, ranges: Ranges, groups: int, worlds_each: int, rounds: int = 10, privileged: bool = False
    ) -> None:
        self.ranges, self.privileged = ranges, bool(privileged)
        self.groups, self.worlds_each = whole_number("groups", groups), whole_number("worlds_each", worlds_each)
        self.rounds = whole_number("rounds", rounds)
        self.num_envs = groups * worlds_each
        n, m = ranges.n_prompts[1], ranges.n_candidates[1]
        self.single_observation_space = spaces.observation_space(
            n, m, ranges.embedding_size[1], N_SAMPLES, privileged=self.privileged, gain=self.privileged
        )
        self.single_action_space = spaces.per_prompt_space(n, m)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._next_seeds: list[int] | None = None
        self._over = True

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, Info]:
        """Draw settings and worlds.

        Args:
            seed: world b gets ``seed + b``, or ``seed[b]``; the first of a group draws its settings. Without, the
                seeds after those of the last episode, or any at first.
            options: not used.

        Raises:
            ValueError: another number of seeds than worlds, or some of them None.
        """
        if seed is None:
            first = int(np.random.default_rng().integers(ANY_SEED, 2 * ANY_SEED))
            seeds = self._next_seeds or list(range(first, first + self.num_envs))
        else:
            given = range(seed, seed + self.num_envs) if isinstance(seed, (int, np.integer)) else seed
            seeds = [value for value in given if value is not None]
        if len(seeds) != self.num_envs:
            raise ValueError(f"{self.num_envs} seeds are needed, got {seed!r}")
        self._next_seeds = [value + self.num_envs for value in seeds]
        return self._begin(seeds)

    def _begin(self, seeds: list[int]) -> tuple[Observation, Info]:
        each = self.worlds_each
        self._group = [_Group(self, seeds[start : start + each]) for start in range(0, self.num_envs, each)]
        self._round, self._over = 0, False
        self._headroom = np.zeros(self.num_envs)
        return self._padded([group.observation for group in self._group]), self._info()

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[Observation, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Info]:
        """One round in every world, or new worlds where the last step ended the episode.

        Args:
            actions: (B, n) integers, the pair of every prompt.

        Raises:
            RuntimeError: before the first reset.
        """
        flags = np.zeros((2, self.num_envs), dtype=np.bool_)
        if self._next_seeds is None:
            raise RuntimeError("no episode has begun: call reset() first")
        if self._over:
            observation, info = self.reset()
            return observation, np.zeros(self.num_envs), flags[0], flags[1], info
        gains = np.concatenate(
            [
                group.step(actions[g * self.worlds_each : (g + 1) * self.worlds_each], self._round)
                for g, group in enumerate(self._group)
            ],
            axis=1,
        )
        self._round += 1
        rewards, taken = gains
        self._headroom += taken
        self._over = flags[0, :] = self._round == self.rounds
        return self._padded([group.observation for group in self._group]), rewards, flags[0], flags[1], self._info()

    def _info(self) -> Info:
        info = {
            "win_rate": np.concatenate([group.win_rate for group in self._group]),
            "headroom": self._headroom.copy(),
            "group": np.repeat(np.arange(self.groups), self.worlds_each),
        }
        return {f"_{name}": np.ones(self.num_envs, dtype=np.bool_) for name in info} | info

    def _padded(self, observations: list[Observation]) -> Observation:
        """Those of all groups in arrays of the largest sizes; zeros where there is nothing."""
        whole = {}
        for name, space in self.single_observation_space.items():  # type: ignore[attr-defined]
            assert space.shape is not None
            whole[name] = np.zeros((self.num_envs, *space.shape), dtype=space.dtype)
            for g, observation in enumerate(observations):
                value = observation[name]
                if name == "oracle_gain":
                    value = self._spread(value, self._group[g].settings.n_candidates)
                start = g * self.worlds_each
                place = (slice(start, start + self.worlds_each), *(slice(size) for size in value.shape[1:]))
                whole[name][place] = value
        return whole

    def _spread(self, values: FloatArray, m: int) -> FloatArray:
        """(B, n, P of the largest m) from (B, n, P of m): the same pairs under the numbers that they have here."""
        wide = np.zeros((*values.shape[:2], spaces.n_pairs(self.ranges.n_candidates[1])), dtype=values.dtype)
        wide[..., self.pair_numbers(m)] = values
        return wide

    def pair_numbers(self, m: int) -> IntArray:
        """(P of m,) numbers that the pairs of m candidates have among those of the largest m."""
        first, second = spaces.pair_table(m)
        return np.asarray(spaces.pair_index(first, second, self.ranges.n_candidates[1]))


class _Group:
    """Worlds of the same settings, and what random and oracle-greedy make of them."""

    def __init__(self, worlds: TrainingWorlds, seeds: list[int]) -> None:
        self._rng = rng = np.random.default_rng(seeds[0])
        self.settings: SyntheticSettings = worlds.ranges.draw(rng)
        n, m, rounds = self.settings.n_prompts, self.settings.n_candidates, worlds.rounds
        self.n_worlds, budget = len(seeds), rounds * n
        self._envs = PrefAcquireVectorEnv(self.settings, len(seeds), budget, worlds.privileged)
        knowing = self._envs if worlds.privileged else PrefAcquireVectorEnv(self.settings, len(seeds), budget, True)
        self._weight = (rounds - np.arange(rounds) - 0.5) / rounds  # of a gain in the area under the curve
        pairs = spaces.n_pairs(m)
        self._random = _gains(self._envs, seeds, lambda _: rng.integers(pairs, size=(len(seeds), n)))
        best = _gains(knowing, seeds, lambda observation: observation["oracle_gain"].argmax(axis=-1))
        ahead = (best - self._random) @ self._weight
        self._unit = max(float(ahead.mean()), float(ahead.std()), LEAST_HEADROOM)
        self._pair = np.zeros(spaces.n_pairs(worlds.ranges.n_candidates[1]), dtype=np.int64)
        self._pair[worlds.pair_numbers(m)] = np.arange(pairs)
        self.observation, info = self._envs.reset(seed=seeds)
        self.win_rate = info["win_rate"]

    def step(self, actions: IntArray, number: int) -> FloatArray:
        """(2, B): shaped rewards of a round, counted from 0; and what they would be without averaging."""
        pairs = self._pair[actions[:, : self.settings.n_prompts]]
        mean = self._envs.mean_gain(pairs, self._rng, LABELLINGS)
        self.observation, gains, _, _, info = self._envs.step(pairs)
        self.win_rate = info["win_rate"]
        return (np.stack([mean, gains]) - self._random[:, number]) * self._weight[number] / self._unit


def _gains(envs: PrefAcquireVectorEnv, seeds: list[int], choose: Any) -> FloatArray:
    """(B, rounds) gains in win rate of one episode."""
    observation, _ = envs.reset(seed=seeds)
    gains, over = [], False
    while not over:
        observation, gain, terminated, _, _ = envs.step(choose(observation))
        gains.append(gain)
        over = bool(terminated.all())
    return np.stack(gains, axis=1)
