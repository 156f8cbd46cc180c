"""Our choices beside those of public code, on the same numbers.

``public_code.json`` holds what the acquisition functions of github.com/lasgroup/ActiveUltraFeedback answered for these
rewards, standard deviations and widths: the pairs where no chance is in it, and how often each pair came in 20,000
draws where there is.

* ``choices``: the pair of each prompt, null where the public MaxMinLCB has left out a candidate (it then takes
  candidate 0, or one against itself).
* ``seconds``: InfoGain's second for each prompt and each first.
* ``shares``: of the pairs i < j in order. For RUCB each prompt's rewards were shifted so that the largest lower bound
  is 1/2, where the public set of champions is the paper's; prompts with one champion, which it pairs with itself, are
  left out.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from agents.scores import baseline, duels, intervals, thompson
from prefenv.spaces import pair_index

PUBLIC = json.loads(Path(__file__).with_name("public_code.json").read_text())
MEAN, STD = (np.array(PUBLIC[name]) for name in ("reward_mean", "reward_std"))
BELIEF = {"reward_mean": MEAN, "reward_std": STD, "mask": np.ones(MEAN.shape, dtype=np.int8)}
N, M = MEAN.shape


def described(cases):
    return [pytest.param(case, id=f"{case['method']}-{case['settings']}") for case in cases]


@pytest.mark.parametrize("case", described(PUBLIC["choices"]))
def test_the_same_pairs(case):
    score = getattr(intervals, case["method"])(BELIEF, np.random.default_rng(0), **case["settings"])
    assert len(case["pairs"]) == N
    for row, pair in zip(score, case["pairs"], strict=True):
        if pair is not None:
            # equal ones are possible in a quantile's window only: there the public code takes the first
            assert row[pair_index(*pair, M)] == row.max()
            assert np.sum(row == row.max()) == 1 or case["settings"].get("epsilon")


@pytest.mark.parametrize("case", PUBLIC["seconds"], ids=lambda case: f"width-{case['width']}")
def test_the_same_second_of_infogain(case):
    for first in range(M):
        draws = np.broadcast_to(np.eye(M)[first], (2, N, M))  # every draw has this first
        observation = BELIEF | {"reward_samples": draws}
        score = duels.infogain(observation, np.random.default_rng(0), width=case["width"])
        second = np.array(case["second_of_first"])[:, first]
        np.testing.assert_array_equal(score.argmax(axis=-1), pair_index(first, second, M))


@pytest.mark.parametrize("case", described(PUBLIC["shares"]))
@pytest.mark.parametrize("level", [0.0, 30.0])
def test_the_same_chances(case, level):
    method = {
        "dts": thompson.dts,
        "drts": thompson.drts,
        "ultrafeedback": baseline.ultrafeedback,
        "rucb": duels.rucb,
    }[case["method"]]
    times = PUBLIC["draws"]
    for prompt, expected in zip(case["prompts"], case["pairs"], strict=True):
        mean, std = (np.broadcast_to(values[prompt], (times, M)) for values in (MEAN + level, STD))
        observation = {"reward_mean": mean, "reward_std": std, "oracle_score": mean, "mask": np.ones((times, M))}
        share = method(observation, np.random.default_rng(prompt), **case["settings"]).mean(axis=0)
        # five standard deviations of the difference of two shares
        allowed = 5 * np.sqrt(2 * np.maximum(expected, 1e-3) / times) + 1e-4
        assert np.all(np.abs(share - expected) < allowed), (prompt, share, expected)


def test_enough_is_compared():
    compared = [pair is not None for case in PUBLIC["choices"] for pair in case["pairs"]]
    assert len(compared) > 24 * 20
    assert sum(compared) > 0.9 * len(compared)
    assert {case["method"] for case in PUBLIC["choices"]} == {"deltaucb", "infomax", "maxminlcb", "deltaquantile"}
    assert {case["method"] for case in PUBLIC["shares"]} == {"dts", "drts", "ultrafeedback", "rucb"}
