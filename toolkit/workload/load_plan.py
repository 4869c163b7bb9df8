"""The requests of a load test: when each is due and what it says, from a workload and a seed.

    plan = load_plan(load_workload("loadtest/workloads/chat-1k.yaml"), deployment)
    for number in plan.firsts: plan[number]

A request is made from its number when it is needed. So each worker can make its own share, and only the requests in
flight are in memory.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from toolkit.config.workload import MOST_REQUESTS, LoadWorkload
from toolkit.errors import ToolkitError
from toolkit.model.chat_template import ChatTemplate, Messages
from toolkit.workload.contents import Chat, Contents, Conversations, Owned, Recorded, Replayed, Synthetic, Text
from toolkit.workload.own import read_own
from toolkit.workload.shapes import Slope, dues, shape_of
from toolkit.workload.trace import Trace, has_times
from toolkit.workload.traffic import DEFAULT_RATE, Planned, Traffic, intervals, lines_of, turns_of, with_arrivals
from toolkit.workload.words import Counter

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment


class ToSend(NamedTuple):
    """One request, ready to be sent."""

    number: int
    due: float | None
    """Seconds from the beginning. None in a closed loop, and for a later turn, which is due workload.think_s after
    the last answer has ended."""
    prompt: str
    prompt_tokens: int
    max_tokens: int
    sampling: dict[str, Any]
    """More inputs, by Triton's names."""
    conversation: int | None = None
    turn: int = 0
    messages: Messages | None = None
    """The prompt as messages, for servers that apply the chat template. None: one message from the user."""


@dataclass(frozen=True)
class LoadPlan:
    """All requests of a run, by number."""

    workload: LoadWorkload
    contents: Contents
    count: int
    dues: Sequence[float] | None
    """When the first request of each conversation is due; None in a closed loop."""
    rate: float | None
    """Mean requests/s that are due, later turns included; None in a closed loop."""
    users: int | None
    """Users of a closed loop; None otherwise."""
    duration_s: float | None
    """Seconds until the last request is due; None in a closed loop."""
    notes: tuple[str, ...] = ()
    """What was left out of a file, and what looks wrong in it."""

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[ToSend]:
        return (self[number] for number in self.firsts)

    @property
    def firsts(self) -> range:
        """The numbers that begin a conversation: all numbers if each request stands alone."""
        return range(0, self.count, self.workload.turns)

    def __getitem__(self, number: int) -> ToSend:
        """The request with a number in `firsts`."""
        if number not in self.firsts:
            raise IndexError(f"request {number} is not one of {self.firsts}")
        due = None if self.dues is None else self.dues[number // self.workload.turns]
        return self._to_send(number, due, self.contents.text(number))

    def next_turn(self, before: ToSend, answer: str) -> ToSend | None:
        """The next turn after `before` got this answer; None at the end of the conversation."""
        number = before.number + 1
        if number in self.firsts or number >= self.count:
            return None
        assert isinstance(self.contents, Conversations)  # toolkit/config/workload.py: only these have turns
        said = Text(before.prompt, before.prompt_tokens, before.messages)
        return self._to_send(number, None, self.contents.after(number, said, answer))

    def _to_send(self, number: int, due: float | None, text: Text) -> ToSend:
        output, turns = self.contents.outputs[number], self.workload.turns
        # An answer of fixed length must not end early. With end_id -1 no token ends it, also not one that is sampled.
        sampling = {"min_tokens": output, "end_id": -1} if self.workload.output == "fixed" else {}
        conversation, turn = (None, 0) if turns == 1 else divmod(number, turns)
        return ToSend(number, due, text.prompt, text.tokens, output, sampling, conversation, turn, text.messages)

    def first(self, count: int) -> LoadPlan:
        """The first `count` requests."""
        if count >= self.count or self.dues is None:
            return replace(self, count=min(count, self.count))
        kept = self.dues[: len(range(0, count, self.workload.turns))]
        return replace(self, count=count, dues=kept, duration_s=kept[-1])

    def at(self, rate: float) -> LoadPlan:
        """The same requests at another mean rate. Only for an open loop."""
        assert self.dues is not None and self.rate is not None and self.duration_s is not None
        slower = self.rate / rate
        scaled = array("d", (due * slower for due in self.dues))
        return replace(self, dues=scaled, rate=rate, duration_s=self.duration_s * slower)

    def traffic(self) -> Traffic | None:
        """The same requests for toolkit.simulate; None for conversations, which it cannot simulate."""
        if self.workload.turns > 1:
            return None
        due = [0.0] * self.count if self.dues is None else self.dues
        requests = tuple(Planned(due[n], self.contents.tokens(n), self.contents.outputs[n]) for n in range(self.count))
        shares = len({request.prompt[0] for request in requests}) < self.count
        return Traffic(requests, self.rate, self.users, shares)


def load_plan(
    workload: LoadWorkload, deployment: Deployment, file: Path | None = None, as_messages: bool = False
) -> LoadPlan:
    """The requests of a workload, for one deployment's model and limits. Errors name `file`, the workload's.

    A server that takes them `as_messages` applies the chat template itself, so the model here needs none.
    Raises ToolkitError for what cannot be sent: a malformed line in a file, a request over limits.max_seq_len, a
    missing tokenizer, a prompt whose length cannot be exact.
    """
    from toolkit.model.tokenizer import tokenizer_file

    tokenizer_json = tokenizer_file(deployment.model.path, deployment.shape.vocab_size)
    most = deployment.limits.max_seq_len
    where = str(file or f"{deployment.file}: workload")
    workload = with_arrivals(workload)
    rate = workload.rate or deployment.slo.requests_per_s or DEFAULT_RATE
    if workload.trace is not None and has_times(workload.trace_form):
        trace = lines_of(workload, workload.trace, most)
        if workload.arrivals == "trace":
            return _replay(workload, trace, tokenizer_json)
        timed = _times(workload, len(trace.lines), rate, where)
        contents: Contents = Replayed(trace.lines, timed.requests, workload.seed, tokenizer_json)
        return _planned(workload, contents, timed, trace.notes)
    if workload.trace is not None:
        turns, notes = turns_of(deployment, workload, workload.trace)
        timed = _times(workload, len(turns), rate, where)
        return _planned(workload, Recorded(turns, timed.requests), timed, notes)
    own = read_own(workload.prompts) if workload.prompts is not None else []
    each_once = own and "requests" not in workload.model_fields_set
    timed = _times(workload, len(own) if each_once else workload.requests, rate, where)
    if workload.kind == "synthetic":
        return _planned(workload, Synthetic(workload, timed.requests, tokenizer_json, most, where), timed)
    template, counter = ChatTemplate(deployment.model.path, deployment.model.chat_template), Counter(tokenizer_json)
    if workload.kind == "chat":
        contents = Chat(workload, timed.requests, template, counter, most, where)
    else:
        contents = Owned(workload, own, timed.requests, template, counter, most, as_messages)
    return _planned(workload, contents, timed)


class _Times(NamedTuple):
    requests: int
    dues: Sequence[float] | None
    rate: float | None
    seconds: float | None


def _times(workload: LoadWorkload, requests: int, rate: float, where: str) -> _Times:
    """When conversations begin. Their rate is lower than the workload's, which counts every turn."""
    turns = workload.turns
    if workload.arrivals == "closed":
        return _Times(requests, None, None, None)
    slopes = [Slope(slope.seconds, slope.rate / turns, slope.to / turns) for slope in shape_of(workload)]
    if not slopes:
        steps = (interval * turns / rate for interval in intervals(workload))
        due = array("d", accumulate(islice(steps, math.ceil(requests / turns))))
        return _Times(requests, due, rate, due[-1])
    seconds, mean = sum(slope.seconds for slope in slopes), sum(slope.requests for slope in slopes) * turns
    if mean > MOST_REQUESTS:
        what = f"its rates make {mean:,.0f} requests in {seconds:g} s, expected at most {MOST_REQUESTS:,}"
        raise ToolkitError(what, where=where, hint="Lower the rates or the seconds.")
    due = array("d", dues(slopes, intervals(workload)))
    if not due:
        what = f"no request is due in its {seconds:g} s: its rates make {mean:.2g} requests on average"
        raise ToolkitError(what, where=where, hint="Raise the rates or the seconds.")
    return _Times(len(due) * turns, due, mean / seconds, seconds)


def _planned(workload: LoadWorkload, contents: Contents, timed: _Times, notes: tuple[str, ...] = ()) -> LoadPlan:
    users = workload.users if workload.arrivals == "closed" else None
    return LoadPlan(workload, contents, timed.requests, timed.dues, timed.rate, users, timed.seconds, notes)


def _replay(workload: LoadWorkload, trace: Trace, tokenizer_json: Path) -> LoadPlan:
    due = array("d", (line.due for line in trace.lines))
    rate = (len(due) - 1) / due[-1] if due[-1] else float(len(due))
    contents = Replayed(trace.lines, len(due), workload.seed, tokenizer_json)
    plan = LoadPlan(workload, contents, len(due), due, rate, None, due[-1], trace.notes)
    return plan.at(workload.rate) if workload.rate else plan
