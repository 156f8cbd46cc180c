"""Prompts: the built-in openings, files, and the deck."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prefenv.llm.prompts import Prompt, PromptDeck, read_prompts, review_openings


def test_openings_are_many_different_and_seeded() -> None:
    openings = review_openings()
    assert len({opening.text for opening in openings}) == len(openings) == 400
    assert [opening.id for opening in openings] == list(range(400))
    assert openings == review_openings()
    assert openings != review_openings(seed=1)
    assert all(opening.text == opening.text.strip() for opening in openings)
    with pytest.raises(ValueError, match="prompt file"):
        review_openings(n=10_000)


def test_text_and_json_lines_files(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("One\n\n  Two \nOne\n")
    assert read_prompts(text) == [Prompt(0, "One"), Prompt(1, "Two")]
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"prompt": "One"}\n{"prompt": "Zwölf", "x": 1}\n', encoding="utf-8")
    assert read_prompts(str(lines)) == [Prompt(0, "One"), Prompt(1, "Zwölf")]


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file(tmp_path: Path, content: str) -> None:
    file = tmp_path / "empty.txt"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"empty\.txt' is empty: it needs one prompt a line"):
        read_prompts(file)


@pytest.mark.parametrize("line", ['{"prompt": ', '{"text": "x"}', '["x"]', '{"prompt": 3}'])
def test_a_line_that_cannot_be_read(tmp_path: Path, line: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"prompt": "x"}\n' + line)
    with pytest.raises(ValueError, match="line 2 of"):
        read_prompts(file)


def test_a_file_that_does_not_exist(tmp_path: Path) -> None:
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            read_prompts(path)


def deal_ids(deck: PromptDeck, times: int) -> list[list[int]]:
    return [[prompt.id for prompt in deck.deal()] for _ in range(times)]


def test_a_deck_deals_all_before_it_repeats_and_never_one_twice_in_a_deal() -> None:
    deck = PromptDeck(review_openings()[:20], n_eval=3, n_deal=7)
    deck.reset(np.random.default_rng(0))
    held_out = {prompt.id for prompt in deck.held_out}
    deals = deal_ids(deck, 30)
    assert all(len(set(deal)) == 7 for deal in deals)
    assert not held_out & {number for deal in deals for number in deal}
    flat = [number for deal in deals for number in deal]
    assert len(set(flat[:17])) == 17
    counts = np.bincount(flat, minlength=20)[sorted(set(flat))]
    assert counts.max() - counts.min() <= 2
    deck.reset(np.random.default_rng(0))
    assert deal_ids(deck, 30) == deals


def test_a_deck_goes_on_from_its_state() -> None:
    rng = np.random.default_rng(0)
    deck = PromptDeck(review_openings()[:20], n_eval=3, n_deal=7)
    deck.reset(rng)
    deck.deal()
    state, generator = deck.state_dict(), rng.bit_generator.state
    expected = deal_ids(deck, 5)
    deck.load_state_dict(state)
    rng.bit_generator.state = generator
    assert deal_ids(deck, 5) == expected


def test_too_few_prompts() -> None:
    with pytest.raises(ValueError, match="need 10 prompts, but there are 9"):
        PromptDeck(review_openings(9), n_eval=3, n_deal=7)


def test_other_line_ends_and_encodings(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "one\u2028still one"}\r\n{"prompt": "two"}\n', encoding="utf-8-sig")
    assert [prompt.text for prompt in read_prompts(file)] == ["one\u2028still one", "two"]
    file.write_bytes('{"prompt": "caf\u00e9"}'.encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        read_prompts(file)
