"""How long a comparison on a table takes: 12 methods, 10 seeds, 20 rounds, on 800 prompts of 20 candidates, d = 384.

    python benchmarks/replay.py

The table is made up on the spot. A million rows are opened besides, to see that opening does not read them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the command line sets it

import numpy as np

from experiments.compare import CompareConfig, compare
from prefenv.replay.data import ReplayData
from prefenv.replay.features import EmbeddingSettings, FeatureWriter
from prefenv.replay.settings import ReplaySettings
from prefenv.replay.surface import surface_features
from prefenv.replay.table import PoolTable, TableWriter

METHODS = (
    "random", "deltaqwen", "drts", "deltaucb", "margin", "dts", "maxminlcb", "sea", "infomax", "bald", "dopt", "maxmin"
)  # fmt: skip
LIMIT = 180.0  # seconds on 2 cores
BLOCK = 20_000  # rows that are made at a time


def make_up(path: Path, prompts: int, candidates: int, d: int) -> None:
    """A table whose score is a direction of the embedding."""
    rng = np.random.default_rng(0)
    with TableWriter(path, ("score",)) as writer:
        for prompt in range(prompts):
            score = np.random.default_rng((1, prompt)).standard_normal(candidates)
            writer.add(
                f"{prompt}",
                f"prompt {prompt}",
                [
                    {"generator": f"g{i:02}", "response": f"answer {i} " * (5 + i), "score": score[i]}
                    for i in range(candidates)
                ],
            )
    table = PoolTable.open(path)
    score = table.column("score")
    with FeatureWriter(table, EmbeddingSettings("made up"), d) as features:
        for start in range(0, table.n_rows, BLOCK):
            rows = np.arange(start, min(start + BLOCK, table.n_rows))
            embedding = rng.standard_normal((len(rows), d), dtype=np.float32) / np.sqrt(d)
            embedding[:, 0] += score[rows] / np.sqrt(d)
            texts = ["word " * (5 + int(row) % candidates) for row in rows]
            features.append(embedding, surface_features([""] * len(texts), texts))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", type=int, default=1_000_000, help="rows of the large table; 0 leaves it out")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pools.parquet"
        make_up(path, 800, 20, 384)
        start = time.perf_counter()
        with contextlib.redirect_stdout(open(os.devnull, "w")):
            code = compare(CompareConfig(
                world=("replay",), agents=METHODS, seeds=10, rounds=20, pools=path, out=Path(folder) / "out",
            ))  # fmt: skip
        seconds = time.perf_counter() - start
        steps = len(METHODS) * 10 * 20
        what = "12 methods x 10 seeds x 20 rounds on 800 x 20 x 384"
        print(f"{what}: {seconds:.0f} s (exit {code}), {1e3 * seconds / steps:.1f} ms a round; "
              f"{seconds / LIMIT:.2f} of the {LIMIT:.0f} s allowed")  # fmt: skip
        if arguments.large:
            large = Path(folder) / "large.parquet"
            make_up(large, arguments.large // 20, 20, 64)
            start = time.perf_counter()
            data = ReplayData.open(ReplaySettings(pools=str(large)))
            print(f"opening {data.table.n_rows} rows: {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
