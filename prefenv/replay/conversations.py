"""Prompts and responses out of conversations: lists of messages, and texts that begin with their prompt."""

from __future__ import annotations

ASSISTANT = "\n\nAssistant:"  # begins the assistant's turns in HH-RLHF
SPACES = " \n\t"


def preference(prompt: object, chosen: object, rejected: object) -> tuple[str | None, tuple[str | None, str | None]]:
    r"""Prompt, chosen and rejected as texts, None where there is none.

    Without a prompt of its own it is what both begin with: of messages, the messages; of texts, up to the last turn of
    the assistant that both have begun, or, where there are no turns, up to the word in which they differ. Prompt and
    response put together are then what was given.

    >>> preference(None, "\n\nHuman: hi\n\nAssistant: Hello!", "\n\nHuman: hi\n\nAssistant: What?")
    ('\n\nHuman: hi\n\nAssistant:', (' Hello!', ' What?'))
    >>> ask = {"role": "user", "content": "hi"}
    >>> preference(None, [ask, {"role": "assistant", "content": "Hello!"}], [ask])
    ('hi', ('Hello!', None))
    """
    if isinstance(chosen, list) and isinstance(rejected, list):
        begin = _shared(prompt if isinstance(prompt, list) else [], chosen, rejected)
        given = prompt if prompt is not None else chosen[:begin]
        return prompt_text(given), (_response(chosen[begin:]), _response(rejected[begin:]))
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        return prompt_text(prompt), (_single(chosen), _single(rejected))
    if prompt is not None:
        return prompt_text(prompt), (chosen, rejected)
    end = _end_of_prompt(chosen, rejected)
    return chosen[:end], (chosen[end:], rejected[end:])


def _end_of_prompt(chosen: str, rejected: str) -> int:
    same = next((at for at, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    begun = chosen[:same] if same is not None else min(chosen, rejected, key=len)
    turn = begun.rfind(ASSISTANT)
    return turn + len(ASSISTANT) if turn >= 0 else max(0, *(begun.rfind(space) for space in SPACES))


def prompt_text(prompt: object) -> str | None:
    r"""A prompt as text: that of a single message of the user as it is, a longer conversation with roles before it.

    >>> prompt_text([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}])
    'system: Be brief.\n\nuser: Why?'
    """
    if isinstance(prompt, list):
        if len(prompt) == 1 and isinstance(prompt[0], dict) and prompt[0].get("role") == "user":
            return _content(prompt[0])
        return _transcript(prompt)
    return prompt if isinstance(prompt, str) else None


def _shared(prompt: list[object], chosen: list[object], rejected: list[object]) -> int:
    """How many messages both begin with: those of the prompt, or all that are the same in both.

    A prompt in a column of its own is in chosen and rejected again in some sets, and not in others.
    """
    if prompt:
        return len(prompt) if chosen[: len(prompt)] == rejected[: len(prompt)] == prompt else 0
    count = 0
    while count < min(len(chosen), len(rejected)) and chosen[count] == rejected[count]:
        count += 1
    return count


def _response(messages: list[object]) -> str | None:
    """What the assistant says: of a single message its content, of more a transcript."""
    return _content(messages[0]) if len(messages) == 1 else _transcript(messages)


def _single(value: object) -> str | None:
    return _response(value) if isinstance(value, list) else value if isinstance(value, str) else None


def _content(message: object) -> str | None:
    content = message.get("content") if isinstance(message, dict) else None
    return content if isinstance(content, str) else None


def _transcript(messages: list[object]) -> str | None:
    texts = [_content(message) for message in messages]
    if not texts or None in texts:
        return None
    roles = [message.get("role") for message in messages if isinstance(message, dict)]
    return "\n\n".join(f"{role}: {text}" for role, text in zip(roles, texts, strict=True))
