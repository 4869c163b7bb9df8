"""What the users of a load test ask."""

from __future__ import annotations

import json
from pathlib import Path

from toolkit.client import Client, GenerateRequest
from toolkit.errors import ToolkitError, is_unicode
from toolkit.files.atomic import read_bytes
from toolkit.model.chat_template import chat_messages, chat_prompt
from toolkit.workload.questions import QUESTIONS

LARGEST = 256 << 20
"""Bytes of a file of prompts."""
__all__ = ["QUESTIONS", "as_chat", "load_prompts", "question"]


def load_prompts(file: Path | None) -> tuple[str, ...]:
    """The prompts of a file, or our own questions. Raises ToolkitError naming the line that is wrong.

    A file that ends in .jsonl has one {"prompt": "..."} a line; any other has one prompt a line.
    """
    if file is None:
        return QUESTIONS
    try:
        hint = "Correct loadtest.prompts, or remove it to use built-in questions."
        lines = read_bytes(file, LARGEST, missing=hint).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ToolkitError(f"is not UTF-8 text: {error.reason} at byte {error.start}", where=file) from None
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    if file.suffix == ".jsonl":
        prompts = tuple(_prompt(line, f"{file}:{number}") for number, line in numbered)
    else:
        prompts = tuple(line for _, line in numbered)
    if not prompts:
        raise ToolkitError("holds no prompt", where=file, hint="Write one prompt a line.")
    return prompts


def as_chat(model_dir: Path, prompts: tuple[str, ...], name: str | None = None) -> tuple[str, ...]:
    """The prompts in the model's chat template; as they are, after one warning, for a model without one."""
    first = chat_prompt(model_dir, prompts[0], name=name)
    if first == prompts[0]:
        return prompts
    return (first, *(chat_prompt(model_dir, prompt, name=name) for prompt in prompts[1:]))


def question(
    client: Client,
    model_dir: Path,
    text: str,
    *,
    system: str | None = None,
    raw: bool = False,
    max_tokens: int,
    model: str,
    template: str | None = None,
) -> GenerateRequest:
    """One question: as messages if the server applies the chat template, else as the prompt made by the template.

    `template` names one of a model's several templates.
    """
    if raw and client.takes_messages:
        hint = "Leave out --raw, or ask openai+http://HOST:PORT/v1/completions."
        raise ToolkitError("--raw: this server always applies its chat template", where=client.url, hint=hint)
    prompt = text if raw or client.takes_messages else chat_prompt(model_dir, text, system, template)
    return GenerateRequest(prompt, max_tokens, model, messages=chat_messages(text, system))


def _prompt(line: str, where: str) -> str:
    hint = 'Write one {"prompt": "..."} a line.'
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ToolkitError(f"is not JSON: {error}", where=where, hint=hint) from None
    prompt = found.get("prompt") if isinstance(found, dict) else None
    if not isinstance(prompt, str) or not prompt.strip() or not is_unicode(prompt):
        raise ToolkitError('has no "prompt" with text in it', where=where, hint=hint)
    return prompt
