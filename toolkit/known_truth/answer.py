"""When each token of an answer is due and when it was sent: slots, absolute schedules, records."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TextIO

from toolkit.clock import EPOCH
from toolkit.known_truth.faults import STOPS
from toolkit.known_truth.record import Record, to_line
from toolkit.known_truth.settings import Settings

WORDS = (" the", " of", " and", " to", " in", " is", " that", " for", " it", " was", " on", " are", " as", " with")
"""The text of every answer, repeated. Each word is one token for Llama, GPT and most others."""
LATE_STEP_S, LATE_STEPS = 1e-4, 10_000


def text(first: int, count: int) -> str:
    """The text of tokens first, first + 1, ... of any answer."""
    return "".join(WORDS[number % len(WORDS)] for number in range(first, first + count))


@dataclass(frozen=True)
class ReceivedRequest:
    """A request of any protocol."""

    protocol: str
    target: str
    id: str
    prompt: str
    tokens: int
    stream: bool

    @property
    def prompt_tokens(self) -> int:
        """The number of words: there is no tokenizer here."""
        return len(self.prompt.split())


class Slots:
    """Lets `count` answers run at a time; the others wait in order of arrival."""

    def __init__(self, count: int | None) -> None:
        self._free: float = math.inf if count is None else count
        self._waiting: deque[asyncio.Future[float]] = deque()

    @property
    def waiting(self) -> int:
        return sum(not future.done() for future in self._waiting)

    async def take(self, arrived: float) -> float:
        """Wait for a slot. Returns the moment from which this answer has it."""
        if self._free:
            self._free -= 1
            return arrived
        turn: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            return max(arrived, await turn)
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(turn.result())
            raise

    def release(self, moment: float) -> None:
        """Free a slot as of `moment`. That is the scheduled end, so that a late event loop costs no capacity."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                return turn.set_result(moment)
        self._free += 1


@dataclass
class ServerState:
    """What all answers of the server share."""

    settings: Settings
    file: TextIO | None = None
    begun: int = 0
    ended: int = 0
    tokens: int = 0
    running: int = 0
    started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.slots = Slots(self.settings.slots)
        self.faults = self.settings.fault_plan()
        self._late = [0] * LATE_STEPS

    def arrive(self, request: ReceivedRequest) -> Answer:
        arrived = time.perf_counter()
        self.begun += 1
        if self.faults.is_last(self.begun):
            os._exit(1)
        return Answer(self, request, self.begun, arrived)

    def note_late(self, seconds: float) -> None:
        self._late[min(LATE_STEPS - 1, max(0, int(seconds / LATE_STEP_S)))] += 1

    def late_ms(self, percent: float) -> float | None:
        """Percentile of how late events were sent, in steps of 0.1 ms. None before the first event."""
        rank, seen = percent / 100 * sum(self._late), 0
        for step, count in enumerate(self._late):
            seen += count
            if count and seen >= rank:
                return round((step + 1) * LATE_STEP_S * 1e3, 1)
        return None


class Answer:
    """One request from its arrival to the end of its answer."""

    def __init__(self, state: ServerState, request: ReceivedRequest, number: int, arrived: float) -> None:
        self.request, self.number, self.arrived = request, number, arrived
        self.fault = state.faults.of(number)
        self.kind = self.fault.kind if self.fault else None
        self.sent: list[float] = []
        self.buffered = 0
        self.started: float | None = None
        self._state, self._finished, self._due = state, False, 0.0
        state.running += 1

    async def start(self) -> None:
        """Wait for a slot."""
        self.started = await self._state.slots.take(self.arrived)

    @property
    def length(self) -> int:
        """How many tokens are sent before the answer ends or its fault comes."""
        if self.fault and self.kind in STOPS:
            return self.fault.tokens_before(self.request.tokens)
        return self.request.tokens

    def due(self, token: int) -> float:
        slow = self.fault.tokens_before(self.request.tokens) if self.fault and self.kind == "slow" else None
        assert self.started is not None
        return self.started + self._state.settings.due_s(token, slow)

    async def pieces(self) -> AsyncIterator[tuple[int, int]]:
        """Yield (first token, number of tokens) of each event when it is due. A late event does not delay the next."""
        step = self._state.settings.tokens_per_event
        for first in range(0, self.length, step):
            self._due = self.due(first)
            # Sleeps also when it is late, so that other answers get their turn, and a client that left is noticed.
            await asyncio.sleep(max(0.0, self._due - time.perf_counter()))
            yield first, min(step, self.length - first)

    def mark(self, tokens: int, backlog: int = 0) -> float:
        """Note that an event is handed to the socket now. `backlog`: bytes that the socket has not sent yet."""
        moment = time.perf_counter()
        self.sent += [moment] * tokens
        self.buffered += backlog > 0
        self._state.note_late(moment - self._due)
        return moment

    def finish(self, whole: bool = True) -> None:
        """Free the slot and write the record, once.

        Called before the last bytes are sent, so a client that has the whole answer also finds the record.
        """
        if self._finished:
            return
        self._finished, state = True, self._state
        ended = time.perf_counter()
        state.running -= 1
        state.ended += 1
        state.tokens += len(self.sent)
        if self.started is not None:
            as_planned = whole and self.length == self.request.tokens
            state.slots.release(self.due(self.length - 1) if as_planned else ended)
        if state.file:
            with contextlib.suppress(OSError):  # answers go on when the disk is full
                state.file.write(to_line(self._record(ended, whole)))

    def _record(self, ended: float, whole: bool) -> Record:
        request = self.request
        return Record(
            number=self.number,
            id=request.id,
            protocol=request.protocol,
            target=request.target,
            prompt_tokens=request.prompt_tokens,
            tokens=request.tokens,
            arrived=EPOCH + self.arrived,
            started=None if self.started is None else EPOCH + self.started,
            ended=EPOCH + ended,
            token_times=tuple(EPOCH + moment for moment in self.sent),
            buffered=self.buffered,
            fault=self.kind,
            whole=whole and self.kind in (None, "slow"),
        )
