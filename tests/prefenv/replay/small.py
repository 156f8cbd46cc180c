"""A small table with its features, for tests of what runs on one."""

from pathlib import Path

import numpy as np

from prefenv.replay.features import EmbeddingSettings, FeatureWriter
from prefenv.replay.surface import SURFACE, surface_features
from prefenv.replay.table import PoolTable, TableWriter

D = 5
GENERATORS = ("ada", "bo", "cy", "dee", "eve")


def make_table(folder: Path, n: int = 40, seed: int = 0, twice: bool = False) -> Path:
    """n prompts with two to five candidates; the score is the first embedding coordinate, less some of the second.

    ``twice`` gives every second prompt the text of the one before it.
    """
    rng = np.random.default_rng(seed)
    path = folder / "pools.parquet"
    embeddings, texts = [], []
    with TableWriter(path, ("score", "other", "safe")) as writer:
        for prompt in range(n):
            candidates = []
            who = rng.permutation(len(GENERATORS))[: rng.integers(2, len(GENERATORS) + 1)]
            for generator in who:
                embedding = rng.standard_normal(D).astype(np.float16)
                response = f"r{prompt} " + "word " * int(rng.integers(1, 30))
                score = float(embedding[0] - 0.5 * embedding[1] + 0.1 * generator)
                numbers = {"score": score, "other": score + 0.1 * rng.standard_normal(), "safe": float(-embedding[0])}
                candidates.append({"generator": GENERATORS[generator], "response": response, **numbers})
                embeddings.append(embedding)
                texts.append(response)
            text = f"prompt {prompt - prompt % 2 if twice else prompt} 🙂"
            writer.add(f"id{prompt}", text, candidates)
    table = PoolTable.open(path)
    with FeatureWriter(table, EmbeddingSettings("made up"), D) as features:
        features.append(np.array(embeddings), surface_features([""] * len(texts), texts))
    assert SURFACE[0] == "log_length"
    return path
