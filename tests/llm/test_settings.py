"""Settings say what is wrong with them, and cost nothing to import."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from prefenv.llm.settings import LLMSettings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_candidates": 1}, "n_candidates=1 makes no pair: pass n_candidates=2"),
        ({"n_prompts": 0}, "n_prompts=0"),
        ({"n_eval_prompts": -1}, "n_eval_prompts=-1"),
        ({"max_new_tokens": 3}, "max_new_tokens=3"),
        ({"temperature": 0.0}, "temperature=0.0 must be positive"),
        ({"beta": float("nan")}, "beta=nan"),
        ({"learning_rate": float("inf")}, "learning_rate=inf"),
        ({"oracle_temperature": -0.1}, "oracle_temperature=-0.1"),
        ({"device": "tpu"}, "device='tpu' is none of auto, cpu, cuda"),
    ],
)
def test_a_value_that_cannot_be(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LLMSettings(**wrong)


def test_settings_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        LLMSettings().beta = 1.0  # type: ignore[misc]


def test_settings_and_prompts_import_nothing_heavy() -> None:
    code = (
        "import sys, prefenv.llm.settings, prefenv.llm.prompts; "
        "print([name for name in ('torch', 'transformers', 'trl', 'peft', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
