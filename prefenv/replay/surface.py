"""Surface features of a response: named numbers that its text shows at a glance, and much of what judges prefer."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefenv.types import FloatArray

SURFACE = (
    "log_length",
    "sentences",
    "line_breaks",
    "list_marks",
    "headings_and_bold",
    "code_fences",
    "prompt_overlap",
    "distinct_words",
    "questions",
    "numbers",
    "capitals",
)

HAN = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")  # and kana: no spaces between words
MARKS = "\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0963\u0966-\u0dff\u0e31-\u0ebd"  # vowel signs, accents
GAP = re.compile(rf"[^\w\x00-\x7f{MARKS}]+")  # between words, but for ASCII
LOWER = bytes(code if code > 127 or chr(code).isalnum() or chr(code) == "_" else 32 for code in range(256)).lower()
SENTENCE_END = r"""[.!?…]+["'”’)\]*_]*(?:\s|$)|[。！？।]"""
LIST_MARK = r"\n[ \t]*(?:[-*+•]|[0-9]{1,3}[.)])[ \t]"
HEADING_OR_BOLD = r"\n#{1,6}[ \t]|\*\*[^*\n]+\*\*"


def surface_features(prompts: Sequence[str], responses: Sequence[str]) -> FloatArray:
    r"""(k, F) float32 of k responses, each with its prompt; the columns are those of ``SURFACE``.

    A word is a run of letters, digits and underscores, without regard to case; in Chinese and Japanese, each character.

    - ``log_length``: log(1 + words).
    - ``sentences``: log(1 + ends of sentences), a full stop, question or exclamation mark before a space or the end.
    - ``line_breaks``: log(1 + line breaks).
    - ``list_marks``: log(1 + lines that begin with a bullet or with a number and a stop or bracket).
    - ``headings_and_bold``: log(1 + lines that begin with # and a space, and stretches in double asterisks).
    - ``code_fences``: log(1 + triple backquotes).
    - ``prompt_overlap``: share of the response's distinct words that are in the prompt; 0 without words.
    - ``distinct_words``: distinct words over words; 0 without words.
    - ``questions``: log(1 + question marks).
    - ``numbers``: log(1 + runs of digits).
    - ``capitals``: share of the characters that are capitals; 0 without characters.

    Example:
        >>> values = surface_features(["Name two fruits."], ["Two fruits:\n- apple\n- Fig"])[0]
        >>> dict(zip(SURFACE, values.round(2).tolist()))["prompt_overlap"]  # two, fruits of two, fruits, apple, fig
        0.5
        >>> np.expm1(values[[0, 3]]).round().tolist()  # words, list marks
        [4.0, 2.0]
    """
    counts = np.empty((len(responses), 3))
    before, asked = None, frozenset[bytes]()
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        if prompt != before:
            before, asked = prompt, frozenset(_words(prompt))
        words = _words(response)
        distinct = set(words)
        counts[row] = len(words), len(distinct), len(asked & distinct)
    (words_, distinct_, common), text = counts.T, pa.array(responses, pa.large_string())
    lines = pa.array(["\n" + response for response in responses], pa.large_string())
    return np.column_stack(
        [
            np.log1p(words_),
            _log_count(text, SENTENCE_END),
            _log_count(text, "\n"),
            _log_count(lines, LIST_MARK),
            _log_count(lines, HEADING_OR_BOLD),
            _log_count(text, "```"),
            common / np.maximum(distinct_, 1),
            distinct_ / np.maximum(words_, 1),
            _log_count(text, "[?？؟]"),
            _log_count(text, r"\p{Nd}+"),
            _count(text, r"\p{Lu}") / np.maximum(pc.utf8_length(text).to_numpy(zero_copy_only=False), 1),
        ]
    ).astype(np.float32)


def _words(text: str) -> list[bytes]:
    """Words in lower case, in UTF-8: bytes are split three times as fast as text."""
    if not text.isascii():
        text = HAN.sub(r" \g<0> ", GAP.sub(" ", text.lower()))
    return text.encode().translate(LOWER).split()


def _count(text: pa.LargeStringArray, pattern: str) -> FloatArray:
    return pc.count_substring_regex(text, pattern).to_numpy(zero_copy_only=False)


def _log_count(text: pa.LargeStringArray, pattern: str) -> FloatArray:
    return np.log1p(_count(text, pattern))
