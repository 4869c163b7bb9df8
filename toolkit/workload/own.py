"""The user's own prompts: JSONL, one per line.

    {"prompt": "What is the capital of France?", "max_tokens": 20}
    {"messages": [{"role": "user", "content": "What is the capital of France?"}]}

A prompt is sent as it is. Messages go through the model's chat template. Other keys are ignored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from toolkit.errors import ToolkitError, is_unicode, shown
from toolkit.workload.jsonl import read_objects

FORM = 'A line is {"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]}, and optional max_tokens.'
ROLES = ("system", "user", "assistant")


class OwnPrompt(NamedTuple):
    """One line of the user's file."""

    line: int
    prompt: str | None
    messages: tuple[dict[str, str], ...] | None
    """Either `prompt` or `messages`; the other one is None."""
    max_tokens: int | None


def read_own(path: Path) -> list[OwnPrompt]:
    """The prompts of a file. Raises ToolkitError naming file and line."""
    prompts = [_own(fields, number, f"{path}:{number}") for number, fields in read_objects(path, FORM)]
    if not prompts:
        raise ToolkitError("holds no prompts", where=path, hint=FORM)
    return prompts


def _own(fields: dict[str, Any], number: int, where: str) -> OwnPrompt:
    prompt, messages, most = (fields.get(name) for name in ("prompt", "messages", "max_tokens"))
    if (prompt is None) == (messages is None):
        what = "both prompt and messages" if prompt is not None else "neither prompt nor messages"
        raise ToolkitError(f"has {what}", where=where, hint=FORM)
    if prompt is not None and not _is_text(prompt):
        raise ToolkitError(f"prompt: expected text, got {shown(prompt)}", where=where, hint=FORM)
    if messages is not None and not (isinstance(messages, list) and messages and all(map(_is_message, messages))):
        what = f"messages: expected a list of role ({', '.join(ROLES)}) and content, got {shown(messages)}"
        raise ToolkitError(what, where=where, hint=FORM)
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
        raise ToolkitError(f"max_tokens: expected 1 or more, got {shown(most)}", where=where, hint=FORM)
    kept = None if messages is None else tuple({"role": m["role"], "content": m["content"]} for m in messages)
    return OwnPrompt(number, prompt, kept, most)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and is_unicode(value)


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and value.get("role") in ROLES and _is_text(value.get("content"))
