"""The prompts that the users of a load test send."""

from __future__ import annotations

import json
from pathlib import Path

from toolkit.client import Client, GenerateRequest
from toolkit.errors import ToolkitError, is_unicode
from toolkit.files.atomic import read_bytes
from toolkit.model.chat_template import chat_messages, chat_prompt

LARGEST = 256 << 20
"""Most bytes of a file of prompts."""
QUESTIONS = (
    "What is the capital of France?",
    "Why is the sky blue?",
    "Write two sentences about the sea.",
    "How does a bicycle stay upright?",
    "Name three rivers in Africa.",
    "What is the difference between weather and climate?",
    "Explain in simple words what a database index is.",
    "Who was Ada Lovelace?",
    "Give me a short recipe for pancakes.",
    "What happens to water when it freezes?",
    "Suggest a name for a small bakery and say why.",
    "How many days has a leap year, and which years are leap years?",
    "What is photosynthesis good for?",
    "Tell a very short story about a lost umbrella.",
    "Which planets of the solar system have rings?",
    "What should I pack for a weekend in the mountains?",
    "How do bees make honey?",
    "What is a prime number? Give five of them.",
    "Why do we have seasons?",
    "Describe the taste of a lemon to somebody who never had one.",
    "What does a compiler do?",
    "Give three tips for learning a new language.",
    "How was paper made in former times?",
    "Why does bread rise?",
)
"""The built-in questions."""


def load_prompts(file: Path | None) -> tuple[str, ...]:
    """The prompts of a file, or the built-in questions. Raises ToolkitError naming the line that is wrong.

    A file that ends in .jsonl has one {"prompt": "..."} per line; any other file has one prompt per line.
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
        raise ToolkitError("holds no prompt", where=file, hint="Write one prompt per line.")
    return prompts


def as_chat(model_dir: Path, prompts: tuple[str, ...], name: str | None = None) -> tuple[str, ...]:
    """The prompts in the model's chat template. Without a template they stay as they are, after one warning."""
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
    """One question: as messages if the server applies the chat template, else as a prompt made with the template.

    `template` names the template of a model that has several.
    """
    if raw and client.takes_messages:
        hint = "Leave out --raw, or use openai+http://HOST:PORT/v1/completions."
        raise ToolkitError("--raw: this server always applies its chat template", where=client.url, hint=hint)
    prompt = text if raw or client.takes_messages else chat_prompt(model_dir, text, system, template)
    return GenerateRequest(prompt, max_tokens, model, messages=chat_messages(text, system))


def _prompt(line: str, where: str) -> str:
    hint = 'Write one {"prompt": "..."} per line.'
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ToolkitError(f"is not JSON: {error}", where=where, hint=hint) from None
    prompt = fields.get("prompt") if isinstance(fields, dict) else None
    if not isinstance(prompt, str) or not prompt.strip() or not is_unicode(prompt):
        raise ToolkitError('has no "prompt" with text in it', where=where, hint=hint)
    return prompt
