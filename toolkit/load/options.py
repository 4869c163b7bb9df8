"""What a run is to send: as the command line says, or the form of the web UI, which may say something else each time.

The options of a run travel from Locust's master to its workers when a test starts, those of the form among them; each
process makes its requests from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError, shown
from toolkit.load.requests import OF_THE_YAML, WORKLOADS, Questions, Work, work_of
from toolkit.load.target import protocol_of, takes_messages

QUESTIONS = "questions"
"""In the form: no workload, but the YAML's `loadtest`."""
PROTOCOLS = ("http", "grpc")


class Chosen:
    """The work that the options ask for; made anew when they have changed."""

    def __init__(self, deployment: Deployment, options: Any) -> None:
        self.deployment, self.options = deployment, options
        self._given = options.workload
        # Of a closed loop, None for as many as it has itself. A master may have told its worker already.
        options.streams = getattr(options, "streams", options.num_users)
        self._users_given = options.streams is not None
        self._made_of, self._work = self._asked, self._make()
        options.protocol = protocol_of(deployment, options.protocol, options.target)
        self.protocols = PROTOCOLS if options.target is None else (options.protocol,)
        self._fill_in(self._work)

    @property
    def work(self) -> Work:
        """Raises ToolkitError for options that ask for what cannot be sent."""
        if self._asked != self._made_of:
            self._work, self._made_of = self._make(), self._asked
        return self._work

    @cached_property
    def count(self) -> Callable[[str], int] | None:
        """Counts the tokens of an answer by the model's tokenizer, where that is here."""
        from toolkit.model.tokenizer import tokenizer_file
        from toolkit.workload.words import Counter

        try:
            return Counter(tokenizer_file(self.deployment.model.path, self.deployment.shape.vocab_size)).count_answer
        except ToolkitError:
            return None

    @property
    def workload(self) -> str:
        """As the form names it."""
        return self.options.workload or QUESTIONS

    @property
    def workloads(self) -> list[str]:
        """What the form offers."""
        names = [QUESTIONS, OF_THE_YAML, *sorted(file.stem for file in WORKLOADS.glob("*.yaml"))]
        return names if self._given in (None, *names) else [*names, self._given]

    def by_form(self, form: Mapping[str, str]) -> Work:
        """Choose what a form says; a field that it has not is as it was. Raises ToolkitError and changes nothing."""
        options, before = self.options, dict(vars(self.options))
        try:
            vars(options).update(_read(form))
            if options.protocol not in self.protocols:
                raise ToolkitError(f"protocol: expected {' or '.join(self.protocols)}, got {shown(options.protocol)}")
            if self._given is None and options.workload == QUESTIONS:
                options.workload = None
            users = _number("user_count", form.get("user_count", "1"), int, 1)
            # An open loop has no users, unless the command line made a closed one of it.
            options.streams = users if self._users_given and options.workload == self._given else None
            if self.work.users not in (None, users):
                options.streams = users
            self._fill_in(self.work)
            return self.work
        except ToolkitError:
            vars(options).update(before)
            raise

    @property
    def _asked(self) -> tuple[Any, ...]:
        options = self.options
        workload = None if options.workload == QUESTIONS else options.workload
        return workload, options.rate, options.requests, options.streams, options.seed, options.model

    def _make(self) -> Work:
        # The self-check (which has `samples`) needs no chat template: nobody reads its prompts.
        as_messages = bool(self.options.samples) or takes_messages(self.options.target)
        return work_of(self.deployment, *self._asked, as_messages=as_messages)

    def _fill_in(self, work: Work) -> None:
        if isinstance(work, Questions):  # a workload has its own number
            self.options.requests = work.count - work.warmup


def _read(form: Mapping[str, str]) -> dict[str, Any]:
    return {name: read(form[name].strip()) for name, read in FIELDS.items() if name in form}


def _number(name: str, text: str, kind: type[int] | type[float], least: int) -> int | float:
    """A rate is more than 0; whole numbers are at least `least`."""
    try:
        value = kind(text)
        if least <= value < float("inf") and (kind is int or value > 0):
            return value
    except ValueError:
        pass
    wanted = f"a whole number of at least {least}" if kind is int else "a number above 0"
    raise ToolkitError(f"{name}: expected {wanted}, got {shown(text)}")


FIELDS: dict[str, Callable[[str], Any]] = {
    "workload": lambda text: text or QUESTIONS,
    "rate": lambda text: _number("rate", text, float, 0) if text else None,
    "requests": lambda text: _number("requests", text, int, 1) if text else None,
    "seed": lambda text: _number("seed", text, int, 0) if text else None,
    "protocol": str,
}
"""Of the form, and how each is read; an empty number is the workload's own."""
