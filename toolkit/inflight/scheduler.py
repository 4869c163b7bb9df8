"""What runs in each step: admission, micro-batches, token budget, chunks, KV blocks, pauses.

Policies are those of TensorRT-LLM's executor, whose deployments we rehearse:

- Generation first, then context, oldest first: a running stream should not stutter for a new prompt.
- Greedy: a step takes all that is ready, up to the limits. `max_batch_size` is per micro-batch.
- Admission is first come, first served. A large request at the head waits and nobody overtakes it, so that
  it cannot starve.
- At admission a sequence gets the blocks of all its known tokens, even if they are computed in chunks; later
  it grows by a block at a time.
- guaranteed_no_evict reserves blocks for prompt + max_tokens at admission: what runs is never paused.
  max_utilization reserves nothing: when blocks run out the youngest idle sequence is paused, its blocks
  are taken, and it is computed again (prompt and output) before any request that never ran is admitted.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Literal, NamedTuple

from toolkit.errors import Busy, InputRefused, ToolkitError
from toolkit.inflight.blocks import BlockPool, extend_digests
from toolkit.inflight.request import Request, State

_by_arrival = attrgetter("arrival")


@dataclass(frozen=True)
class SchedulerConfig:
    """Raises ToolkitError for values with which nothing could ever run."""

    max_batch_size: int  # sequences a step
    max_num_tokens: int  # positions a step
    micro_batches: int  # steps in flight at once: the number of pipeline stages
    num_blocks: int
    tokens_per_block: int
    policy: Literal["guaranteed_no_evict", "max_utilization"]
    chunked_context: bool  # a context may be computed in several steps
    reuse: bool  # share the blocks of equal prefixes
    max_queue_size: int  # requests that wait for admission
    max_seq_len: int  # prompt + output

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise ToolkitError(f"{value} is less than 1", where=name)
        if self.policy not in ("guaranteed_no_evict", "max_utilization"):
            hint = "Use guaranteed_no_evict or max_utilization."
            raise ToolkitError(f"{self.policy!r} is no scheduler policy", where="policy", hint=hint)
        if self.chunked_context and self.max_num_tokens < self.tokens_per_block:
            what = (
                f"{self.max_num_tokens} is less than one chunk, {self.tokens_per_block} tokens (a KV block)"
            )
            raise ToolkitError(what, where="max_num_tokens", hint="Raise it or lower tokens_per_block.")

    def blocks_for(self, positions: int) -> int:
        return -(-positions // self.tokens_per_block)


class Work(NamedTuple):
    """One sequence's part of a step: compute positions start .. start + length - 1 of request.tokens."""

    request: Request
    start: int
    length: int
    emits: bool  # the logits of the last position give a new token
    blocks: tuple[int, ...]  # block table over start + length positions or more; a copy, it does not change


@dataclass
class Step:
    micro_batch: int  # slot: 0 .. micro_batches - 1
    context: list[Work] = field(default_factory=list)
    generation: list[Work] = field(default_factory=list)
    num_tokens: int = 0

    @property
    def works(self) -> list[Work]:
        return self.context + self.generation


class Stats(NamedTuple):
    """Gauges under the names of the `nv_trt_llm_*` metrics, as they are now."""

    active: int  # submitted and not ended
    max: int  # that can run at once, over all micro-batches
    scheduled: int  # in a step in flight
    context: int  # of those, in the context phase
    waiting: int  # active - scheduled
    queued: int  # of those, never admitted: what max_queue_size limits
    paused: int
    generation_requests: int
    total_context_tokens: int  # of the steps in flight
    micro_batch_id: int  # of the latest step
    iteration_counter: int  # steps scheduled so far
    blocks_max: int
    blocks_free: int  # cached blocks included: they can be taken
    blocks_used: int
    blocks_cached: int  # unreferenced, kept for reuse
    blocks_reused: int  # since the start
    tokens_per_block: int


class Scheduler:
    """Not thread-safe: the engine's own thread calls it. Steps complete in the order of scheduling."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.pool = BlockPool(config.num_blocks)
        self._max_running = config.max_batch_size * config.micro_batches
        self._waiting: deque[Request] = deque()
        self._paused: list[Request] = []  # by arrival; all older than those that wait
        self._ready: list[Request] = []  # admitted and in no step; by arrival
        self._in_flight: deque[Step] = deque()
        self._running = 0  # admitted: ready or in flight
        self._reserved = 0  # blocks promised to running sequences and not taken yet
        self._reused = 0
        self._arrivals = 0
        self._steps = 0

    def submit(self, request: Request) -> None:
        """Queue a new request. Raises InputRefused if it could never run, Busy if the queue is full."""
        if request.state is not State.NEW:
            raise ValueError(f"request {request.id!r} was submitted before")
        self._refuse_impossible(request)
        if len(self._waiting) >= self.config.max_queue_size:
            what = f"the maximum queue size of {self.config.max_queue_size} has been reached"
            raise Busy(what, hint="Please try again later.")
        request.state = State.WAITING
        request.arrival = self._arrivals
        self._arrivals += 1
        self._waiting.append(request)

    def _refuse_impossible(self, request: Request) -> None:
        config, prompt, total = self.config, len(request.prompt), len(request.prompt) + request.max_tokens
        if not prompt:
            raise InputRefused("the prompt has no tokens")
        if request.max_tokens < 1:
            raise InputRefused(f"max_tokens is {request.max_tokens}; expected at least 1")
        if total > config.max_seq_len:
            what = f"prompt of {prompt} + max_tokens of {request.max_tokens} exceed max_seq_len {config.max_seq_len}"
            raise InputRefused(what, hint="Shorten the prompt or ask for fewer tokens.")
        if config.blocks_for(total) > config.num_blocks:
            what = f"{prompt} + {request.max_tokens} tokens need {config.blocks_for(total)} KV blocks"
            raise InputRefused(f"{what}; there are {config.num_blocks}")
        # A paused sequence comes back with its output as part of the context, and must fit then too.
        context = total - 1 if config.policy == "max_utilization" else prompt
        if not config.chunked_context and context > config.max_num_tokens:
            what = f"a context of {context} tokens exceeds max_num_tokens {config.max_num_tokens}"
            raise InputRefused(what, hint="Shorten the prompt, or turn on chunked_context.")

    def cancel(self, request: Request) -> None:
        """End a request at any moment. If it is in flight its blocks go back when its step completes.
        Nothing happens if it has ended."""
        if request.state is State.WAITING:
            self._waiting.remove(request)
        elif request.state is State.PAUSED:
            self._paused.remove(request)
        elif request in self._ready:
            self._ready.remove(request)
            self._leave(request)
        elif not request.in_flight:
            return
        request.state = State.CANCELLED

    def schedule(self) -> Step | None:
        """The next micro-batch; None when all slots are in flight or nothing can run before a `complete`."""
        if len(self._in_flight) == self.config.micro_batches:
            return None
        step = Step(self._steps % self.config.micro_batches)
        self._add_generation(step)
        self._add_context(step)
        if not step.num_tokens:
            return None
        for work in step.works:
            work.request.in_flight = True
        self._ready = [request for request in self._ready if not request.in_flight]
        self._in_flight.append(step)
        self._steps += 1
        return step

    def complete(self, step: Step, tokens: list[int], finished: list[bool]) -> None:
        """Take the results of the oldest step in flight: one token, and whether it ends its request, for
        each work that emits, in step order. A request also ends at max_tokens. What comes for a request
        that was cancelled in between is ignored. Raises ValueError for another step or other lengths."""
        if not self._in_flight or step is not self._in_flight[0]:
            raise ValueError("steps complete in the order in which they were scheduled, each once")
        emitting = sum(work.emits for work in step.works)
        if len(tokens) != emitting or len(finished) != emitting:
            raise ValueError(f"{emitting} works emit; got {len(tokens)} tokens, {len(finished)} ends")
        self._in_flight.popleft()
        results = zip(tokens, finished, strict=True)
        for work in step.works:
            request = work.request
            request.in_flight = False
            request.computed = work.start + work.length
            self._publish(request)
            token, ends = next(results) if work.emits else (None, False)
            if token is not None and request.state is not State.CANCELLED:
                request.tokens.append(token)
                request.output.append(token)
                ends = ends or len(request.output) >= request.max_tokens
                request.state = State.FINISHED if ends else State.GENERATION
            if request.ended:
                self._leave(request)
            else:
                self._ready.append(request)
        self._ready.sort(key=_by_arrival)

    def stats(self) -> Stats:
        scheduled = sum(len(step.context) + len(step.generation) for step in self._in_flight)
        context = sum(len(step.context) for step in self._in_flight)
        active = len(self._waiting) + len(self._paused) + self._running
        return Stats(
            active=active,
            max=self._max_running,
            scheduled=scheduled,
            context=context,
            waiting=active - scheduled,
            queued=len(self._waiting),
            paused=len(self._paused),
            generation_requests=scheduled - context,
            total_context_tokens=sum(step.num_tokens - len(step.generation) for step in self._in_flight),
            micro_batch_id=max(self._steps - 1, 0) % self.config.micro_batches,
            iteration_counter=self._steps,
            blocks_max=self.pool.size,
            blocks_free=self.pool.available,
            blocks_used=self.pool.size - self.pool.available,
            blocks_cached=self.pool.cached,
            blocks_reused=self._reused,
            tokens_per_block=self.config.tokens_per_block,
        )

    def _room(self, step: Step) -> int:
        """Positions that still fit in the step."""
        full = len(step.context) + len(step.generation) == self.config.max_batch_size
        return 0 if full else self.config.max_num_tokens - step.num_tokens

    def _add_generation(self, step: Step) -> None:
        for request in [request for request in self._ready if request.state is State.GENERATION]:
            if not self._room(step):
                return
            # It may have been paused a moment ago, for an older one.
            if request.state is State.GENERATION and self._grow(request):
                step.generation.append(Work(request, request.computed, 1, True, tuple(request.blocks)))
                step.num_tokens += 1

    def _add_context(self, step: Step) -> None:
        for request in self._ready:
            if request.state is State.CONTEXT:
                length = self._chunk(len(request.tokens) - request.computed, self._room(step))
                if not length:
                    return
                self._add_chunk(step, request, length)
        while admitted := self._admit(self._room(step)):
            self._add_chunk(step, *admitted)

    def _add_chunk(self, step: Step, request: Request, length: int) -> None:
        emits = request.computed + length == len(request.tokens)
        step.context.append(Work(request, request.computed, length, emits, tuple(request.blocks)))
        step.num_tokens += length

    def _chunk(self, remaining: int, room: int) -> int:
        """How many of the remaining context positions to compute in a step with this room; 0 to wait.
        All chunks but the last are whole blocks, as paged context attention demands."""
        if remaining <= room:
            return remaining
        return room - room % self.config.tokens_per_block if self.config.chunked_context else 0

    def _admit(self, room: int) -> tuple[Request, int] | None:
        """Admit the oldest request that is paused or waits, with the length of its first chunk, if it fits."""
        config = self.config
        unpromised = self.pool.available - self._reserved
        if not (
            room and unpromised and self._running < self._max_running and (self._paused or self._waiting)
        ):
            return None
        request = self._paused[0] if self._paused else self._waiting[0]
        context = len(request.tokens)
        matched = self._match(request)
        length = self._chunk(context - len(matched) * config.tokens_per_block, room)
        total = (
            len(request.prompt) + request.max_tokens if config.policy == "guaranteed_no_evict" else context
        )
        new = config.blocks_for(total) - len(matched)
        if not length or new + self.pool.cost(matched) > unpromised:
            return None
        (self._paused if self._paused else self._waiting).remove(request)
        self.pool.hold(matched)
        taken = config.blocks_for(context) - len(matched)
        request.blocks = matched + [self.pool.take() for _ in range(taken)]
        request.reserved = new - taken
        request.computed = len(matched) * config.tokens_per_block
        request.published = len(matched)
        request.reused_blocks += len(matched)
        request.state = State.CONTEXT
        self._reused += len(matched)
        self._reserved += request.reserved
        self._running += 1
        return request, length

    def _match(self, request: Request) -> list[int]:
        """Cached blocks of its prefix. Never its last token: its logits give the next one."""
        if not self.config.reuse:
            return []
        full = (len(request.tokens) - 1) // self.config.tokens_per_block
        extend_digests(request.digests, request.tokens, self.config.tokens_per_block, full)
        return self.pool.match(request.digests[:full])

    def _grow(self, request: Request) -> bool:
        """Make room for one more position. False if it must wait: younger sequences hold the blocks in
        steps in flight. The oldest never waits for long: when nothing is in flight it can pause all others."""
        if request.computed < len(request.blocks) * self.config.tokens_per_block:
            return True
        while not self.pool.available:
            youngest = self._ready[-1]
            if youngest is request:
                return False
            self._pause(youngest)
        request.blocks.append(self.pool.take())
        if request.reserved:
            request.reserved -= 1
            self._reserved -= 1
        return True

    def _pause(self, request: Request) -> None:
        self._ready.remove(request)
        self._leave(request)
        request.computed = 0
        request.state = State.PAUSED
        insort(self._paused, request, key=_by_arrival)

    def _leave(self, request: Request) -> None:
        """Take a sequence out of the running ones, and its blocks back."""
        self.pool.release(request.blocks)
        request.blocks = []
        self._reserved -= request.reserved
        request.reserved = 0
        self._running -= 1

    def _publish(self, request: Request) -> None:
        """Offer its newly filled blocks for reuse: only now that all stages have computed them."""
        full = request.computed // self.config.tokens_per_block
        if self.config.reuse and full > request.published:
            extend_digests(request.digests, request.tokens, self.config.tokens_per_block, full)
            for index in range(request.published, full):
                self.pool.publish(request.blocks[index], request.digests[index])
            request.published = full
