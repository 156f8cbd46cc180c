"""The contract of worlds, on those that need no torch."""

import pytest

import prefenv
from tests.world_contract import *  # noqa: F403  # the tests

SYNTHETIC = {
    "synthetic": {"n_prompts": 3, "n_candidates": 3},
    "synthetic, on policy": {"n_prompts": 2, "n_candidates": 5, "on_policy": True, "loss": "simpo"},
    "synthetic, warm ensemble": {"n_prompts": 3, "posterior": "ensemble", "warm_labels": 5, "oracle_tie": 0.5},
}


@pytest.fixture(params=[*SYNTHETIC, "ragged"])
def world(request):
    if request.param == "ragged":
        return request.getfixturevalue("ragged_world")
    return prefenv.make_world("synthetic", **SYNTHETIC[request.param])
