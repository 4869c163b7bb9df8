"""Requests with due times and lengths, made from a seed. The same seed gives the same requests."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from toolkit.config.workload import Lengths, Workload
from toolkit.errors import ToolkitError
from toolkit.model.chat_template import ChatTemplate
from toolkit.workload.sharegpt import Turn, read_turns
from toolkit.workload.trace import Trace, check_length, has_times, no_blocks, read_trace, tokens_of
from toolkit.workload.trace_forms import SHAREGPT, form_of

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

DEFAULT_RATE = 1.0
NO_TEMPLATE = "the model has no chat template: a prompt is its turns, separated by empty lines"
AnyWorkload = TypeVar("AnyWorkload", bound=Workload)


class Planned(NamedTuple):
    """One request of the traffic."""

    due: float
    """Seconds from the beginning. In a closed loop only first requests have a time: each later one is sent when the
    last has ended."""
    prompt: Sequence[int]
    """Token ids. They say only which prompts have tokens in common."""
    output_tokens: int


@dataclass(frozen=True)
class Traffic:
    """The requests of a run, in the order in which they are due."""

    requests: tuple[Planned, ...]
    rate: float | None
    """Mean requests/s that are due; None in a closed loop."""
    users: int | None
    """Users of a closed loop; None otherwise."""
    shares_prefixes: bool
    """Whether prompts have common prefixes, so that KV blocks can be reused."""
    notes: tuple[str, ...] = ()
    """What was left out of a trace, and what looks wrong in it."""

    @property
    def warmup(self) -> int:
        """How many requests at the beginning are not judged: a twentieth, or one per user in a closed loop."""
        return min(self.users or len(self.requests) // 20, len(self.requests) // 2)

    def starting_over(self, seconds: float, seed: int) -> Traffic:
        """A closed loop whose users begin at random times within `seconds`, and not together.

        Users who begin together with requests of equal length stay in step for ever: each then waits for the prompts
        of all the others. Users who come one by one do not.
        """
        rnd = random.Random(f"{seed} users")
        starts = sorted(rnd.uniform(0, seconds) for _ in range(self.users or 0))
        first = tuple(r._replace(due=due) for r, due in zip(self.requests, starts, strict=False))
        return replace(self, requests=first + self.requests[len(first) :])

    def opened(self) -> Traffic:
        """The same requests as an open loop. Requests without times get Poisson arrivals at 1 per second."""
        if self.rate is not None and self.requests[-1].due > self.requests[0].due:
            return self
        rnd = random.Random("opened")
        dues = accumulate(rnd.expovariate(1.0) for _ in self.requests)
        requests = tuple(r._replace(due=due) for r, due in zip(self.requests, dues, strict=True))
        return replace(self, requests=requests, rate=1.0, users=None)

    def first(self, count: int) -> Traffic:
        """The first `count` requests of an open loop, with the rate of these requests."""
        requests = self.requests[:count]
        span = requests[-1].due - requests[0].due
        return replace(self, requests=requests, rate=(len(requests) - 1) / span if span else self.rate)

    def dealt(self, replicas: int) -> Traffic:
        """The requests of one replica in an open loop, when each replica gets the next request in turn."""
        rate = None if self.rate is None else self.rate / replicas
        return replace(self, requests=self.requests[::replicas], rate=rate)

    def repeated(self, count: int, step: int = 1) -> Traffic:
        """`count` requests of an open loop: every `step`-th of these requests repeated, each time with new prompts."""
        size = len(self.requests)
        span = self.requests[-1].due - self.requests[0].due
        period = span * size / (size - 1) if span else size / (self.rate or DEFAULT_RATE)
        ids = [(min(request.prompt), max(request.prompt)) for request in self.requests if self.shares_prefixes]
        width = max(high for _, high in ids) - min(low for low, _ in ids) + 1 if ids else 0
        requests = []
        for number in range(0, count * step, step):
            copy, place = divmod(number, size)
            request = self.requests[place]
            due = request.due + copy * period
            requests.append(request._replace(due=due, prompt=_renamed(request.prompt, copy * width)))
        return replace(self, requests=tuple(requests), rate=size / period / step)

    def at(self, rate: float) -> Traffic:
        """The same requests in the same order at another mean rate. Only for an open loop."""
        assert self.rate is not None
        slower = self.rate / rate
        return replace(self, rate=rate, requests=tuple(r._replace(due=r.due * slower) for r in self.requests))


def traffic_of(deployment: Deployment) -> Traffic:
    """The traffic of the YAML's workload. Raises ToolkitError for a request that the limits do not allow."""
    workload, where = with_arrivals(deployment.workload), f"{deployment.file}: workload"
    most, rate = deployment.limits.max_seq_len, deployment.workload.rate
    if workload.arrivals == "trace":
        return _replayed(workload, most, where)
    rate = rate or deployment.slo.requests_per_s or DEFAULT_RATE
    if workload.trace is None:
        return _drawn(workload, rate, most, where)
    return _recorded(deployment, workload, rate, most)


def with_arrivals(workload: AnyWorkload) -> AnyWorkload:
    """The workload with the form of its trace, and Poisson arrivals if the trace has no times (ShareGPT)."""
    if workload.trace is None:
        return workload
    form = workload.trace_form or form_of(workload.trace)
    changes = {"arrivals": "poisson"} if workload.arrivals == "trace" and not has_times(form) else {}
    return workload.model_copy(update={"trace_form": form, **changes})


def lines_of(workload: Workload, trace: Path, most: int) -> Trace:
    """Read the trace of a workload."""
    return read_trace(trace, workload.requests, most, workload.trace_form, workload.trace_block_tokens)


def turns_of(deployment: Deployment, workload: Workload, trace: Path) -> tuple[list[Turn], tuple[str, ...]]:
    """The turns of recorded conversations, in the model's chat template, counted by its tokenizer; and notes."""
    from toolkit.model.tokenizer import tokenizer_file
    from toolkit.workload.words import Counter

    if workload.trace_block_tokens is not None:
        raise no_blocks(trace, SHAREGPT)
    template = ChatTemplate(deployment.model.path, deployment.model.chat_template)
    counter = Counter(tokenizer_file(deployment.model.path, deployment.shape.vocab_size))
    turns, notes = read_turns(trace, workload.requests, template, counter, deployment.limits.max_seq_len)
    return turns, notes if template.is_there else (*notes, NO_TEMPLATE)


@lru_cache(maxsize=8)
def _drawn(workload: Workload, rate: float, most: int, where: str) -> Traffic:
    """Requests of random lengths. Kept, because a plan asks for the same ones with many limits and layouts."""
    shared = workload.shared_prefix_tokens
    drawn = enumerate(islice(lengths(workload, most, where), workload.requests))
    sizes = ((prompt_of(number, shared, size), output) for number, (size, output) in drawn)
    return _timed(workload, rate, sizes, shared > 0)


def _recorded(deployment: Deployment, workload: Workload, rate: float, most: int) -> Traffic:
    """The requests of a trace, at other times."""
    assert workload.trace is not None
    if has_times(workload.trace_form):
        lines, notes = lines_of(workload, workload.trace, most)
        sizes = [(tokens_of(line), line.output_length) for line in lines]
        return _timed(workload, rate, sizes, any(line.blocks for line in lines), notes)
    turns, notes = turns_of(deployment, workload, workload.trace)
    sizes = [(prompt_of(turn.conversation, 0, turn.prompt_tokens), turn.output_tokens) for turn in turns]
    return _timed(workload, rate, sizes, len({turn.conversation for turn in turns}) < len(turns), notes)


def _timed(
    workload: Workload,
    rate: float,
    sizes: Iterable[tuple[Sequence[int], int]],
    shares: bool,
    notes: tuple[str, ...] = (),
) -> Traffic:
    """Times, prompts and outputs have separate random generators, so that a change of one leaves the others alone."""
    closed = workload.arrivals == "closed"
    dues = repeat(0.0) if closed else accumulate(interval / rate for interval in intervals(workload))
    requests = tuple(Planned(due, prompt, output) for due, (prompt, output) in zip(dues, sizes, strict=False))
    return Traffic(requests, None if closed else rate, workload.users if closed else None, shares, notes)


def intervals(workload: Workload) -> Iterator[float]:
    """Endless times between requests, with a mean of 1."""
    rnd = random.Random(f"{workload.seed} times")
    shape = workload.burstiness if workload.arrivals == "gamma" else 1.0
    while True:
        yield 1.0 if workload.arrivals == "constant" else rnd.gammavariate(shape, 1 / shape)


def lengths(workload: Workload, most: int, where: str) -> Iterator[tuple[int, int]]:
    """Endless pairs of prompt and output tokens, one pair per request."""
    prompts, outputs = (random.Random(f"{workload.seed} {what}") for what in ("prompts", "outputs"))
    prompt_length = _length(workload.prompt_tokens, prompts)
    output_length = _length(workload.output_tokens, outputs)
    while True:
        length, output = max(prompt_length(), workload.shared_prefix_tokens + 1), output_length()
        check_length(length, output, most, where, "Raise the limit or shorten the requests, for example with max.")
        yield length, output


def _replayed(workload: Workload, most: int, where: str) -> Traffic:
    if workload.trace is None:
        raise ToolkitError("trace: missing", where=where, hint="Give the file to replay.")
    lines, notes = lines_of(workload, workload.trace, most)
    planned = tuple(Planned(line.due, tokens_of(line), line.output_length) for line in lines)
    span = planned[-1].due
    rate = (len(planned) - 1) / span if span else float(len(planned))
    traffic = Traffic(planned, rate, None, any(line.blocks for line in lines), notes)
    return traffic.at(workload.rate) if workload.rate else traffic


def _renamed(prompt: Sequence[int], by: int) -> Sequence[int]:
    """The same tokens with other ids: each is `by` higher."""
    if isinstance(prompt, range):
        return range(prompt.start + by, prompt.stop + by, prompt.step)
    return [token + by for token in prompt] if by else prompt


def _length(lengths: int | Lengths, rnd: random.Random) -> Callable[[], int]:
    if isinstance(lengths, int):
        return lambda: lengths
    if lengths.mean is None:
        assert lengths.max is not None  # toolkit/config/workload.py
        low, high = lengths.min, lengths.max
        return lambda: rnd.randint(low, high)
    variance = math.log(1 + lengths.cv**2)
    centre, spread = math.log(lengths.mean) - variance / 2, math.sqrt(variance)
    return lambda: max(lengths.min, min(round(rnd.lognormvariate(centre, spread)), lengths.max or 10**9))


def prompt_of(number: int, shared: int, length: int) -> Sequence[int]:
    """Token ids of a prompt: first the `shared` ones that all have, then ones that no other prompt has."""
    own = range((number + 1) << 32, ((number + 1) << 32) + length - shared)
    return [*range(shared), *own] if shared else own
