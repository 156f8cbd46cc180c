"""The sentiment reward and the judge who does not label."""

from __future__ import annotations

import numpy as np
import pytest

from prefenv.llm.rewards import DistinctWordSentiment, Sentiment, distinct_words


def test_sentiment_orders_texts() -> None:
    reward = Sentiment()(["a wonderful, lovely place", "a table", "an awful, horrible place"])
    assert reward.dtype == np.float32
    assert reward[0] > reward[1] == 0.0 > reward[2]
    assert np.all(np.abs(reward) <= 1.0)
    assert Sentiment()([]).shape == (0,)


def test_repeated_praise_pays_once() -> None:
    second = DistinctWordSentiment(Sentiment())
    once, often = "It was great", "It was great, great, GREAT!!!"
    assert Sentiment()([often]) > Sentiment()([once])
    assert second([often]) == second([once])
    assert second(["great and lovely"]) > second(["great"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", ""), ("so, so good", "so good"), ("don't do, don't", "don't do"), ("Schön schön", "Schön"), ("!?", "")],
)
def test_distinct_words(text: str, expected: str) -> None:
    assert distinct_words(text) == expected
