"""The other two forms of the action: labels anywhere in the pool, and one pair at a time."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from prefenv import spaces
from prefenv.clock import Clock
from prefenv.env import NO_LABELS, PLAIN, Info, Observation, PrefAcquireEnv
from prefenv.protocols import State, World
from prefenv.types import Recipe, whole_number


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
        world: str | World | Any = "synthetic",
        n_prompts: int | None = None,
        n_candidates: int | None = None,
        budget: int | None = None,
        privileged: bool = False,
        recipe: Recipe = PLAIN,
        pools: str | None = None,
        labels_per_round: int | None = None,
    ) -> None:
        self.labels_per_round = None if labels_per_round is None else whole_number("labels_per_round", labels_per_round)
        super().__init__(world, n_prompts, n_candidates, budget, privileged, recipe, pools)

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
        self._require_open(action)
        self._selected.append(int(action))
        if len(self._selected) < min(self._labels_per_round(), self.budget - self._spent):
            info = self._info(self._round_info(NO_LABELS), Clock())
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
