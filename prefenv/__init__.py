"""Acquisition of preference labels as a Gymnasium environment.

Importing this package registers ``PrefAcquire-v0``, ``PrefAcquireBudget-v0`` and ``PrefAcquireSequential-v0``.
"""

import gymnasium as _gym

from prefenv.env import PrefAcquireEnv
from prefenv.forms import PrefAcquireBudgetEnv, PrefAcquireSequentialEnv
from prefenv.protocols import CandidateSource, Evaluator, Oracle, PolicyLearner, RewardPosterior, World
from prefenv.types import Pairs, Pool, Preferences, Recipe
from prefenv.version import __version__
from prefenv.worlds import WORLDS, make_world, world_settings

__all__ = [
    "WORLDS",
    "CandidateSource",
    "Evaluator",
    "Oracle",
    "Pairs",
    "PolicyLearner",
    "Pool",
    "PrefAcquireBudgetEnv",
    "PrefAcquireEnv",
    "PrefAcquireSequentialEnv",
    "Preferences",
    "Recipe",
    "RewardPosterior",
    "World",
    "__version__",
    "make_world",
    "world_settings",
]

_ENTRY_POINTS = {
    "PrefAcquire-v0": "prefenv.env:PrefAcquireEnv",
    "PrefAcquireBudget-v0": "prefenv.forms:PrefAcquireBudgetEnv",
    "PrefAcquireSequential-v0": "prefenv.forms:PrefAcquireSequentialEnv",
}
_VECTOR_ENTRY_POINTS = {
    "PrefAcquire-v0": "prefenv.make_vec:make_vector_env",
    "PrefAcquireBudget-v0": "prefenv.make_vec:make_budget_vector_env",
}
ENV_IDS = tuple(_ENTRY_POINTS)

for _id, _entry_point in _ENTRY_POINTS.items():
    if _id not in _gym.registry:
        _gym.register(_id, entry_point=_entry_point, vector_entry_point=_VECTOR_ENTRY_POINTS.get(_id))
