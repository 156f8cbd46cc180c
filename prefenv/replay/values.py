"""Columns of a source made into text and numbers. What is none is told apart, never guessed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefenv.types import BoolArray, FloatArray

FINE, MISSING, UNREADABLE, NOT_FINITE = range(4)
ABSENT = frozenset({"", "n/a", "na", "none", "null"})  # what a judge or an export writes where there is no number
Values: TypeAlias = Sequence[Any] | pa.Array | pa.ChunkedArray


def texts(name: str, values: Values) -> pa.LargeStringArray:
    r"""The values as text, null where one is none; whole numbers, which ids may be, are written out.

    >>> texts("prompt_id", ["a", 7, None, ["b"], "\ud83d"]).to_pylist()
    ['a', '7', None, None, None]

    Raises:
        ValueError: a column of a table holds something else than text or whole numbers.
    """
    if not isinstance(values, pa.Array | pa.ChunkedArray):
        try:
            return pa.array(values, pa.large_string())
        except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError):
            return pa.array([_text(value) for value in values], pa.large_string())
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not (text or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise ValueError(f"column '{name}' holds {kind}, not text: name another column")
    return _whole(values.cast(pa.large_string()))


def numbers(name: str, values: Values) -> tuple[FloatArray, NDArray[np.uint8]]:
    """The values as (n,) float64, NaN where one is none, and (n,) uint8 why: FINE, MISSING, UNREADABLE or NOT_FINITE.

    >>> numbers("score", ["4", " 2.5 ", "N/A", None, "four", "nan", 3])
    (array([4. , 2.5, nan, nan, nan, nan, 3. ]), array([0, 0, 1, 1, 2, 3, 0], dtype=uint8))

    Raises:
        ValueError: a column of a table holds neither numbers nor text.
    """
    if not isinstance(values, pa.Array | pa.ChunkedArray):
        try:
            values = pa.array(values, pa.float64())
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            return _one_by_one(values)
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        try:
            read = values.cast(pa.large_string()).cast(pa.float64())
        except pa.ArrowInvalid:
            return _one_by_one(values.to_pylist())
    elif pa.types.is_nested(kind) or pa.types.is_temporal(kind) or pa.types.is_binary(kind):
        raise ValueError(f"column '{name}' holds {kind}, not numbers: name another column")
    else:
        read = values.cast(pa.float64(), safe=False)
    read = _whole(read)
    found = read.to_numpy(zero_copy_only=False).astype(np.float64)
    why = np.where(np.isfinite(found), FINE, NOT_FINITE).astype(np.uint8)
    why[read.is_null().to_numpy(zero_copy_only=False)] = MISSING
    return np.where(why == FINE, found, np.nan), why


def blank(values: pa.LargeStringArray) -> BoolArray:
    r"""(n,) whether there is nothing but white space.

    >>> blank(pa.array(["a", " \n", "", None], pa.large_string())).tolist()
    [False, True, True, True]
    """
    empty = pc.equal(pc.binary_length(pc.utf8_trim_whitespace(values)), 0)
    return pc.fill_null(empty, True).to_numpy(zero_copy_only=False)


def _whole(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def _text(value: object) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        return None
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a character, which no UTF-8 file can hold
        return None
    return value


def _one_by_one(values: Sequence[Any]) -> tuple[FloatArray, NDArray[np.uint8]]:
    read = [_number(value) for value in values]
    return np.array([number for number, _ in read]), np.array([why for _, why in read], dtype=np.uint8)


def _number(value: object) -> tuple[float, int]:
    if value is None or (isinstance(value, str) and value.strip().lower() in ABSENT):
        return np.nan, MISSING
    if not isinstance(value, str | int | float) or (isinstance(value, str) and "_" in value):
        return np.nan, UNREADABLE
    try:
        number = float(value)
    except ValueError:
        return np.nan, UNREADABLE
    except OverflowError:
        return np.nan, NOT_FINITE
    return (number, FINE) if np.isfinite(number) else (np.nan, NOT_FINITE)
