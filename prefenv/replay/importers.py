"""Importers: each finds the candidates of one kind of source, good and broken. `cleaning.write_pools` does the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from prefenv.replay.conversations import preference, prompt_text
from prefenv.replay.sources import BATCH_ROWS, RECORD_ROWS, Batch
from prefenv.replay.staging import Candidates

ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")
RATING = ("Rating", "rating", "score", "Score")  # of an aspect, where it is an object
OVERALL = ("overall_score", "fine-grained_score")
UNKNOWN = "unknown"  # generator of a response that may be anyone's


class Source(Protocol):
    """Rows from files or from a hub."""

    def batches(self, columns: Sequence[str], optional: Sequence[str] = (), size: int = RECORD_ROWS) -> Iterable[Batch]:
        """The rows in order, with these columns, and those of the optional ones that there are."""
        ...


class _Found:
    """Candidates of a batch, collected one by one."""

    def __init__(self, batch: Batch) -> None:
        self._file, self._row = batch.file, list[int]()
        self._texts: dict[str, list[Any]] = {name: [] for name in ("prompt_id", "prompt", "generator", "response")}
        self._scores: dict[str, list[Any]] = {}

    def add(
        self, row: int, prompt_id: object, prompt: object, generator: object, response: object, **scores: object
    ) -> None:
        for name in scores:
            self._scores.setdefault(name, [None] * len(self._row))
        self._row.append(row)
        for values, value in zip(self._texts.values(), (prompt_id, prompt, generator, response), strict=True):
            values.append(value)
        for name, values in self._scores.items():
            values.append(scores.get(name))

    def candidates(self) -> Candidates:
        return Candidates(file=self._file, row=self._row, scores=self._scores, **self._texts)


def ultrafeedback(source: Source) -> Iterator[Candidates]:
    """Candidates of `openbmb/UltraFeedback`: instruction, completions with model, response and annotations.

    Scores: overall_score, fine-grained_score, and the ratings of the four aspects, all of which may be text.
    """
    return _completions(source, prompt="instruction", prompt_id=None, response="response")


def active_ultrafeedback(source: Source) -> Iterator[Candidates]:
    """Candidates of ActiveUltraFeedback's `full` tables: prompt_id, prompt, completions with model and response_text.

    Scores: overall_score, which is text, and one for each aspect in the annotations.
    """
    return _completions(source, prompt="prompt", prompt_id="prompt_id", response="response_text")


def _completions(source: Source, prompt: str, prompt_id: str | None, response: str) -> Iterator[Candidates]:
    """A row for each prompt, with a list of all that was written for it."""
    known = False
    for batch in source.batches([prompt, "completions", *([prompt_id] if prompt_id else [])]):
        found = _Found(batch)
        for row, record in zip(batch.row.tolist(), batch.records(), strict=True):
            name = record.get(prompt_id) if prompt_id else None
            text = prompt_text(record.get(prompt))
            for completion in _listed(record.get("completions")):
                known = known or response in completion
                found.add(
                    row, name, text, completion.get("model"), completion.get(response), **_overall(completion),
                    **_aspects(completion.get("annotations")),
                )  # fmt: skip
        if not known:
            raise ValueError(f"{batch.file}: no completion has a '{response}': this is a source of another kind")
        yield found.candidates()


def _listed(completions: object) -> list[dict[str, Any]]:
    """The completions; what is none is an empty one, which will be counted as broken."""
    if not isinstance(completions, list):
        return [{}]
    return [completion if isinstance(completion, dict) else {} for completion in completions] or [{}]


def _overall(completion: dict[str, Any]) -> dict[str, object]:
    return {name: completion[name] for name in OVERALL if name in completion}


def _aspects(annotations: object) -> dict[str, object]:
    """Aspect → its rating, a number or a text.

    >>> _aspects({"honesty": {"Rating": "4", "Rationale": "…"}, "helpfulness": 3.5, "critique": None})
    {'honesty': '4', 'helpfulness': 3.5}
    """
    if not isinstance(annotations, dict):
        return {}
    found = {name: _rating(annotations[name]) for name in ASPECTS if name in annotations}
    return {name: value for name, value in found.items() if value is not None}


def _rating(value: object) -> object:
    if isinstance(value, dict):
        return next((value[name] for name in RATING if name in value), None)
    return value


def preferences(source: Source) -> Iterator[Candidates]:
    """Two candidates for each row of chosen and rejected, in the order of their texts, by an unknown generator.

    Neither order nor generator may tell which one is chosen: whoever acquires labels sees both.

    Any set that TRL takes: prompt, chosen and rejected as texts or as lists of messages, or chosen and rejected that
    both begin with the prompt, as in HH-RLHF.

    Scores: score, 1 for the chosen one and 0 for the other, and given_score, from score_chosen and score_rejected.
    """
    optional = ("prompt", "prompt_id", "score_chosen", "score_rejected")
    for batch in source.batches(["chosen", "rejected"], optional):
        found = _Found(batch)
        for row, record in zip(batch.row.tolist(), batch.records(), strict=True):
            prompt, responses = preference(record.get("prompt"), record.get("chosen"), record.get("rejected"))
            sides = zip(("chosen", "rejected"), responses, (1.0, 0.0), strict=True)
            for name, response, score in sorted(sides, key=lambda side: side[1] or ""):
                given = record.get(f"score_{name}")
                scores = {"score": score} if given is None else {"score": score, "given_score": given}
                found.add(row, record.get("prompt_id"), prompt, UNKNOWN, response, **scores)
        yield found.candidates()


def table(
    source: Source,
    prompt: str = "prompt",
    response: str = "response",
    generator: str | None = "generator",
    prompt_id: str | None = None,
    scores: Sequence[str] = ("score",),
) -> Iterator[Candidates]:
    """A candidate for each row of a plain table with named columns; the candidates of a prompt may stand apart.

    Args:
        source: of the rows.
        prompt: column.
        response: column.
        generator: column, or None where the table does not say who wrote.
        prompt_id: column, or None: ids are made from the prompts.
        scores: columns, the main one first.

    Raises:
        ValueError: there is no such column, or no score was named.
    """
    if not scores:
        raise ValueError("name at least one score column")
    named = [name for name in (prompt_id, generator) if name is not None]
    for batch in source.batches([*dict.fromkeys([prompt, response, *named, *scores])], size=BATCH_ROWS):
        none = [None] * len(batch.row)
        yield Candidates(
            file=batch.file,
            row=batch.row,
            prompt_id=none if prompt_id is None else batch.column(prompt_id),
            prompt=batch.column(prompt),
            generator=none if generator is None else batch.column(generator),
            response=batch.column(response),
            scores={name: batch.column(name) for name in scores},
        )
