"""Rewards of a text: the sentiment that labels go by, and a second judge who does not label."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from prefenv.llm.models import INSTALL_HINT
from prefenv.llm.pool import TextPool
from prefenv.types import FloatArray, Pool

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


class TextReward(Protocol):
    """Texts → (N,) float32 rewards, larger is better."""

    def __call__(self, texts: Sequence[str]) -> FloatArray:
        """The reward of each text."""


class Sentiment:
    """VADER's compound sentiment in [-1, 1] of the continuation alone [Hutto and Gilbert 2014].

    The opening is left out: it is the same for all candidates of a prompt, and VADER's sum saturates, so a loaded
    opening would only shrink the differences.

    Raises:
        ImportError: vaderSentiment is not installed.
    """

    def __init__(self) -> None:
        try:
            from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
        except ImportError as error:
            raise ImportError(f"the sentiment reward needs vaderSentiment: {INSTALL_HINT}") from error
        self._analyzer = SentimentIntensityAnalyzer()

    def __call__(self, texts: Sequence[str]) -> FloatArray:
        """(N,) float32 in [-1, 1]."""
        return np.array([self._analyzer.polarity_scores(text)["compound"] for text in texts], dtype=np.float32)


def distinct_words(text: str) -> str:
    """Each distinct word once, at its first place, without punctuation.

    >>> distinct_words("Great, great! It was GREAT and it was warm")
    'Great It was and warm'
    """
    first: dict[str, str] = {}
    for word in WORD.findall(text):
        first.setdefault(word.lower(), word)
    return " ".join(first.values())


class DistinctWordSentiment:
    """The second judge: sentiment of the text with each distinct word counted once.

    Praise that is repeated, and exclamation marks, pay nothing here. A policy whose win rate by the labels' reward
    rises while this one stays has learned to repeat itself.

    Args:
        sentiment: of the shortened text.
    """

    def __init__(self, sentiment: TextReward) -> None:
        self._sentiment = sentiment

    def __call__(self, texts: Sequence[str]) -> FloatArray:
        """(N,) float32 in [-1, 1]."""
        return self._sentiment([distinct_words(text) for text in texts])


class PoolReward:
    """A text reward as the score of a pool.

    Args:
        reward: of a text.
    """

    def __init__(self, reward: TextReward) -> None:
        self._reward = reward

    def __call__(self, pool: Pool) -> FloatArray:
        """(n, m) float32.

        Raises:
            TypeError: the pool carries no texts.
        """
        if not isinstance(pool, TextPool):
            raise TypeError(f"a text reward needs a TextPool, got {type(pool).__name__}")
        n, m = pool.n_prompts, pool.n_candidates
        return self._reward([pool.candidate(i, j).text for i in range(n) for j in range(m)]).reshape(n, m)
