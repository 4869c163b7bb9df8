"""Decides what runs in each step, by the rules of TensorRT-LLM's executor, which we rehearse.

Its loop takes the micro-batches in turn: it waits for the tokens of micro-batch k, fetches new requests, fills k
from all that may run now, starts it, and goes on to k + 1. Four rules follow (source files: docs/why/scheduling.md):

- A context that is cut into chunks has one chunk in each micro-batch: the chunks follow each other through the stages.
  Only after its last chunk, and after a generation, must the result come back before the sequence is in another step.
- A new request goes into the micro-batch whose turn it is, next to its generations, until max_batch_size are in it.
- What a micro-batch runs is decided when its last step has ended, not when the first stage becomes idle.
- New requests are fetched between steps: while the loop waits for a micro-batch, nothing begins, even if another
  micro-batch is empty.

What a micro-batch is filled with:

- Generation first, so that running streams do not stutter for a new prompt; then context. Oldest first.
- Greedy: a step takes all that is ready up to its limits. max_batch_size is per micro-batch.
- Admission is first come, first served: no request overtakes a large one, so a large one cannot starve.
- Admission takes blocks for all tokens that a sequence has, even if they are computed in chunks, so that contexts never
  wait for each other's blocks half-way. Later the sequence grows by one block at a time.
- guaranteed_no_evict reserves blocks for prompt + max_tokens at admission: a running sequence is never paused.
- max_utilization reserves none. When blocks run out, the youngest idle sequence is paused, so that the oldest always
  ends. A paused sequence comes back before any later request, and computes its prompt and output again.
"""

from bisect import insort
from collections import deque
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal, NamedTuple

from toolkit.errors import Busy, InputRefused
from toolkit.inflight.blocks import BlockPool
from toolkit.inflight.request import Request, State
from toolkit.inflight.step import Step

_by_arrival = attrgetter("arrival")


@dataclass(frozen=True)
class SchedulerConfig:
    """The limits and policies of a scheduler."""

    max_batch_size: int  # sequences a step
    max_num_tokens: int  # positions a step
    micro_batches: int  # steps in flight at once: the number of pipeline stages
    num_blocks: int
    tokens_per_block: int
    policy: Literal["guaranteed_no_evict", "max_utilization"]
    chunked_context: bool  # a context may be computed in several steps
    reuse: bool  # equal prefixes share blocks
    max_queue_size: int  # requests beyond those that can run at once; more are refused
    max_seq_len: int  # prompt + output


class Stats(NamedTuple):
    """Gauges of the `nv_trt_llm_*` metrics, as of now."""

    active: int  # submitted and not ended
    max: int  # that can run at once
    scheduled: int  # in steps in flight; counted once, however many chunks of it are
    context: int  # of those, in the context phase; the rest generate
    context_tokens: int  # in steps in flight
    waiting: int  # active and not scheduled
    paused: int
    iterations: int  # steps scheduled since the start
    blocks_max: int
    blocks_free: int  # cached ones included: they can be taken
    blocks_used: int
    blocks_reused: int  # found in the cache since the start
    micro_batch: int  # of the newest step


class Scheduler:
    """Not thread-safe: one thread calls it. Steps complete in the order in which they were scheduled."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.pool = BlockPool(config.num_blocks, config.tokens_per_block, config.reuse)
        self._queue: deque[Request] = deque()  # waiting or paused; by arrival
        self._ready: list[Request] = []  # admitted, with positions that no step computes yet; by arrival
        self._in_flight: deque[Step] = deque()
        self._slots: list[Step | None] = [None] * config.micro_batches
        self._turn = 0  # the micro-batch that is scheduled next
        self._newest = 0  # the micro-batch of the newest step
        self._reserved = 0  # blocks promised to admitted requests and not taken yet
        self._active = self._arrivals = self._steps = self._reused = 0
        self.pauses = 0  # how often a sequence lost its blocks, to be computed again

    def submit(self, *requests: Request) -> None:
        """Queue new requests, all or none.

        Raises InputRefused if one could never run; Busy, in the executor's words, if the queue has no room for all.
        The executor takes as many out of its queue as can run at once, also those that no step has room for yet.
        """
        for request in requests:
            self._refuse_impossible(request)
        most, at_once = self.config.max_queue_size, self.config.max_batch_size * self.config.micro_batches
        if max(0, self._active - at_once) + len(requests) > most:
            what = f"Maximum queue size of {most} has been reached, please try again later"
            # The words of Triton for its own queue: NVIDIA's gRPC client knows no others.
            raise Busy(what, hint="Exceeds maximum queue size: wait, or raise limits.max_queue_size.")
        for request in requests:
            self._arrivals += 1
            request.arrival = self._arrivals
            self._queue.append(request)
        self._active += len(requests)

    def _refuse_impossible(self, request: Request) -> None:
        config, prompt, total = self.config, len(request.prompt), len(request.prompt) + request.max_tokens
        if prompt < 1 or request.max_tokens < 1:
            raise InputRefused(f"{prompt} tokens of prompt, max_tokens {request.max_tokens}: give 1 or more of each")
        # A sequence that was paused comes back with its output as context.
        context = total - 1 if config.policy == "max_utilization" else prompt
        chunk = min(context, config.tokens_per_block) if config.chunked_context else context
        for what, size, limit, most in (
            ("prompt + max_tokens", total, "max_seq_len", config.max_seq_len),
            ("prompt + max_tokens", total, "the KV cache", config.num_blocks * config.tokens_per_block),
            ("context in one step", chunk, "max_num_tokens", config.max_num_tokens),
        ):
            if size > most:
                raise InputRefused(f"{what} is {size} tokens; {limit} allows {most}", hint="Send fewer.")

    def cancel(self, request: Request) -> None:
        """End a request at any moment; no effect if it has ended. If it is in flight, its blocks go back,
        and it stops counting as active, when the last of its steps completes."""
        if request.state in (State.FINISHED, State.CANCELLED):
            return
        if request.state in (State.WAITING, State.PAUSED):
            self._queue.remove(request)
        elif request in self._ready:
            self._ready.remove(request)
        request.state = State.CANCELLED
        if not request.in_flight:
            self._end(request)

    def schedule(self) -> Step | None:
        """The next step in turn. Micro-batches that have nothing to run are passed over, up to one in flight.
        None if the turn is that one's, which has to `complete` first, or if none has anything to run."""
        for _ in self._slots:
            if self._slots[self._turn]:
                return None
            step = self._fill(Step(self._turn))
            self._turn = (self._turn + 1) % len(self._slots)
            if step.num_tokens:
                self._slots[step.micro_batch], self._newest = step, step.micro_batch
                self._in_flight.append(step)
                self._steps += 1
                return step
        return None

    def complete(self, step: Step, tokens: list[int], finished: list[bool]) -> None:
        """Take the results of the oldest step in flight: for each work that emits, in step order, a token
        and whether it ends its request; max_tokens ends it too. Results of cancelled requests are ignored.
        Raises ValueError for another step or another number of results."""
        if not self._in_flight or self._in_flight[0] is not step:
            raise ValueError("steps complete once, in the order in which they were scheduled")
        works = step.works
        emitting = sum([work.emits for work in works])
        if not len(tokens) == len(finished) == emitting:
            raise ValueError(f"{emitting} works of the step emit: {len(tokens)} tokens, {len(finished)} ends")
        results = zip(tokens, finished, strict=True)
        self._in_flight.popleft()
        self._slots[step.micro_batch] = None
        reuse, cancelled, generation = self.pool.reuse, State.CANCELLED, State.GENERATION
        for request, start, length, emits, blocks in works:
            request.in_flight -= 1
            if blocks is request.blocks:  # they are not after a pause while the chunk was in flight
                request.computed = start + length
                if reuse:
                    self.pool.publish(request, start)
            token, ends = next(results) if emits else (0, False)
            if request.state is cancelled:
                if not request.in_flight:
                    self._end(request)
            elif emits:
                request.tokens.append(token)
                request.output.append(token)
                if ends or len(request.output) >= request.max_tokens:
                    request.state = State.FINISHED
                    self._end(request)
                else:
                    request.state = generation
                    self._ready.append(request)
        self._ready.sort(key=_by_arrival)

    def stats(self) -> Stats:
        works = [work for step in self._in_flight for work in step.context]
        context, context_tokens = len({work.request for work in works}), sum(work.length for work in works)
        scheduled = context + sum(len(step.generation) for step in self._in_flight)
        paused = sum(request.state is State.PAUSED for request in self._queue)
        most = self.config.max_batch_size * self.config.micro_batches
        blocks, free = self.config.num_blocks, self.pool.free
        requests = (self._active, most, scheduled, context, context_tokens, self._active - scheduled, paused)
        return Stats(*requests, self._steps, blocks, free, blocks - free, self._reused, self._newest)

    def _fill(self, step: Step) -> Step:
        """Put into a step all that is ready, as far as it goes in."""
        generation, most = State.GENERATION, min(self.config.max_batch_size, self.config.max_num_tokens)
        size = self.config.tokens_per_block
        for request in [request for request in self._ready if request.state is generation]:
            if step.num_tokens == most:
                break
            # The state again, because it may have been paused a moment ago for an older one.
            if request.state is generation and (request.scheduled < len(request.blocks) * size or self._grow(request)):
                step.add_generation(request)
        self._add_contexts(step)
        return step

    def _add_contexts(self, step: Step) -> None:
        """Put into a step the contexts that it has room for: first those that have begun, then those in the queue."""
        if not self._ready and not self._queue:
            return
        contexts = [request for request in self._ready if request.state is State.CONTEXT]
        while following := contexts.pop(0) if contexts else self._admit(step):
            length = self._fit(step, len(following.tokens) - following.scheduled)
            if not length:
                break
            step.add_context(following, length)
        self._ready = [request for request in self._ready if request.scheduled < len(request.tokens)]

    def _fit(self, step: Step, remaining: int) -> int:
        """How many of a sequence's remaining positions go into the step: all, or whole blocks of them
        (what paged context attention wants), or none."""
        if len(step.context) + len(step.generation) == self.config.max_batch_size:
            return 0
        room = self.config.max_num_tokens - step.num_tokens
        if remaining <= room:
            return remaining
        return room - room % self.config.tokens_per_block if self.config.chunked_context else 0

    def _admit(self, step: Step) -> Request | None:
        """The oldest request in the queue, now with blocks, if the step and the pool have room for it."""
        room = self._room_for_next(step)
        if room is None:
            return None
        matched, table, most = room
        request, size = self._queue.popleft(), self.config.tokens_per_block
        insort(self._ready, request, key=_by_arrival)
        request.state = State.CONTEXT
        request.scheduled = request.computed = len(matched) * size
        evicted = self.pool.evicted
        request.blocks, request.promised = self.pool.take(matched, table - len(matched)), most - table
        request.taken_blocks += table - len(matched)
        request.evicted_blocks += self.pool.evicted - evicted
        request.reused_blocks += len(matched)
        self._reused += len(matched)
        self._reserved += most - table
        return request

    def _room_for_next(self, step: Step) -> tuple[list[int], int, int] | None:
        """What the oldest request in the queue would get: (cached blocks, blocks now, blocks at most). None where the
        queue is empty, or the step or the pool has no room."""
        unpromised = self.pool.free - self._reserved
        if not self._queue or not unpromised or not self._fit(step, 1):
            return None
        request, size = self._queue[0], self.config.tokens_per_block
        matched = self.pool.match(request)
        table = most = -(-len(request.tokens) // size)
        if self.config.policy == "guaranteed_no_evict":
            most = -(-(len(request.prompt) + request.max_tokens) // size)
        in_use = sum(self.pool.references[block] > 0 for block in matched)
        if most - in_use > unpromised or not self._fit(step, len(request.tokens) - len(matched) * size):
            return None
        return matched, table, most

    def _grow(self, request: Request) -> bool:
        """Give it the block that its next position needs. False if it has to wait, because others in
        flight hold the blocks; with none in flight the oldest can pause all others, so it goes on."""
        while not self.pool.free:
            youngest = self._ready[-1]
            if youngest is request:
                return False
            self._ready.pop()
            self._release(youngest)
            youngest.state = State.PAUSED
            self.pauses += 1
            insort(self._queue, youngest, key=_by_arrival)
        request.blocks += self.pool.take([], 1)
        if request.promised:
            request.promised -= 1
            self._reserved -= 1
        return True

    def _end(self, request: Request) -> None:
        self._release(request)
        self._active -= 1

    def _release(self, request: Request) -> None:
        """Give its blocks back. Chunks of it that are in flight still write them, but before any later step does: each
        stage computes the steps in order."""
        self.pool.release(request.blocks)
        self._reserved -= request.promised
        request.blocks, request.scheduled, request.computed, request.promised = [], 0, 0, 0
