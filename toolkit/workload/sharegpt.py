"""Conversations in the form of ShareGPT: a JSON list, or JSON lines, of

    {"id": "a_0", "conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]}

Each question of a human is a request. Its prompt holds everything before it, with the answers in the file, so the same
file always makes the same requests. A request asks for as many tokens as its answer in the file has.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from toolkit.errors import ToolkitError, is_unicode, shown
from toolkit.model.chat_template import ChatTemplate, Messages, chat_message
from toolkit.workload.jsonl import read_text
from toolkit.workload.words import Counter

ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "assistant"),
}
FORM = 'A conversation is {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}.'
BETWEEN = re.compile(r"[\s,]*")


class Turn(NamedTuple):
    """One question of a conversation, and the length of its answer."""

    conversation: int
    messages: Messages
    """The conversation up to a question of the human."""
    prompt: str
    """The same in the model's chat template."""
    prompt_tokens: int
    output_tokens: int


def read_turns(
    path: Path, count: int, template: ChatTemplate, counter: Counter, most: int
) -> tuple[list[Turn], tuple[str, ...]]:
    """The first `count` turns of at most `most` tokens, and notes on what was left out.

    Raises ToolkitError naming the file, the line, and the place in the conversation.
    """
    turns: list[Turn] = []
    silent = long = 0
    for number, messages in enumerate(_conversations(path)):
        for place, message in enumerate(messages):
            if message["role"] != "user":
                continue
            answer = messages[place + 1] if place + 1 < len(messages) else chat_message("assistant", "")
            output = counter.count_answer(answer["content"]) if answer["role"] == "assistant" else 0
            if not output:
                silent += 1
                continue
            prompt = template.render(messages[: place + 1])
            turn = Turn(number, tuple(messages[: place + 1]), prompt, counter.count(prompt), output)
            if turn.prompt_tokens + output > most:
                long += 1
                break  # later turns are longer still
            turns.append(turn)
            if len(turns) == count:
                return turns, _notes(silent, long, most)
    if not turns:
        left_out = "; ".join(_notes(silent, long, most)) or "no question with an answer"
        raise ToolkitError(f"holds no requests: {left_out}", where=path, hint=FORM)
    return turns, _notes(silent, long, most)


def _notes(silent: int, long: int, most: int) -> tuple[str, ...]:
    notes = []
    if silent:
        notes.append(f"questions left out, without an answer: {silent:,}")
    if long:
        notes.append(f"conversations cut at limits.max_seq_len {most}: {long:,}")
    return tuple(notes)


def _conversations(path: Path) -> Iterator[list[dict[str, str]]]:
    """Parses one conversation at a time: these files are large."""
    text, decode = read_text(path, FORM), json.JSONDecoder().raw_decode
    at, line, number = BETWEEN.match(text).end(), 1, 0  # type: ignore[union-attr]
    line += text.count("\n", 0, at)
    is_list = text[at : at + 1] == "["
    at += is_list
    while True:
        before, at = at, BETWEEN.match(text, at).end()  # type: ignore[union-attr]
        line += text.count("\n", before, at)
        if text[at : at + 1] == ("]" if is_list else ""):
            return
        try:
            value, end = decode(text, at)
        except json.JSONDecodeError as error:
            raise ToolkitError("not JSON", where=f"{path}:{error.lineno}:{error.colno}", hint=FORM) from None
        except RecursionError:
            raise ToolkitError("not JSON", where=f"{path}:{line}", hint=FORM) from None
        yield _messages(value, f"{path}:{line}", f"[{number}]" if is_list else "")
        line += text.count("\n", at, end)
        at, number = end, number + 1


def _messages(value: Any, where: str, place: str) -> list[dict[str, str]]:
    turns = value.get("conversations") if isinstance(value, dict) else None
    if not isinstance(turns, list):
        raise _wrong(f"{place}.conversations".lstrip("."), "a list", turns if isinstance(value, dict) else value, where)
    messages: list[dict[str, str]] = []
    for number, turn in enumerate(turns):
        field = f"{place}.conversations[{number}]".lstrip(".")
        if not isinstance(turn, dict):
            raise _wrong(field, "from and value", turn, where)
        who, what = turn.get("from"), turn.get("value")
        if not isinstance(who, str) or who not in ROLES:
            raise _wrong(f"{field}.from", ", ".join(ROLES), who, where)
        if not isinstance(what, str) or not is_unicode(what):
            raise _wrong(f"{field}.value", "text", what, where)
        # Long conversations are split, and the later parts begin with an answer, which is skipped.
        if messages or ROLES[who] != "assistant":
            messages.append(chat_message(ROLES[who], what))
    return messages


def _wrong(field: str, expected: str, got: Any, where: str) -> ToolkitError:
    return ToolkitError(f"{field}: expected {expected}, got {shown(got)}", where=where, hint=FORM)
