"""Acquisition of preference labels as a Gymnasium environment.

Importing this package registers ``PrefAcquire-v0``, ``PrefAcquireBudget-v0`` and ``PrefAcquireSequential-v0``.
"""

import gymnasium as _gym

from prefenv.env import PrefAcquireBudgetEnv, PrefAcquireEnv, PrefAcquireSequentialEnv
from prefenv.protocols import CandidateSource, Evaluator, Oracle, PolicyLearner, RewardPosterior, World
from prefenv.types import Pairs, Pool, Preferences
from prefenv.version import __version__
from prefenv.worlds import WORLDS, make_world

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
    "RewardPosterior",
    "World",
    "__version__",
    "make_world",
]

ENV_IDS = ("PrefAcquire-v0", "PrefAcquireBudget-v0", "PrefAcquireSequential-v0")

for _id, _class in zip(ENV_IDS, ("PrefAcquireEnv", "PrefAcquireBudgetEnv", "PrefAcquireSequentialEnv"), strict=True):
    if _id not in _gym.registry:
        _gym.register(_id, entry_point=f"prefenv.env:{_class}")
