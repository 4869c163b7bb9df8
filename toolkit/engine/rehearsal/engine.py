"""Rank 0: takes requests, schedules them, has the ranks compute them, chooses the tokens and delivers them."""

from __future__ import annotations

import os
import random
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, NamedTuple

import torch
from torch import Tensor

from toolkit.engine.rehearsal.batch import encode
from toolkit.engine.rehearsal.worker import Rank
from toolkit.engine.request import GenerationRequest
from toolkit.engine.sampling import Sampler
from toolkit.engine.settings import EngineSettings
from toolkit.engine.steplog import StepLog
from toolkit.errors import Busy
from toolkit.inflight import Request, Scheduler, State, Stats, Step

LAST_WORDS_S = 2.0
"""The longest wait until errors are sent after a rank is lost."""


class Generation(Request):
    """Sequence `index` of request `row` of a batch. Times are those of time.monotonic_ns()."""

    def __init__(
        self, request: GenerationRequest, row: int, index: int, seed: int, deliver: Callable[[Event], None]
    ) -> None:
        super().__init__(id(self), request.input_ids, request.request_output_len)
        self.request, self.row, self.index = request, row, index
        self.deliver, self.sampler = deliver, Sampler(request, seed + index)
        self.cum_log_prob = 0.0
        self.arrival_ns = time.monotonic_ns()
        self.first_scheduled_ns = self.first_token_ns = self.last_token_ns = 0

    def event(self, token: int, log_prob: float | None, now: int) -> Event:
        """Record a new token. Returns the event for it."""
        self.first_token_ns, self.last_token_ns = self.first_token_ns or now, now
        self.cum_log_prob += log_prob or 0.0
        return Event(self, token, log_prob, self.cum_log_prob, self.state is State.FINISHED)


class Event(NamedTuple):
    """A new token. Without a token: the sequence was cancelled, or lost by an `error`.

    `finished`: the sequence has no more events.
    """

    sequence: Generation
    token: int | None
    log_prob: float | None
    cum_log_prob: float
    finished: bool
    error: str | None = None


class RehearsalEngine:
    """Generates on all ranks of an engine. The other ranks run `worker.work`. Thread-safe.

    One thread delivers the events, in order; `deliver` must not block.
    """

    def __init__(self, settings: EngineSettings, port: int = 0) -> None:
        self.settings = settings
        self._changed = threading.Condition()  # guards the fields below, and the scheduler
        self._live: set[Generation] = set()
        self._threads: list[threading.Thread] = []
        self._scheduler = Scheduler(settings.scheduling)
        self._seeds = random.Random(0)
        self._closing = False
        self._events: SimpleQueue[list[Event] | None] = SimpleQueue()
        self._rank = Rank(settings, 0, port, self._fail)
        loops = (self._run, self._hand_out)
        self._threads = [threading.Thread(target=or_exit, args=(loop,), daemon=True) for loop in loops]
        for thread in self._threads:
            thread.start()

    def submit(self, requests: Sequence[GenerationRequest], deliver: Callable[[Event], None]) -> list[Generation]:
        """Begin to generate for all requests of a batch. `cancel` takes the result.

        Raises InputRefused or Busy; then no request begins.
        """
        vocab_size, most = self.settings.model["vocab_size"], self.stats().max
        for request in requests:
            request.check(vocab_size, most)
        sequences = [
            Generation(request, row, index, seed, deliver)
            for row, request in enumerate(requests)
            for seed in [self._seed(request)]
            for index in range(request.num_return_sequences)
        ]
        with self._changed:
            if self._closing:
                raise Busy("the engine is shutting down")
            self._scheduler.submit(*sequences)
            self._live.update(sequences)
            self._changed.notify()
        return sequences

    def _seed(self, request: GenerationRequest) -> int:
        """The seed of a request's first sequence. Requests without a seed draw differently, as in TensorRT-LLM.

        A new engine starts the same series again.
        """
        if request.seed is not None:
            return request.seed
        return 0 if request.num_return_sequences > 1 else self._seeds.getrandbits(64)

    def cancel(self, sequences: Sequence[Generation]) -> None:
        """End the sequences that have not ended. Each gets a last event, without a token."""
        with self._changed:
            alive = self._live.intersection(sequences)
            for sequence in alive:
                self._scheduler.cancel(sequence)
            self._live -= alive
            self._events.put([Event(sequence, None, None, sequence.cum_log_prob, True) for sequence in alive])

    def stats(self) -> Stats:
        with self._changed:
            return self._scheduler.stats()

    def close(self) -> None:
        """Cancel what is left. Returns when the other ranks have ended."""
        with self._changed:
            self._closing = True
            self.cancel([*self._live])
            self._changed.notify()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        """Keep as many steps in flight as there are stages. When no more can begin, finish the oldest."""
        in_flight: deque[tuple[Step, Tensor | None, int]] = deque()
        log = StepLog()
        while (step := self._next_step(wait=not in_flight)) or in_flight:
            if step:
                begin = time.monotonic_ns()
                in_flight.append((step, self._begin(step, begin), begin))
            else:
                step, own, begin = in_flight.popleft()
                log.note(step, begin, self._finish(step, own))
        self._rank.peers.leave()
        self._events.put(None)

    def _next_step(self, wait: bool) -> Step | None:
        """The next step, or None if none can begin now. With `wait`, None only when the engine closes."""
        with self._changed:
            while (step := self._scheduler.schedule()) is None and wait and not self._closing:
                self._changed.wait()
            return step

    def _begin(self, step: Step, now: int) -> Tensor | None:
        for work in step.context:
            sequence: Any = work.request
            sequence.first_scheduled_ns = sequence.first_scheduled_ns or now
        return self._rank.compute(encode(step, self.settings.scheduling.tokens_per_block))

    @torch.inference_mode()
    def _finish(self, step: Step, own: Tensor | None) -> int:
        """Choose the step's tokens and queue their events. Returns when they were chosen."""
        sequences: list[Any] = [work.request for work in step.works if work.emits]
        chosen = self._choose(self._logits(len(sequences), own), sequences)
        ends = [s.sampler.ends(s.tokens, token) for s, (token, _) in zip(sequences, chosen, strict=True)]
        now = time.monotonic_ns()
        with self._changed:
            self._scheduler.complete(step, [token for token, _ in chosen], ends)
            results = zip(sequences, chosen, strict=True)
            self._events.put([s.event(*choice, now) for s, choice in results if s in self._live])
            self._live.difference_update(s for s in sequences if s.state is State.FINISHED)
        return now

    def _choose(self, logits: Tensor, sequences: list[Generation]) -> list[tuple[int, float | None]]:
        return [
            (token, None) if sequence.sampler.plain else sequence.sampler.next(row, sequence.tokens)
            for sequence, row, token in zip(sequences, logits, logits.argmax(1).tolist(), strict=True)
        ]

    def _logits(self, rows: int, own: Tensor | None) -> Tensor:
        """[rows, vocab_size], put together: each rank of the last stage has a share of the columns."""
        mapping, size = self.settings.mapping, self.settings.model["vocab_size"]
        shape = torch.Size((rows, -(-size // mapping.tp)))
        peers = mapping.tp_group(mapping.pp - 1)
        shares: list[Any] = [self._rank.peers.logits[peer].next(shape) if peer else own for peer in peers]
        return torch.cat(shares, 1)[:, :size]

    def _fail(self, _peer: int) -> None:
        """Tell every request that a rank is lost, and its answer with it. Wait until that is sent."""
        with self._changed:
            self._closing, lost = True, [*self._live]
            self._live.clear()
        error = "a rank of the group has ended, and the rest of the answer is lost. Send the request again"
        self._events.put([Event(sequence, None, None, sequence.cum_log_prob, True, error) for sequence in lost])
        self._events.put(None)
        for thread in self._threads[1:]:
            thread.join(LAST_WORDS_S)

    def _hand_out(self) -> None:
        while (events := self._events.get()) is not None:
            for event in events:
                event.sequence.deliver(event)


def or_exit(loop: Callable[[], None]) -> None:
    """Run the loop. A fault in it is a bug of ours, and no answer would come any more: end the process."""
    try:
        loop()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
