"""How long each acquisition method takes to choose: microseconds a prompt, growth, memory, and loops beside it.

    OMP_NUM_THREADS=1 python benchmarks/acquisition.py

Timed is a whole ``predict``, score and selection, on one observation of the budget form with a label for every fourth
prompt where a method chooses prompts, and of the form with one pair of each prompt elsewhere. The loops are written
here, over prompts and, for Thompson draws, over candidates, as the public code of the same methods goes about it; that
code itself is slower, for it holds tensors.
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

import agents
from experiments.report import markdown
from prefenv.spaces import budget_space, n_pairs, per_prompt_space

SIZES = ((64, 30), (64, 8), (1024, 30))
S, D = 32, 64
LIMIT = 100.0  # microseconds a prompt at (64, 30)
BATCH_DESIGNS = ("coreset", "kmeans", "div-reward", "max-herding", "knn-herding", "u-herding", "dopt")
LOOP_FACTOR = 20.0
MEMORY_LIMIT = 1024.0  # MB
TURNS = 5
Observation = dict[str, NDArray[Any]]


def observation(n: int, m: int, rng: np.random.Generator) -> Observation:
    """A pool as the environment shows it, of noise."""

    def normal(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape, dtype=np.float32)

    mean = normal(n, m)
    return {
        "embedding": normal(n, m, D),
        "reward_mean": mean,
        "reward_std": np.abs(normal(n, m)),
        "reward_samples": mean + normal(S, n, m),
        "logprob": -np.abs(normal(n, m)),
        "length": np.exp(normal(n, m)),
        "implicit_reward": normal(n, m),
        "entropy": np.abs(normal(n)),
        "generator": np.tile(np.arange(m, dtype=np.float32), (n, 1)),
        "mask": np.ones((n, m), dtype=np.int8),
        "budget": np.ones(1, dtype=np.float32),
        "oracle_score": mean + normal(n, m),
        "oracle_gain": normal(n, n_pairs(m)),
    }


def chooser(key: str, n: int, m: int) -> Callable[[Observation], Any]:
    """One call of an agent, in the form that suits the method."""
    space = budget_space(n, m, n // 4) if agents.spec(key).family == "prompts" else per_prompt_space(n, m)
    agent = agents.make(key, space, seed=0)
    return lambda shown: agent.predict(shown)


def microseconds(call: Callable[[Observation], Any], shown: Observation, seconds: float) -> float:
    """Microseconds a prompt, median of some turns."""
    call(shown)
    turns = []
    for _ in range(TURNS):
        calls, start = 0, time.perf_counter()
        while calls == 0 or time.perf_counter() - start < seconds / TURNS:
            call(shown)
            calls += 1
        turns.append((time.perf_counter() - start) / calls)
    return 1e6 * statistics.median(turns) / len(shown["entropy"])


def megabytes(call: Callable[[Observation], Any], shown: Observation) -> float:
    """Peak of what one call allocates, the observation itself left out."""
    tracemalloc.start()
    call(shown)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


# The loops


def loop_thompson(shown: Observation, rng: np.random.Generator, sign: float) -> None:
    """Two draws, candidate by candidate, the second again while it names the first."""

    def draw(mean: NDArray[Any], std: NDArray[Any], sign: float) -> int:
        return int(np.argmax([sign * (mean[j] + rng.uniform(-1, 1) * std[j]) for j in range(len(mean))]))

    for mean, std in zip(shown["reward_mean"], shown["reward_std"], strict=True):
        first = second = draw(mean, std, 1.0)
        redraws = 0
        while second == first:
            second = draw(mean, std, sign) if redraws < 30 else int(rng.integers(len(mean)))
            redraws += 1


def loop_infogain(shown: Observation, rng: np.random.Generator) -> None:
    """One draw, candidate by candidate, then the widest interval against it."""
    for mean, std in zip(shown["reward_mean"], shown["reward_std"], strict=True):
        first = int(np.argmax([mean[j] + rng.uniform(-1, 1) * std[j] for j in range(len(mean))]))
        width = expit(mean[first] + std[first] - mean + std) - expit(mean[first] - std[first] - mean - std)
        width[first] = -np.inf
        int(np.argmax(width))


def loop_maxminlcb(shown: Observation, rng: np.random.Generator) -> None:
    """Matrices of one prompt at a time."""
    for mean, std in zip(shown["reward_mean"], shown["reward_std"], strict=True):
        lcb = mean[:, None] - mean[None, :] - (std[:, None] + std[None, :])
        np.fill_diagonal(lcb, np.inf)
        worst = lcb.min(axis=1)
        opponents = [rng.choice(np.flatnonzero(row == low)) for row, low in zip(lcb, worst, strict=True)]
        int(opponents[rng.choice(np.flatnonzero(worst == worst.max()))])


def loop_ids(shown: Observation, rng: np.random.Generator) -> None:
    """A grid of mixing weights for each prompt."""
    weight = np.linspace(0, 1, 101)[1:]
    for mean, std in zip(shown["reward_mean"], shown["reward_std"], strict=True):
        greedy = int(rng.choice(np.flatnonzero(mean == mean.max())))
        regret = max(0.0, float((mean + std).max() - mean[greedy]))
        of_duel = regret + mean[greedy] - mean
        ratio = (regret + weight * (of_duel - regret)[:, None]) ** 2 / (weight * np.log1p(std**2)[:, None])
        ratio[greedy] = np.inf
        int(np.unravel_index(np.argmin(ratio), ratio.shape)[0])


def loop_rucb(shown: Observation, rng: np.random.Generator) -> None:
    """Champions and opponents of one prompt at a time."""
    for mean, std in zip(shown["reward_mean"], shown["reward_std"], strict=True):
        optimistic = expit((mean + std)[:, None] - (mean - std)[None, :])
        champion = int(rng.choice(np.flatnonzero((optimistic >= 0.5).all(axis=1))))
        against = optimistic[:, champion]
        against[champion] = -np.inf
        int(rng.choice(np.flatnonzero(against == against.max())))


def loop_ultrafeedback(shown: Observation, rng: np.random.Generator) -> None:
    """Four drawn candidates of one prompt at a time."""
    for score in shown["oracle_score"]:
        drawn = rng.choice(len(score), size=4, replace=False)
        best = int(np.argmax(score[drawn]))
        rng.choice(np.delete(drawn, best))


LOOPS: dict[str, Callable[[Observation, np.random.Generator], None]] = {
    "dts": lambda shown, rng: loop_thompson(shown, rng, 1.0),
    "drts": lambda shown, rng: loop_thompson(shown, rng, -1.0),
    "infogain": loop_infogain,
    "maxminlcb": loop_maxminlcb,
    "ids": loop_ids,
    "rucb": loop_rucb,
    "ultrafeedback": loop_ultrafeedback,
}


def main() -> None:
    """Measure, print the table and the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="spent on each number, about")
    parser.add_argument("--methods", nargs="*", help="only these")
    arguments = parser.parse_args()
    keys = arguments.methods or [key for key, spec in agents.AGENTS.items() if not spec.learned]
    pools = {size: observation(*size, np.random.default_rng(0)) for size in SIZES}
    heads = [f"{n} x {m}" for n, m in SIZES]
    rows = [["method", *heads, "n x 16", "m x 3.75", "MB at 1024 x 30", "loop / ours at 64 x 30"]]
    times, memory, ratios = {}, {}, {}
    for key in keys:
        times[key] = [microseconds(chooser(key, *size), pools[size], arguments.seconds) for size in SIZES]
        memory[key] = megabytes(chooser(key, *SIZES[2]), pools[SIZES[2]])
        if key in LOOPS:
            rng, loop = np.random.default_rng(0), LOOPS[key]
            base = microseconds(lambda shown, loop=loop, rng=rng: loop(shown, rng), pools[SIZES[0]], arguments.seconds)
            ratios[key] = base / times[key][0]
        wide, narrow, many = times[key]
        rows.append([
            key, *(f"{value:.1f}" for value in times[key]), f"x {many / wide:.2f}", f"x {wide / narrow:.2f}",
            f"{memory[key]:.0f}", f"{ratios[key]:.0f}" if key in ratios else "-",
        ])  # fmt: skip
        print(f"{key}: {wide:.1f} us a prompt", flush=True)
    print(f"\nmicroseconds a prompt, S = {S}, d = {D}\n\n{markdown(rows)}\n")
    slow = [key for key in keys if times[key][0] > LIMIT and key not in BATCH_DESIGNS]
    print(f"above {LIMIT:.0f} us a prompt at 64 x 30, batch designs left out: {', '.join(slow) or 'none'}")
    designs = [f"{key} {16 * times[key][2] / times[key][0]:.0f}" for key in keys if key in BATCH_DESIGNS]
    print(f"batch designs, whole call from n = 64 to 1024 (k n P d grows 256 times): {', '.join(designs) or 'none'}")
    below = [f"{key} {ratio:.0f}" for key, ratio in ratios.items() if ratio < LOOP_FACTOR]
    print(f"less than {LOOP_FACTOR:.0f} times as fast as a loop: {', '.join(below) or 'none'}")
    print(f"most memory of a call at 1024 x 30: {max(memory.values()):.0f} MB of {MEMORY_LIMIT:.0f}")


if __name__ == "__main__":
    main()
