"""What a run sends, from the command line or from the web form, which can change between runs.

Locust's master sends the options of a run, with those of the form, to its workers when a test starts. Each process
makes its requests from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError, shown
from toolkit.load.requests import OF_THE_YAML, WORKLOADS, QuestionSource, RequestSource, request_source
from toolkit.load.target import protocol_of, takes_messages

QUESTIONS = "questions"
"""The name in the form for the YAML's `loadtest`, which is not a workload."""
PROTOCOLS = ("http", "grpc")


class RunOptions:
    """The options of a run and the source of its requests, which is made again when the options change."""

    def __init__(self, deployment: Deployment, options: Any) -> None:
        self.deployment, self.options = deployment, options
        self._first_workload = options.workload
        # Users of a closed loop; None: as many as the workload has. A master may have set it for its worker already.
        options.streams = getattr(options, "streams", options.num_users)
        self._users_given = options.streams is not None
        self._made_of, self._source = self._arguments, self._make()
        options.protocol = protocol_of(deployment, options.protocol, options.target)
        self.protocols = PROTOCOLS if options.target is None else (options.protocol,)
        self._fill_in(self._source)

    @property
    def source(self) -> RequestSource:
        """The source of the requests. Raises ToolkitError if the options cannot be carried out."""
        if self._arguments != self._made_of:
            self._source, self._made_of = self._make(), self._arguments
        return self._source

    @cached_property
    def count(self) -> Callable[[str], int] | None:
        """Counts the tokens of an answer with the model's tokenizer. None if there is no tokenizer here."""
        from toolkit.model.tokenizer import tokenizer_file
        from toolkit.workload.words import Counter

        try:
            return Counter(tokenizer_file(self.deployment.model.path, self.deployment.shape.vocab_size)).count_answer
        except ToolkitError:
            return None

    @property
    def workload(self) -> str:
        """The name of the workload in the form."""
        return self.options.workload or QUESTIONS

    @property
    def workloads(self) -> list[str]:
        """The workloads that the form offers."""
        names = [QUESTIONS, OF_THE_YAML, *sorted(file.stem for file in WORKLOADS.glob("*.yaml"))]
        return names if self._first_workload in (None, *names) else [*names, self._first_workload]

    def by_form(self, form: Mapping[str, str]) -> RequestSource:
        """Take the options from a form; missing fields stay as they were. On ToolkitError nothing changes."""
        options, before = self.options, dict(vars(self.options))
        try:
            vars(options).update(_read(form))
            if options.protocol not in self.protocols:
                raise ToolkitError(f"protocol: expected {' or '.join(self.protocols)}, got {shown(options.protocol)}")
            if self._first_workload is None and options.workload == QUESTIONS:
                options.workload = None
            users = _number("user_count", form.get("user_count", "1"), int, 1)
            # An open loop has no users, unless --users on the command line made it a closed loop.
            options.streams = users if self._users_given and options.workload == self._first_workload else None
            if self.source.users not in (None, users):
                options.streams = users
            self._fill_in(self.source)
            return self.source
        except ToolkitError:
            vars(options).update(before)
            raise

    @property
    def _arguments(self) -> tuple[Any, ...]:
        options = self.options
        workload = None if options.workload == QUESTIONS else options.workload
        return workload, options.rate, options.requests, options.streams, options.seed, options.model

    def _make(self) -> RequestSource:
        # The self-check (which sets `samples`) needs no chat template: its prompts mean nothing.
        as_messages = bool(self.options.samples) or takes_messages(self.options.target)
        return request_source(self.deployment, *self._arguments, as_messages=as_messages)

    def _fill_in(self, source: RequestSource) -> None:
        if isinstance(source, QuestionSource):  # a workload has its own number of requests
            self.options.requests = source.count - source.warmup


def _read(form: Mapping[str, str]) -> dict[str, Any]:
    return {name: read(form[name].strip()) for name, read in FIELDS.items() if name in form}


def _number(name: str, text: str, kind: type[int] | type[float], least: int) -> int | float:
    """The number in a field: above 0 if it is a float, at least `least` if it is whole. Raises ToolkitError."""
    try:
        value = kind(text)
        if least <= value < float("inf") and (kind is int or value > 0):
            return value
    except ValueError:
        pass
    accepted = f"a whole number of at least {least}" if kind is int else "a number above 0"
    raise ToolkitError(f"{name}: expected {accepted}, got {shown(text)}")


FIELDS: dict[str, Callable[[str], Any]] = {
    "workload": lambda text: text or QUESTIONS,
    "rate": lambda text: _number("rate", text, float, 0) if text else None,
    "requests": lambda text: _number("requests", text, int, 1) if text else None,
    "seed": lambda text: _number("seed", text, int, 0) if text else None,
    "protocol": str,
}
"""The fields of the form, and how each is read. An empty number means the workload's own."""
