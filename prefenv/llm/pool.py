"""A pool that carries its texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prefenv.llm.features import Candidate
from prefenv.llm.prompts import Prompt
from prefenv.types import Pool, Preferences


@dataclass(frozen=True, eq=False)
class TextPool(Pool):
    """A pool with its prompts and the texts of its candidates.

    Attributes:
        prompts: n, in the order of ``prompt_id``.
        candidates: n × m.

    Raises:
        ValueError: the prompts are not those of ``prompt_id``, or the candidates are not n × m.
    """

    prompts: tuple[Prompt, ...]
    candidates: tuple[tuple[Candidate, ...], ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if [prompt.id for prompt in self.prompts] != self.prompt_id.tolist():
            raise ValueError("the prompts of a pool must be those of prompt_id, in order")
        if [len(row) for row in self.candidates] != [self.n_candidates] * self.n_prompts:
            raise ValueError(f"a pool needs {self.n_candidates} texts for each of {self.n_prompts} prompts")

    def candidate(self, prompt: int, index: int) -> Candidate:
        """Candidate ``index`` of the prompt in row ``prompt``.

        Raises:
            ValueError: the text was written for another prompt.
        """
        found = self.candidates[prompt][index]
        if found.prompt_id != self.prompts[prompt].id:
            raise ValueError(
                f"candidate {index} in row {prompt} was written for prompt {found.prompt_id}, "
                f"but the row is prompt {self.prompts[prompt].id}"
            )
        return found

    def rows(self, preferences: Preferences) -> list[dict[str, Any]]:
        """TRL's preference rows: ``prompt_id``, ``prompt`` (the opening), ``chosen`` and ``rejected`` (continuations).

        Raises:
            ValueError: a text was written for another prompt than its row's.
        """
        return [
            {
                "prompt_id": self.prompts[prompt].id,
                "prompt": self.prompts[prompt].text,
                "chosen": self.candidate(prompt, chosen).text,
                "rejected": self.candidate(prompt, rejected).text,
            }
            for prompt, chosen, rejected in zip(
                preferences.prompt.tolist(), preferences.chosen.tolist(), preferences.rejected.tolist(), strict=True
            )
        ]
