"""Removes the prompt from a server's error message: errors go to logs, reports and metrics."""

from __future__ import annotations

import json
from itertools import groupby

from toolkit.client import GenerateRequest

SHARED = 16
"""So many characters in a row that the prompt has too count as a part of the prompt."""
SHORTEST = 8
"""A prompt of fewer characters may be in a text by chance."""
INSTEAD = "[prompt]"


def without_prompt(text: str, request: GenerateRequest) -> str:
    """The text with every part of the prompt replaced, plain or with JSON escapes."""
    prompts = [request.prompt, *(message["content"] for message in request.messages or ())]
    forms = [form for prompt in prompts for form in (prompt, json.dumps(prompt)[1:-1])]
    for form in forms:
        if SHORTEST <= len(form) < SHARED:
            text = text.replace(form, INSTEAD)
    every, hidden = "\0".join(forms), bytearray(len(text))
    for start in range(len(text) - SHARED + 1):
        if text[start : start + SHARED] in every:
            hidden[start : start + SHARED] = b"\1" * SHARED
    parts = groupby(zip(hidden, text, strict=True), key=lambda pair: pair[0])
    return "".join(INSTEAD if part else "".join(shown for _, shown in pairs) for part, pairs in parts)
