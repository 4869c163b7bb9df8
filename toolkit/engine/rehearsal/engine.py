"""Rank 0: takes requests, schedules them, has them computed, chooses the tokens and hands them out."""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import NamedTuple

import torch
from torch import Tensor

from toolkit.engine.rehearsal.batch import STOP, encode
from toolkit.engine.rehearsal.comm import STEP
from toolkit.engine.rehearsal.sampling import Sampler, Sampling
from toolkit.engine.rehearsal.settings import EngineSettings
from toolkit.engine.rehearsal.worker import Rank
from toolkit.errors import Busy, InputRefused
from toolkit.inflight import Request, Scheduler, State, Stats, Step


@dataclass(frozen=True)
class GenerationRequest:
    prompt: list[int]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    num_return_sequences: int = 1


class Sequence(Request):
    """One of the sequences of a request. Times are time.monotonic_ns()."""

    def __init__(self, request: GenerationRequest, index: int, deliver: Callable[[Event], None]) -> None:
        super().__init__(id(self), request.prompt, request.max_tokens)
        self.index, self.deliver = index, deliver
        self.sampler = Sampler(request.sampling, request.prompt, index)
        self.cum_log_prob = 0.0
        self.arrival_ns = time.monotonic_ns()
        self.first_scheduled_ns = self.first_token_ns = self.last_token_ns = 0


class Event(NamedTuple):
    """A new token of a sequence, or its cancellation (token None). `finished`: the sequence has ended."""

    sequence: Sequence
    token: int | None
    log_prob: float | None
    cum_log_prob: float
    finished: bool


class RehearsalEngine:
    """Generates on all ranks of an engine; the other ranks run `worker.work`. Thread-safe.

    Events are delivered in order, from one thread of the engine's; `deliver` must not wait long.
    """

    def __init__(self, settings: EngineSettings, port: int | None = None) -> None:
        self.settings = settings
        self._rank = Rank(settings, 0, port)
        self._scheduler = Scheduler(settings.scheduling)
        self._changed = threading.Condition()
        self._live: set[Sequence] = set()
        self._closing = False
        self._events: SimpleQueue[list[Event] | None] = SimpleQueue()
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._run, self._hand_out)]
        for thread in self._threads:
            thread.start()

    def submit(self, request: GenerationRequest, deliver: Callable[[Event], None]) -> list[Sequence]:
        """Begin to generate; the result is what `cancel` takes. Raises InputRefused or Busy."""
        vocabulary = self.settings.model["vocab_size"]
        request.sampling.check(vocabulary)
        if request.num_return_sequences < 1:
            raise InputRefused(f"num_return_sequences: expected 1 or more, got {request.num_return_sequences}")
        if request.prompt and not 0 <= min(request.prompt) <= max(request.prompt) < vocabulary:
            raise InputRefused(f"input_ids: expected token ids below vocab_size {vocabulary}")
        sequences = [Sequence(request, index, deliver) for index in range(request.num_return_sequences)]
        with self._changed:
            if self._closing:
                raise Busy("the engine is shutting down")
            for count, sequence in enumerate(sequences):
                try:
                    self._scheduler.submit(sequence)
                except Exception:
                    for earlier in sequences[:count]:
                        self._scheduler.cancel(earlier)
                    raise
            self._live.update(sequences)
            self._changed.notify()
        return sequences

    def cancel(self, sequences: list[Sequence]) -> None:
        """End sequences that are not finished; each gets a last event without a token."""
        with self._changed:
            alive = [sequence for sequence in sequences if sequence in self._live]
            for sequence in alive:
                self._scheduler.cancel(sequence)
            self._live.difference_update(alive)
            self._events.put([Event(sequence, None, None, sequence.cum_log_prob, True) for sequence in alive])

    def stats(self) -> Stats:
        with self._changed:
            return self._scheduler.stats()

    def close(self) -> None:
        """Cancel what is left, let the other ranks end, and return when they do."""
        self._closing = True
        self.cancel(list(self._live))
        with self._changed:
            self._changed.notify()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        """The engine's thread: keep as many steps in flight as there are stages, finish the oldest."""
        in_flight: deque[tuple[Step, Tensor | None]] = deque()
        try:
            while True:
                if step := self._next_step(wait=not in_flight):
                    in_flight.append((step, self._begin(step)))
                elif in_flight:
                    self._finish(*in_flight.popleft())
                else:
                    break
            self._dismiss()
        except BaseException:  # a fault of ours; the other ranks end because this one does
            traceback.print_exc()
            os._exit(1)

    def _next_step(self, wait: bool) -> Step | None:
        """A step to begin. None if there is none now or, if it is to `wait` for one, none any more."""
        with self._changed:
            while (step := self._scheduler.schedule()) is None and wait and not self._closing:
                self._changed.wait()
            return step

    def _begin(self, step: Step) -> Tensor | None:
        now = time.monotonic_ns()
        for work in step.context:
            work.request.first_scheduled_ns = work.request.first_scheduled_ns or now
        message = encode(step, self.settings.scheduling.tokens_per_block)
        self._tell(self.settings.mapping.tp_group(0)[1:], message)
        return self._rank.compute(message)

    def _finish(self, step: Step, logits: Tensor | None) -> None:
        sequences = [work.request for work in step.works if work.emits]
        chosen = self._choose(self._gather(len(sequences), logits), sequences)
        now = time.monotonic_ns()
        with self._changed:
            sequences_alive = [sequence in self._live for sequence in sequences]
            ends = [s.sampler.ends(s.tokens, token) for s, (token, _) in zip(sequences, chosen, strict=True)]
            self._scheduler.complete(step, [token for token, _ in chosen], ends)
            events = [
                self._record(sequence, *choice, now)
                for sequence, choice, alive in zip(sequences, chosen, sequences_alive, strict=True)
                if alive
            ]
        self._events.put(events)

    def _gather(self, rows: int, own: Tensor | None) -> Tensor:
        """Logits [rows, vocab_size] from the ranks of the last stage, each of which has a share of them."""
        mapping, size = self.settings.mapping, self.settings.model["vocab_size"]
        shape = torch.Size((rows, -(-size // mapping.tp)))
        last = mapping.tp_group(mapping.pp - 1)
        shares = [self._rank.peers.logits[peer].next(shape) if peer else own for peer in last]
        return torch.cat(shares, 1)[:, :size]

    @torch.inference_mode()
    def _choose(self, logits: Tensor, sequences: list[Sequence]) -> list[tuple[int, float | None]]:
        likeliest = logits.argmax(1).tolist()
        return [
            (token, None) if sequence.sampler.plain else sequence.sampler.next(row, sequence.tokens)
            for token, row, sequence in zip(likeliest, logits, sequences, strict=True)
        ]

    def _record(self, sequence: Sequence, token: int, log_prob: float | None, now: int) -> Event:
        sequence.first_token_ns, sequence.last_token_ns = sequence.first_token_ns or now, now
        sequence.cum_log_prob += log_prob or 0.0
        finished = sequence.state is State.FINISHED
        if finished:
            self._live.remove(sequence)
        return Event(sequence, token, log_prob, sequence.cum_log_prob, finished)

    def _tell(self, ranks: range, message: Tensor) -> None:
        for peer in ranks:
            self._rank.peers.send(peer, STEP, message)

    def _dismiss(self) -> None:
        """Send the other ranks home, and the thread that hands events out."""
        self._events.put(None)
        if peers := self._rank.peers:
            self._tell(self.settings.mapping.tp_group(0)[1:], STOP)
            if peers.next is not None:
                peers.send(peers.next, STEP, STOP)
            peers.leave()

    def _hand_out(self) -> None:
        while (events := self._events.get()) is not None:
            for event in events:
                event.sequence.deliver(event)
