"""The trained pair scorer as a score: weights from a safetensors file, arithmetic in NumPy, no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from agents.learned.features import EVEN, FEATURES, ODD, pair_features
from agents.scores import FloatArray, Observation, Score

FORMAT = "prefenv-pair-scorer-2"
SHIPPED = Path(__file__).parent / "learned.safetensors"
HIDDEN = 64  # units a layer
SHAPES: dict[str, tuple[int, ...]] = {
    "odd.weight": (HIDDEN, len(ODD)), "even.weight": (HIDDEN, len(EVEN)), "even.bias": (HIDDEN,),
    "middle.weight": (HIDDEN, HIDDEN), "middle.bias": (HIDDEN,), "last.weight": (1, HIDDEN),
    "pool.0.weight": (HIDDEN, 2 * len(FEATURES)), "pool.0.bias": (HIDDEN,),
    "pool.2.weight": (HIDDEN, HIDDEN), "pool.2.bias": (HIDDEN,),
}  # fmt: skip
"""Of a file's tensors; those of ``pool`` estimate values in training, and choosing does not read them."""
Weights = Mapping[str, NDArray[np.float32]]


def pair_logits(features: NDArray[np.float32], weights: Weights) -> NDArray[np.float32]:
    """(..., P) logits of (..., P, F) pair features.

    With o and e the odd and the even features of a pair, ``h(o, e) = relu(M relu(O o + E e + b) + c)`` and the logit is
    ``v · (h(o, e) + h(-o, e))``: the same in either order of the two candidates.

    Args:
        features: as :func:`agents.learned.features.pair_features` has them.
        weights: ``odd.weight`` (H, odd), ``even.weight`` (H, even), ``even.bias`` (H,), ``middle.weight`` (H, H),
            ``middle.bias`` (H,), ``last.weight`` (1, H); float32.
    """
    odd = features[..., : len(ODD)] @ weights["odd.weight"].T
    even = features[..., len(ODD) : len(ODD) + len(EVEN)] @ weights["even.weight"].T + weights["even.bias"]
    logits: NDArray[np.float32] = np.zeros(features.shape[:-1], dtype=np.float32)
    for turned in (even + odd, even - odd):
        hidden = np.maximum(turned, 0.0) @ weights["middle.weight"].T + weights["middle.bias"]
        logits += (np.maximum(hidden, 0.0) @ weights["last.weight"].T)[..., 0]
    return logits


def read_weights(path: str | Path) -> dict[str, NDArray[np.float32]]:
    """Read weights; nothing is unpickled.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not weights of this network.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at '{path}': `prefenv train --out FOLDER` writes FOLDER/ppo.safetensors")
    try:
        with safe_open(str(path), framework="np") as file:
            note = (file.metadata() or {}).get("prefenv", "{}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except SafetensorError as error:
        raise ValueError(f"'{path}' is no safetensors file: {error}") from error
    if not _is_ours(note) or {name: value.shape for name, value in tensors.items()} != SHAPES:
        raise ValueError(f"'{path}' holds no weights of format {FORMAT} with this package's features: "
                         "train again with `prefenv train`")  # fmt: skip
    return tensors


def _is_ours(note: str) -> bool:
    """Whether a file's metadata say that it is of this format and these features."""
    try:
        about = json.loads(note)
    except json.JSONDecodeError:
        return False
    return isinstance(about, dict) and (about.get("format"), about.get("features")) == (FORMAT, list(FEATURES))


def load_score(path: str | Path = SHIPPED) -> Score:
    """The score of saved weights, so that selection takes the likeliest pair; errors as in :func:`read_weights`."""
    weights = read_weights(path)

    def score(observation: Observation, rng: np.random.Generator) -> FloatArray:
        return pair_logits(pair_features(observation), weights).astype(np.float64)

    return score
