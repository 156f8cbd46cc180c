"""How fast the simulator is: environment steps a second, against gymnasium's SyncVectorEnv and against bare NumPy.

    OMP_NUM_THREADS=1 python benchmarks/simulator.py [--baseline FOLDER] [--seconds 2]

One process, one core. A step is one vector step of one world; steps that reset are counted, as they are in training.
The rates of one table are measured in turns, round after round, and their medians are shown, so that a machine whose
speed drifts is as slow for one as for the other. ``--baseline`` is a checkout of another version, whose SyncVectorEnv
of 16 default environments is measured in the same turns (in a process of its own, on the same core).

The floor is what NumPy needs for the products of a step on arrays of this size that are there already: matrix
products and dot products with the posterior, the policy's gradient steps, the evaluation; no random numbers, no
exponentials, no copies, no resets.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import gymnasium as gym
import numpy as np

import prefenv
from prefenv.posteriors.bayesian_linear import BLOCK
from prefenv.synthetic.settings import SyntheticSettings
from prefenv.synthetic.story import noise_size

SYNC_ENVS = 16
TURNS = 5

BASELINE = """
import sys, time
import gymnasium as gym, prefenv
envs = gym.make_vec("PrefAcquire-v0", num_envs=16, vectorization_mode="sync")
envs.reset(seed=0)
actions = [envs.action_space.sample() for _ in range(11)]
for line in sys.stdin:
    steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < float(line) or steps % 11:
        envs.step(actions[steps % 11])
        steps += 1
    print(16 * steps / (time.perf_counter() - start), flush=True)
"""

MEMORY = {
    "memory of B = 256 worlds of default": """
import gymnasium as gym, prefenv.vector
before = peak()
envs = gym.make_vec("PrefAcquire-v0", num_envs=256, world="default")
envs.reset(seed=0)
for _ in range(22):
    envs.step(envs.action_space.sample())
print(f"{peak() - before:.0f} MB at the peak, {peak():.0f} MB with Python and its packages")
""",
    "an episode of 10,000 rounds": """
import gymnasium as gym, prefenv
env = gym.make("PrefAcquire-v0", budget=80_000)
env.reset(seed=0)
peaks = []
for index in range(10_000):
    *_, info = env.step(env.action_space.sample())
    if index in (999, 9_999):
        peaks.append(peak())
print(f"{peaks[0]:.1f} MB at the peak after 1,000 rounds, {peaks[1]:.1f} MB after 10,000; "
      f"win rate {info['win_rate']:.3f}, KL {info['kl']:.1f}")
""",
}
PEAK = """
def peak():  # MB; Linux
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024
"""


def stepper(world: str | SyntheticSettings, n_envs: int, mode: str | None) -> Callable[[float], float]:
    """Seconds to run for → environment steps a second; whole episodes, each with the step that resets."""
    envs = gym.make_vec("PrefAcquire-v0", num_envs=n_envs, vectorization_mode=mode, world=world)
    envs.reset(seed=0)
    actions = [envs.action_space.sample() for _ in range(11)]

    def rate(seconds: float) -> float:
        steps, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds or steps % 11:
            envs.step(actions[steps % 11])
            steps += 1
        return n_envs * steps / (time.perf_counter() - start)

    rate(0.1)
    return rate


def floor(settings: SyntheticSettings, b: int, random_words: bool = False) -> Callable[[float], float]:
    """Seconds to run for → steps a second of the bare products, with the bare random words of a step if asked for."""
    rng = np.random.default_rng(0)
    n, m, s, d = settings.n_prompts, settings.n_candidates, settings.n_samples, settings.embedding_size
    g, e = settings.n_generators, settings.n_eval_prompts

    def single(*shape: int) -> np.ndarray:
        return rng.standard_normal((b, *shape), dtype=np.float32)

    theta, pool, direction = single(d + 1, 1), single(n * g, d + 1), single(d + 1, 1)
    candidates, embedding = single(n * m, d + 1), single(n * m, d)
    root, mean, noise = single(d, d), single(d, 1), single(s, d)
    features, held_out, beats, totals, pairs = (
        single(d + 1, g * e),
        single(1, g * e),
        single(1, g * e),
        single(2, g * e),
        single(2 * e, d),
    )
    wide_root, wide_mean, delta = (rng.standard_normal((b, *shape)) for shape in ((d, d), (d, 1), (n, d)))
    gradient, slope, wide_theta = (rng.standard_normal((b, *shape)) for shape in ((n, d + 1), (1, n), (d + 1, 1)))
    small, column = rng.standard_normal((b, BLOCK, BLOCK)), rng.standard_normal((b, BLOCK, 1))

    def absorb() -> None:
        for start in range(0, n, BLOCK):
            block = delta[:, start : start + BLOCK]
            v = block @ wide_root
            v @ v.swapaxes(1, 2)
            block @ wide_mean
            for _ in range(block.shape[1]):
                small @ column  # the three products with k × k matrices and the outer product of a label
                small @ column
                small @ column
                column @ column.swapaxes(1, 2)
            gain = wide_root @ v.swapaxes(1, 2)
            gain @ column[:, : block.shape[1]]
            (gain @ small[:, : block.shape[1], : block.shape[1]]) @ v

    def step() -> None:
        pool @ theta
        candidates @ direction
        candidates @ direction
        scaled = embedding @ root
        embedding @ mean
        np.einsum("bkd,bkd->bk", scaled, scaled)
        noise @ scaled.swapaxes(1, 2)
        absorb()
        for _ in range(settings.gradient_steps):
            gradient @ wide_theta
            slope @ gradient
        theta.swapaxes(1, 2) @ features
        np.einsum("bke,bke->b", held_out, beats)
        totals @ held_out.swapaxes(1, 2)
        np.einsum("bke,bke->b", held_out, beats)
        pairs @ mean

    sources = [np.random.PCG64(world) for world in range(b)]
    words = [noise_size(settings, n) // 4 + n * g // 4, s * d // 4, n]  # responses and choice, draws, labels

    def rate(seconds: float) -> float:
        steps, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            step()
            for count in words if random_words else ():
                for source in sources:
                    source.random_raw(count)
            steps += 1
        return b * steps / (time.perf_counter() - start)

    rate(0.05)
    return rate


class Baseline:
    """SyncVectorEnv of another checkout, in a process that waits for its turns."""

    def __init__(self, folder: str) -> None:
        environment = os.environ | {"PYTHONPATH": os.path.abspath(folder)}
        self._process = subprocess.Popen(
            [sys.executable, "-c", BASELINE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
            cwd=folder,
        )  # fmt: skip
        self(0.1)

    def __call__(self, seconds: float) -> float:
        """Steps a second, measured for so long."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(seconds, file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())


def medians(rates: dict[str, Callable[[float], float]], seconds: float) -> dict[str, float]:
    """Median rate of each, measured in turns."""
    turns = [{name: rate(seconds / TURNS) for name, rate in rates.items()} for _ in range(TURNS)]
    return {name: statistics.median(turn[name] for turn in turns) for name in rates}


def table(world: str, seconds: float, baseline: str | None) -> None:
    """Print the rates of one preset."""
    settings = prefenv.world_settings(world)
    rates: dict[str, Callable[[float], float]] = {f"vector, B = {b}": stepper(world, b, None) for b in (1, 16, 256)}
    rates[f"SyncVectorEnv, {SYNC_ENVS}"] = stepper(world, SYNC_ENVS, "sync")
    if baseline and world == "default":
        rates["SyncVectorEnv, 16, baseline"] = Baseline(baseline)
    rates["floor, B = 256"] = floor(settings, 256)
    rates["floor and its random words"] = floor(settings, 256, random_words=True)
    found = medians(rates, seconds)
    sync = found.get("SyncVectorEnv, 16, baseline", found[f"SyncVectorEnv, {SYNC_ENVS}"])
    print(f"\n{world}: n = {settings.n_prompts}, m = {settings.n_candidates}, d = {settings.embedding_size}, "
          f"S = {settings.n_samples}, G = {settings.n_generators}, E = {settings.n_eval_prompts}")  # fmt: skip
    print(f"{'':28} {'steps/s':>9} {'us/step':>9} {'x sync':>8} {'x floor time':>13}")
    for name, rate in found.items():
        print(f"{name:28} {rate:9.0f} {1e6 / rate:9.1f} {rate / sync:8.2f} {found['floor, B = 256'] / rate:13.2f}")


def growth(seconds: float) -> None:
    """Print how the time of a vector step grows when one size doubles."""
    base = {"n_prompts": 32, "n_candidates": 8, "embedding_size": 32}
    cases = {"base (n 32, m 8, d 32, B 64)": (base, 64), "n 64": (base | {"n_prompts": 64}, 64),
             "m 16, G 16": (base | {"n_candidates": 16, "n_generators": 16}, 64),
             "d 64": (base | {"embedding_size": 64}, 64), "B 128": (base, 128)}  # fmt: skip
    rates = {name: stepper(prefenv.world_settings("default", **sizes), b, None) for name, (sizes, b) in cases.items()}
    found = medians(rates, seconds)
    first = next(iter(found))
    print("\ngrowth: time of a vector step, one size doubled")
    for name, rate in found.items():
        b = cases[name][1]
        print(f"{name:30} {1e3 * b / rate:8.2f} ms  x {found[first] / rate * b / 64:5.2f}")


def shares(seconds: float) -> None:
    """Print where the time of default's vector steps goes, and what the steps alone take of the floor."""
    envs = gym.make_vec("PrefAcquire-v0", num_envs=256, world="default")
    envs.reset(seed=0)
    names = ("draw", "observe", "label", "update", "step", "evaluate")
    steps: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    products: list[float] = []
    rate = floor(prefenv.world_settings("default"), 256)
    for index in range(220):
        if index % 44 == 0:
            products.append(1e6 / rate(seconds / TURNS))
        start = time.perf_counter()
        *_, info = envs.step(envs.action_space.sample())
        whole = time.perf_counter() - start
        parts = {name: getattr(info["seconds"][0], name) for name in names}
        steps[bool(info["spent"][0] == 0)].append(parts | {"rest": whole - sum(parts.values())})
    print("\nwhere the time goes: default, B = 256, us an environment step")
    for resets, rows in steps.items():
        mean = {name: 1e6 / 256 * statistics.median(row[name] for row in rows) for name in (*names, "rest")}
        line = ", ".join(f"{name} {value:.1f}" for name, value in mean.items())
        print(f"{'resets' if resets else 'steps':7} {sum(mean.values()):6.1f}: {line}")
        if not resets:
            print(f"        x {sum(mean.values()) / statistics.median(products):.2f} of the floor in the same turns")


def memory() -> None:
    """Print the memory of B = 256 worlds of default, and of an episode of 10,000 rounds."""
    for what, code in MEMORY.items():
        done = subprocess.run([sys.executable, "-c", PEAK + code], capture_output=True, text=True, check=True)
        print(f"{what}: {done.stdout.strip()}")


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", help="a checkout of another version")
    parser.add_argument("--seconds", type=float, default=2.0, help="to measure each rate for")
    arguments = parser.parse_args()
    for world in ("default", "active-ultrafeedback"):
        table(world, arguments.seconds, arguments.baseline)
    growth(arguments.seconds)
    shares(arguments.seconds)
    print()
    memory()


if __name__ == "__main__":
    main()
