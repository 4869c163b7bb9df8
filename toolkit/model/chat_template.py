"""Renders a question with the model's chat template, as the model was trained.

The Jinja environment is the same as in transformers, whose import would take seconds; tests compare the two. A
template is code that the model's author wrote, so it runs in Jinja's sandbox.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from toolkit.errors import ToolkitError, shown
from toolkit.files.atomic import read_text
from toolkit.model.special_tokens import TOKENIZER_CONFIG, optional_json, special_tokens

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.nodes import Node
    from jinja2.parser import Parser

TEMPLATE = "chat_template.jinja"
MORE_TEMPLATES = "additional_chat_templates"
"""A folder of NAME.jinja."""
DEFAULT = "default"

Messages = tuple[dict[str, str], ...]
"""The turns of a conversation, each with `role` and `content`."""

log = logging.getLogger(__name__)


def chat_message(role: str, content: str) -> dict[str, str]:
    """One message, as chat templates expect it."""
    return {"role": role, "content": content}


def chat_messages(question: str, system: str | None = None) -> Messages:
    """The messages of one question."""
    return (*([] if system is None else [chat_message("system", system)]), chat_message("user", question))


def chat_prompt(model_dir: Path, question: str, system: str | None = None, name: str | None = None) -> str:
    """The prompt for one question, up to where the model's answer begins, with the template `name`.

    Without a chat template the prompt is the question, and the log has a warning. Raises ToolkitError if the
    template or the tokenizer's configuration cannot be read, or the template refuses the messages.
    """
    template = ChatTemplate(model_dir, name)
    if not template.is_there:
        log.warning("%s: the model has no chat template; the question is sent as it is", model_dir)
    return template.render(chat_messages(question, system))


class ChatTemplate:
    """A model's template, read once. If the model has several, `name` (model.chat_template in the YAML) chooses one.

    Raises ToolkitError if the template or the tokenizer's configuration cannot be read, or no template has the name.
    """

    def __init__(self, model_dir: Path, name: str | None = None) -> None:
        self._model_dir = model_dir
        self._source = _chosen(_templates(model_dir), name, model_dir)
        self._special_tokens = special_tokens(model_dir)
        self._compiled: Any = None

    @property
    def is_there(self) -> bool:
        return self._source is not None

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """The prompt for these messages. Without a template: their texts, with empty lines between."""
        if self._source is None:
            return "\n\n".join(message["content"] for message in messages)
        try:
            self._compiled = self._compiled or _compile(self._source)
            options = {"tools": None, "documents": None, "add_generation_prompt": True, **self._special_tokens}
            prompt: str = self._compiled.render(messages=messages, **options)
            return prompt
        except Exception as error:  # whatever the code in a template may raise
            raise ToolkitError(
                f"the chat template failed: {error}", where=self._model_dir, hint="Ask with --raw to send plain text."
            ) from None


def _chosen(templates: dict[str, str], name: str | None, model_dir: Path) -> str | None:
    if name is None and (not templates or DEFAULT in templates):
        return templates.get(DEFAULT)
    if name in templates:
        return templates[name]
    names = ", ".join(sorted(templates)) or "none"
    if name is None:
        what = f"has the chat templates {names}, but none is called {DEFAULT}"
        raise ToolkitError(what, where=model_dir, hint=f"Name one in the YAML: model.chat_template: {min(templates)}.")
    what = f"model.chat_template: the model has no chat template {shown(name)}"
    raise ToolkitError(what, where=model_dir, hint=f"Its templates: {names}.")


def _templates(model_dir: Path) -> dict[str, str]:
    """All templates by name. Template files replace the configuration's templates, which are one text or a list."""
    files = {path.stem: path for path in sorted((model_dir / MORE_TEMPLATES).glob("*.jinja"))}
    if (model_dir / TEMPLATE).exists():
        files = {DEFAULT: model_dir / TEMPLATE, **files}
    if files:
        return {name: read_text(path) for name, path in files.items()}
    config = model_dir / TOKENIZER_CONFIG
    value = optional_json(config).get("chat_template")
    templates = {DEFAULT: value} if isinstance(value, str) else {} if value is None else value
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        templates = {entry.get("name"): entry.get("template") for entry in value}
    if not isinstance(templates, dict) or not all(isinstance(part, str) for item in templates.items() for part in item):
        what = f"chat_template: expected text, or a list of {{name, template}}, got {shown(value)}"
        raise ToolkitError(what, where=config)
    return templates


def _compile(source: str) -> Template:
    import jinja2
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The tag {% generation %}, which marks the model's own words for training. Here it changes nothing."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    def refuse(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(source)
