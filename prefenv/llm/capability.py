"""A small check of what the policy knows besides writing reviews."""

from __future__ import annotations

import numpy as np
from scipy.special import softmax

from prefenv.llm.capability_items import ITEMS
from prefenv.llm.generation import score_tokens
from prefenv.llm.models import LanguageModel


class Cloze:
    """Plain-knowledge sentences with two or three endings each.

    The value is the mean, over the items, of the probability of the right ending, where the probabilities of an item
    are the softmax over its endings of log-probability per token. It moves smoothly with the policy, unlike a count of
    right answers on so few items; chance is about one third. It says whether a policy has been damaged, not how able
    it is.

    Args:
        language_model: its tokenizer splits the items.
        batch_size: sequences scored side by side.
    """

    def __init__(self, language_model: LanguageModel, batch_size: int) -> None:
        self._language_model, self._batch_size = language_model, batch_size
        self._contexts: list[list[int]] = []
        self._endings: list[list[int]] = []
        self._item: list[int] = []
        for number, (beginning, endings) in enumerate(ITEMS):
            context = self._tokens(beginning)
            for ending in endings:
                whole = self._tokens(f"{beginning} {ending}.")
                self._contexts.append(context)
                self._endings.append(whole[len(context) :])
                self._item.append(number)

    def __call__(self) -> float:
        """The value in [0, 1] of the language model as it is now."""
        logprob, _ = score_tokens(self._language_model, self._contexts, self._endings, self._batch_size)
        per_token = logprob / np.array([len(ending) for ending in self._endings])
        item = np.array(self._item)
        return float(np.mean([softmax(per_token[item == number])[0] for number in range(len(ITEMS))]))

    def _tokens(self, text: str) -> list[int]:
        return [int(token) for token in self._language_model.tokenizer(text)["input_ids"]]
