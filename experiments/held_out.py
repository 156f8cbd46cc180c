"""How a policy in training does in worlds that it does not train in."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from agents.learned import VALIDATION_SEEDS
from agents.scores import Observation, Score
from agents.select import best_of_each_prompt
from prefenv.spaces import n_pairs, pair_mask
from prefenv.synthetic.ranges import Ranges
from prefenv.synthetic.settings import PRESETS
from prefenv.training_worlds import TrainingWorlds
from prefenv.types import FloatArray
from prefenv.vector import PrefAcquireVectorEnv

ROUNDS = 10
WORLDS = {"synthetic": 200, "active-ultrafeedback": 24}  # of each preset: a second or two
RL_RANGES = Ranges(n_candidates=(3, 8))  # two candidates are one pair, and nothing to choose
DRAWN = (32, 8)  # settings, and worlds of each

Choose = Callable[[Observation], NDArray[np.int64]]


class HeldOut:
    """Called with a score: name → number, each larger for a better score.

    Of the presets, the area under the win-rate curve less that of random pairs in the same worlds, in points of win
    rate; of settings drawn at random, the mean headroom taken, in the unit of
    :class:`prefenv.training_worlds.TrainingWorlds`, which is the spread of the headroom where that is larger. Seeds are
    neither those of training nor those that are compared.
    """

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._random = {
            name: self._area(name, lambda o: rng.integers(n_pairs(o["mask"].shape[-1]), size=o["mask"].shape[:-1]))
            for name in WORLDS
        }

    def __call__(self, score: Score) -> dict[str, float]:
        """Mean over worlds; ties are broken alike in every call."""
        rng = np.random.default_rng(0)

        def choose(observation: Observation) -> NDArray[np.int64]:
            return best_of_each_prompt(score(observation, rng), pair_mask(observation["mask"]), rng)

        found = {name: 100 * float((self._area(name, choose) - self._random[name]).mean()) for name in WORLDS}
        return found | {"drawn": self._headroom(choose)}

    @staticmethod
    def _area(name: str, choose: Choose) -> FloatArray:
        settings = PRESETS[name]
        envs = PrefAcquireVectorEnv(settings, WORLDS[name], ROUNDS * settings.n_prompts)
        observation, info = envs.reset(seed=VALIDATION_SEEDS)
        curve = [info["win_rate"]]
        for _ in range(ROUNDS):
            observation, _, _, _, info = envs.step(choose(observation))
            curve.append(info["win_rate"])
        return np.trapezoid(np.stack(curve), axis=0) / ROUNDS

    @staticmethod
    def _headroom(choose: Choose) -> float:
        envs = TrainingWorlds(RL_RANGES, *DRAWN, ROUNDS)
        observation, info = envs.reset(seed=VALIDATION_SEEDS)
        for _ in range(ROUNDS):
            observation, _, _, _, info = envs.step(choose(observation))
        return float(info["headroom"].mean())
