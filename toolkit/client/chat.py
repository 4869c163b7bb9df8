"""A question as the prompt that a model was trained on: its own chat template, rendered.

Rendered with Jinja in the same environment that transformers sets up, not with transformers itself, whose
import alone takes seconds; tests compare the two. A template is code of the model's author, so it runs in
Jinja's sandbox.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from toolkit.errors import ToolkitError

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
TEMPLATE_NAME = "chat_template.jinja"
CONFIG_NAME = "tokenizer_config.json"

Messages = tuple[dict[str, str], ...]
"""The turns of a conversation, each with `role` and `content`."""

log = logging.getLogger(__name__)


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def asked(question: str, system: str | None = None) -> Messages:
    """The messages of one question."""
    return (*([] if system is None else [said("system", system)]), said("user", question))


def chat_prompt(model_dir: Path, question: str, system: str | None = None) -> str:
    """The prompt for one question, up to where the model's answer begins.

    For a model without a chat template it is the question itself, after a warning to the log. Raises
    ToolkitError when the template or the tokenizer's configuration cannot be read or refuses the messages.
    """
    template = ChatTemplate(model_dir)
    if not template.is_there:
        log.warning("%s: the model has no chat template; the question is sent as it is", model_dir)
    return template.render(asked(question, system))


class ChatTemplate:
    """A model's template, read once. Raises ToolkitError when it or the tokenizer's configuration cannot be read."""

    def __init__(self, model_dir: Path) -> None:
        self._model_dir = model_dir
        config = _read_config(model_dir / CONFIG_NAME)
        self._source = _template(model_dir, config)
        self._special_tokens = _special_tokens(config)
        self._compiled: Any = None

    @property
    def is_there(self) -> bool:
        return self._source is not None

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """The prompt for these messages; without a template, what they say with empty lines between."""
        if self._source is None:
            return "\n\n".join(message["content"] for message in messages)
        try:
            self._compiled = self._compiled or _compile(self._source)
            return self._compiled.render(
                messages=messages, tools=None, documents=None, add_generation_prompt=True, **self._special_tokens
            )
        except Exception as error:  # whatever the code in a template may raise
            raise ToolkitError(
                f"the chat template failed: {error}", where=self._model_dir, hint="Ask with --raw to send plain text."
            ) from None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ToolkitError(f"cannot be read: {error}", where=path) from None
    if not isinstance(config, dict):
        raise ToolkitError("is not a JSON object", where=path)
    return config


def _template(model_dir: Path, config: dict[str, Any]) -> str | None:
    """The file of its own comes first, then the configuration: one template, or a list of named ones."""
    path = model_dir / TEMPLATE_NAME
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise ToolkitError(f"cannot be read: {error}", where=path) from None
    template = config.get("chat_template")
    if isinstance(template, list):
        template = {entry.get("name"): entry.get("template") for entry in template}.get("default")
    return template


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Those a template may name; a token is its text, or an object that holds it as `content`."""
    tokens = {name: config.get(name) for name in SPECIAL_TOKENS}
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in tokens.items()}
    return {name: text for name, text in texts.items() if text is not None}


def _compile(source: str):
    import jinja2
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The tag {% generation %}, which marks the model's own words for training: here it changes nothing."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    def refuse(message: str):
        raise jinja2.TemplateError(message)

    def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(source)
