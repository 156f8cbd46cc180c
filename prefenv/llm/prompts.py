"""Prompts: openings of reviews, and how an episode deals them out. Imports nothing heavy."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prefenv.protocols import State
from prefenv.types import IntArray

N_OPENINGS = 400  # enough for 64 held out and 20 rounds of 16 without a repeat
OPENINGS_SEED = 0

# Subjects and unfinished openings. None says whether the review is good or bad: that is left to the model.
TEMPLATES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("kettle", "vacuum cleaner", "desk lamp", "coffee grinder", "backpack", "blender", "keyboard", "tent",
     "alarm clock", "garden hose", "office chair", "phone case"): (
        "I have used this {0} for about a month now, and",
        "I bought the {0} to replace my old one. So far it",
        "The {0} arrived on a Tuesday. My first impression was",
        "After three weeks with this {0}, I would say that",
        "My sister asked me what I think of the {0}. I told her",
        "Here is what happened when I tried the {0}: it",
    ),
    ("comedy", "thriller", "documentary", "war film", "romance", "horror film", "western", "animated film",
     "courtroom drama", "science fiction film"): (
        "We went to see the new {0} last night. The story",
        "This {0} runs for two hours. The acting was",
        "The director's second {0} opens in a small town, and the plot",
        "I watched the {0} twice before writing this. In the end, I",
        "People keep asking me about this {0}. Honestly, it",
        "The last scene of the {0} made me feel",
    ),
    ("ramen bar", "pizzeria", "steak house", "bakery", "tapas bar", "noodle shop", "fish restaurant", "cafe",
     "burger place", "vegan canteen"): (
        "We had dinner at the {0} near the station. The food",
        "The {0} on the corner has a new owner. The service was",
        "I took my parents to this {0} on Sunday. The waiter",
        "Our table at the {0} was by the window. The soup tasted",
        "It was my second visit to the {0}. This time, everything",
        "When the bill came at the {0}, we felt",
    ),
    ("novel", "biography", "cookbook", "crime story", "travel guide", "short story collection", "memoir",
     "fantasy novel", "play script"): (
        "This {0} follows two sisters over one summer. The writing is",
        "I finished the {0} on the train this morning. I thought it was",
        "Our book club read the {0} in May. Most of us",
        "The {0} has three hundred pages, and reading it felt",
        "The author's first {0} came out last year. The chapters",
    ),
    ("hotel", "hostel", "guest house", "holiday flat", "campsite", "mountain lodge", "houseboat", "motel",
     "farm stay"): (
        "We stayed at the {0} for two nights. The room was",
        "The {0} lies ten minutes from the beach. The staff",
        "We reached the {0} late in the evening, and the reception",
        "I booked the {0} for a family weekend. The children",
        "What I remember most about the {0} is",
    ),
    ("phone", "laptop", "camera", "tablet", "pair of headphones", "printer", "smart watch", "e-reader",
     "router", "game console"): (
        "I switched to this {0} in spring. The battery",
        "The {0} comes in a plain box. Setting it up was",
        "My colleague lent me the {0} for a week. Using it every day was",
        "Compared with last year's model, this {0} is",
        "The screen of this {0} is the first thing you notice. It looks",
    ),
    ("album", "concert", "musical", "play", "opera", "ballet", "podcast", "exhibition", "radio drama",
     "street festival"): (
        "I did not know what to expect from this {0}. It turned out to be",
        "The {0} lasted longer than I had planned for. By the end, the audience",
        "My friend gave me a ticket for the {0}. Afterwards we",
        "The second half of the {0} was",
        "Much has been written about the {0} already. I found it",
    ),
    ("dentist", "language course", "gym", "hairdresser", "car repair shop", "bicycle rental", "moving company",
     "tailor", "vet"): (
        "I went to this {0} for the first time on Friday. The people there",
        "A neighbour told me about the {0}. My experience was",
        "I have been a customer of this {0} for a year, and they",
        "The {0} called me back within a day. What followed was",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Prompt:
    """An opening that a response continues.

    Attributes:
        id: its number in the list it was read from; every text written for it carries this number.
        text: the opening, without white space at its end.
    """

    id: int
    text: str


def review_openings(n: int = N_OPENINGS, seed: int = OPENINGS_SEED) -> list[Prompt]:
    """N different review openings, the same ones for the same seed.

    >>> len({opening.text for opening in review_openings()})
    400

    Raises:
        ValueError: the templates do not make so many.
    """
    texts = [
        template.format(subject)
        for subjects, templates in TEMPLATES.items()
        for subject, template in itertools.product(subjects, templates)
    ]
    if n > len(texts):
        raise ValueError(f"n={n} openings, but the templates make {len(texts)}: pass a prompt file with more")
    order = np.random.default_rng(seed).permutation(len(texts))[:n]
    return [Prompt(number, texts[index]) for number, index in enumerate(order)]


def read_prompts(path: str | Path) -> list[Prompt]:
    """The prompts of a file: one a line, or JSON Lines with a text under "prompt". A repeated one counts once.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no prompt, or a line cannot be read.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"prompt file '{path}' does not exist: pass a text file with one prompt a line")
    try:
        content = file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"prompt file '{path}' is not UTF-8: save it as UTF-8. {error}") from error
    # other line ends may stand inside JSON texts
    lines = [(number, line.strip()) for number, line in enumerate(content.split("\n"), start=1)]
    is_json = file.suffix in (".jsonl", ".json")
    texts = [_json_prompt(file, number, line) if is_json else line for number, line in lines if line]
    unique = dict.fromkeys(text for text in texts if text)
    if not unique:
        raise ValueError(f"prompt file '{path}' is empty: it needs one prompt a line")
    return [Prompt(number, text) for number, text in enumerate(unique)]


def _json_prompt(file: Path, number: int, line: str) -> str:
    way_out = f'line {number} of \'{file}\' must be a JSON object like {{"prompt": "We had dinner at"}}'
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{way_out}: {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise ValueError(way_out)
    return str(row["prompt"]).strip()


class PromptDeck:
    """Which prompts an episode trains on, in which order, and which ones it holds out.

    One shuffle at ``reset``: the first ``n_eval`` are held out, the others are dealt without a repeat until all have
    been, then shuffled anew. A deal never holds a prompt twice.

    Args:
        prompts: all there are.
        n_eval: prompts held out.
        n_deal: prompts in a deal.

    Raises:
        ValueError: too few prompts for both.
    """

    def __init__(self, prompts: Sequence[Prompt], n_eval: int, n_deal: int) -> None:
        if n_eval + n_deal > len(prompts):
            raise ValueError(
                f"n_prompts={n_deal} and n_eval_prompts={n_eval} need {n_eval + n_deal} prompts, but there are "
                f"{len(prompts)}: lower one of them, or pass a longer prompt_file"
            )
        self._by_id = {prompt.id: prompt for prompt in prompts}
        self._n_eval, self._n_deal = n_eval, n_deal
        self.reset(np.random.default_rng())

    def reset(self, rng: np.random.Generator) -> None:
        """Shuffle and hold out. The deck shares ``rng`` with its owner."""
        self._rng = rng
        order = rng.permutation(np.array(sorted(self._by_id), dtype=np.int64))
        self._held_out, self._order, self._position = order[: self._n_eval], order[self._n_eval :], 0

    @property
    def held_out(self) -> list[Prompt]:
        """The episode's evaluation prompts."""
        return self.by_id(self._held_out)

    def by_id(self, ids: IntArray) -> list[Prompt]:
        """The prompts with these numbers."""
        return [self._by_id[int(number)] for number in ids]

    def deal(self) -> list[Prompt]:
        """The next ``n_deal`` training prompts."""
        taken = self._order[self._position : self._position + self._n_deal]
        self._position += len(taken)
        missing = self._n_deal - len(taken)
        if missing:
            shuffled = self._rng.permutation(self._order)
            used = np.isin(shuffled, taken)
            self._order = np.concatenate([shuffled[~used], shuffled[used]])
            taken, self._position = np.concatenate([taken, self._order[:missing]]), missing
        return self.by_id(taken)

    def state_dict(self) -> State:
        """What is held out, the order, and how much of it has been dealt. The owner saves the generator."""
        return {"held_out": self._held_out.copy(), "order": self._order.copy(), "position": self._position}

    def load_state_dict(self, state: State) -> None:
        """Restore."""
        self._held_out, self._order = state["held_out"].copy(), state["order"].copy()
        self._position = int(state["position"])
