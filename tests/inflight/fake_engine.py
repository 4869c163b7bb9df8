"""An engine without a model, that can only know a context by reading it out of KV blocks.

The "keys and values" of a position are a mix of its token and of those of the position before, as in a
transformer, where they depend on the whole prefix. The next token is a mix of all of them. So a wrong block
table, a block shared or taken too early, or a position computed twice changes the text.

A step runs twice: on the first pipeline stage when it is scheduled and, later, on the last stage when it
completes, each stage with KV memory of its own.
"""

from collections import Counter, deque

from toolkit.inflight import Request, Scheduler, SchedulerConfig, State, Step, Work

VOCABULARY = 23
END = 0  # ends a text


def mix(values: list[int]) -> int:
    result = 17
    for value in values:
        result = (result * 1_000_003 + value + 1) % 2_147_483_647
    return result


def next_token(values: list[int]) -> int:
    return mix(values) % VOCABULARY


def expected_output(prompt: list[int], max_tokens: int) -> list[int]:
    """What the engine must generate, computed without blocks, batches or steps."""
    values: list[int] = []
    for token in prompt:
        values.append(mix([*values[-1:], token]))
    output: list[int] = []
    while len(output) < max_tokens and END not in output:
        output.append(next_token(values))
        values.append(mix([*values[-1:], output[-1]]))
    return output


class Stage:
    """One pipeline stage's KV memory."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.size = config.tokens_per_block
        self.memory: dict[tuple[int, int], int] = {}

    def run(self, works: list[Work], inputs: list[list[int]]) -> list[list[int]]:
        """The values of all positions up to each work's last. All read before any writes: in one step
        nobody can count on what another one computes in it."""
        before = [[self.memory[self.slot(work, position)] for position in range(work.start)] for work in works]
        written = set()
        for work, values, tokens in zip(works, before, inputs, strict=True):
            for position, token in enumerate(tokens, work.start):
                slot = self.slot(work, position)
                assert slot not in written, "two sequences write one position of a block"
                written.add(slot)
                values.append(mix([*values[-1:], token]))
                self.memory[slot] = values[-1]
        return before

    def slot(self, work: Work, position: int) -> tuple[int, int]:
        return work.blocks[position // self.size], position % self.size


class FakeEngine:
    """Drives a scheduler and checks, at every move, all that must always hold."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.scheduler = Scheduler(config)
        self.first, self.last = Stage(config), Stage(config)
        self.in_flight: deque[tuple[Step, list[list[int]], list[list[int]]]] = deque()
        self.requests: list[Request] = []
        self.next_position: dict[Request, int] = {}  # of those admitted
        self.reused: Counter[Request] = Counter()  # blocks, in earlier admissions
        self.ended: list[Request] = []
        self.steps = 0
        self.turn = 0  # the micro-batch that the executor's loop comes to next

    def submit(self, request: Request) -> None:
        self.scheduler.submit(request)
        self.requests.append(request)
        self.check()

    def cancel(self, request: Request) -> None:
        expected = request.state if request in self.ended else State.CANCELLED
        self.scheduler.cancel(request)
        assert request.state is expected
        self.note_ends()
        self.check()

    def launch(self) -> Step | None:
        """Schedule a step and run its first stage."""
        idle = {request: request.blocks for request in self.requests if self.is_idle(request)}
        step = self.scheduler.schedule()
        self.check_turn(step)
        self.check_age(idle, step.works if step else [])
        for request in self.requests:
            if request.state is State.PAUSED:
                assert self.config.policy == "max_utilization"
                self.next_position.pop(request, None)
        if step:
            self.steps += 1
            self.check_step(step)
            inputs = [work.request.tokens[work.start : work.start + work.length] for work in step.works]
            self.in_flight.append((step, inputs, self.first.run(step.works, inputs)))
        self.check()
        return step

    def is_idle(self, request: Request) -> bool:
        """Whether a step may take it: it runs, and the step in flight that computes its last token is none."""
        return (
            bool(request.blocks)
            and request not in self.ended
            and request.state is not State.CANCELLED
            and self.next_position[request] < len(request.tokens)
        )

    def land(self) -> None:
        """Run the last stage of the oldest step in flight and complete it."""
        step, inputs, seen_first = self.in_flight.popleft()
        seen = self.last.run(step.works, inputs)
        assert seen == seen_first, "the stages saw different contexts"
        tokens = [next_token(values) for work, values in zip(step.works, seen, strict=True) if work.emits]
        self.scheduler.complete(step, tokens, [token == END for token in tokens])
        self.note_ends()
        self.check()

    def drain(self) -> None:
        """Run until all have ended. Every step computes a position, so that for a request that is never
        computed again there are no more steps than positions."""
        positions = sum(len(request.tokens) + request.max_tokens for request in self.requests)
        again = len(self.requests) if self.config.policy == "max_utilization" else 0
        limit = self.steps + positions * (1 + again)
        while self.scheduler.stats().active:
            assert self.steps <= limit, "starvation"
            while self.launch():
                pass
            assert self.in_flight, "requests are left but nothing can run"
            self.land()
        assert Counter(self.ended) == Counter(self.requests)

    def note_ends(self) -> None:
        for request in self.requests:
            if request.state in (State.FINISHED, State.CANCELLED) and request not in self.ended:
                self.ended.append(request)
                if request.state is State.FINISHED:
                    assert request.output == expected_output(list(request.prompt), request.max_tokens)
                    assert request.tokens == [*request.prompt, *request.output]

    def check_step(self, step: Step) -> None:
        config, works = self.config, step.works
        assert 1 <= len(works) <= config.max_batch_size
        assert step.num_tokens == sum(work.length for work in works) <= config.max_num_tokens
        assert len(self.in_flight) < config.micro_batches
        assert len({work.request for work in works}) == len(works), "a sequence is twice in a step"
        for other, *_ in self.in_flight:
            for work in other.works:
                again = work.request in [work.request for work in works]
                assert not again or not work.emits, "a sequence goes on before its token is known"
        for work in works:
            self.check_work(work)
        for work in step.generation:
            assert work.length == 1
            assert work.emits

    def check_turn(self, step: Step | None) -> None:
        """Micro-batches take turns. Those with nothing to run are passed over; one in flight is waited for."""
        busy = {other.micro_batch for other, *_ in self.in_flight}
        if step:
            while self.turn != step.micro_batch:
                assert self.turn not in busy, "a micro-batch in flight was passed over"
                self.turn = (self.turn + 1) % self.config.micro_batches
            assert self.turn not in busy, "a micro-batch is in flight twice"
            self.turn = (self.turn + 1) % self.config.micro_batches
        elif busy:
            while self.turn not in busy:
                self.turn = (self.turn + 1) % self.config.micro_batches
            assert self.turn == self.in_flight[0][0].micro_batch, "what is waited for is the oldest"

    def check_age(self, idle: dict[Request, list[int]], works: list[Work]) -> None:
        """Among those that a step could take: the youngest are paused, the oldest run."""
        kept = [request.arrival for request, blocks in idle.items() if request.blocks is blocks]
        paused = [request.arrival for request, blocks in idle.items() if request.blocks is not blocks]
        assert max(kept, default=0) < min(paused, default=len(self.requests) + 1)
        arrivals = [work.request.arrival for work in works if work.request.state is State.GENERATION]
        assert arrivals == sorted(arrivals)
        contexts = [work.request.arrival for work in works if work.request.state is State.CONTEXT]
        taken = [work.request for work in works]
        left_out = [request.arrival for request in idle if request.state is State.CONTEXT and request not in taken]
        assert max(contexts, default=0) < min(left_out, default=len(self.requests) + 1)

    def check_work(self, work: Work) -> None:
        request, size = work.request, self.config.tokens_per_block
        reused = request.reused_blocks - self.reused[request]
        # It can be paused and admitted again in one call, when what it lost is now shared with others.
        if request not in self.next_position or reused or work.start < self.next_position[request]:
            assert request not in self.next_position or self.config.policy == "max_utilization"
            self.reused[request] = request.reused_blocks
            assert reused == 0 or self.config.reuse
            self.next_position[request] = reused * size
            older = [other for other in self.requests if other.arrival < request.arrival]
            assert not [other for other in older if other.state in (State.WAITING, State.PAUSED)], "overtaken"
        assert work.start == self.next_position[request], "positions are computed in order, once"
        self.next_position[request] += work.length
        assert 1 <= work.length <= len(request.tokens) - work.start
        assert work.emits == (work.start + work.length == len(request.tokens))
        assert len(work.blocks) * size >= work.start + work.length
        if not work.emits:
            assert self.config.chunked_context
            assert work.length % size == 0
        written = set(work.blocks[work.start // size : -(-(work.start + work.length) // size)])
        for other in self.requests:
            assert other is request or not written & set(other.blocks), "a shared block is written"

    def check(self) -> None:
        pool, stats, config = self.scheduler.pool, self.scheduler.stats(), self.config
        held = Counter(block for request in self.requests for block in request.blocks)
        counted = pool.references if pool.reuse else Counter(set(held))
        assert all(counted[block] == held[block] for block in range(config.num_blocks))
        free = {*pool.idle, *pool.cached, *range(pool.untouched, config.num_blocks)}
        assert free == set(range(config.num_blocks)) - set(held) and len(free) == pool.free
        assert stats.blocks_free + stats.blocks_used == stats.blocks_max == config.num_blocks
        assert stats.blocks_used == len(held)
        self.check_sharing()
        assert all(request.scheduled == request.computed == 0 for request in self.requests if not request.blocks)
        assert all(request.computed <= request.scheduled <= len(request.tokens) for request in self.requests)
        in_flight = [work.request for step, *_ in self.in_flight for work in step.works]
        unended = {request for request in self.requests if request not in self.ended}
        assert stats.active == len(unended | set(in_flight)) == stats.scheduled + stats.waiting
        assert stats.scheduled == len(set(in_flight))
        assert all(request.in_flight == in_flight.count(request) for request in self.requests)
        assert stats.paused == sum(request.state is State.PAUSED for request in self.requests)
        running = [request for request in self.requests if request.blocks]
        assert len(running) <= stats.max == config.max_batch_size * config.micro_batches
        assert stats.active <= stats.max + config.max_queue_size

    def check_sharing(self) -> None:
        holders: dict[int, tuple[int, list[int]]] = {}
        for request in self.requests:
            assert len(set(request.blocks)) == len(request.blocks)
            for index, block in enumerate(request.blocks):
                prefix = request.tokens[: (index + 1) * self.config.tokens_per_block]
                assert holders.setdefault(block, (index, prefix)) == (index, prefix), "wrongly shared"
