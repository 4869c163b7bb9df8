"""How wrong the load generator is, now and here: the same kind of load sent to a server whose times are known.

What a sample says is compared with the server's own record. Sending late is part of the error: who waits for an answer
does not see it. So is reading late.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from toolkit.errors import ToolkitError
from toolkit.known_truth import KnownTruth, Record, Settings
from toolkit.reports.loadtest.samples import read_samples
from toolkit.slo.generator_error import AtPercentiles, GeneratorError
from toolkit.slo.metrics import Distribution, Sample

if TYPE_CHECKING:
    from toolkit.load.requests import Work

TTFT_MS, ITL_MS = 200.0, 20.0
SECONDS = 8.0
LEAST, MOST = 16, 2000
"""Requests."""
LONGEST_TOKENS = 200
SLACK_CPU = 0.9
"""A process that has used more of its core was late for some of what came."""

Send = Callable[[str, int, Path], None]
"""Sends so many of the test's requests to a URL, and leaves the samples in a folder, with `cpu.json`."""


def requests_of(work: Work) -> int:
    """How many requests show it: as many as take some seconds, at the rate or with the users of the test."""
    if work.users is None:
        seconds = work.due(work.firsts[-1]) or 1.0
        wanted = work.count / seconds * SECONDS
    else:
        tokens = min(work.request(0).request.max_tokens, LONGEST_TOKENS)
        wanted = work.users * max(1.0, SECONDS * 1e3 / (TTFT_MS + (tokens - 1) * ITL_MS))
    return min(max(LEAST, round(wanted)), MOST, work.count)


def own_error(work: Work, protocol: str, send: Send) -> GeneratorError:
    """Run a short test against the built-in server. Raises ToolkitError when that cannot be started."""
    count = requests_of(work)
    settings = Settings(ttft_ms=TTFT_MS, itl_ms=ITL_MS, tokens=LONGEST_TOKENS)
    with tempfile.TemporaryDirectory(prefix="toolkit-self-check-") as folder, KnownTruth(settings) as truth:
        begin, busy, ours = time.monotonic(), _busy_s(), _ours_s(truth.pid)
        send(truth.url(protocol), count, Path(folder))
        others = (_busy_s() - busy - (_ours_s(truth.pid) - ours)) / (time.monotonic() - begin)
        samples, used = read_samples(Path(folder)), read_cpu(Path(folder))
        found = replace(compare(samples, truth.records(), used.cpu if used else None), others_cpu=max(0.0, others))
        tokens = sum(sample.tokens_out for sample in samples)
        return replace(found, tokens_per_s=used.carried(tokens)) if used else found


def compare(samples: Iterable[Sample], records: Iterable[Record], cpu: float | None) -> GeneratorError:
    """The error of each metric's median and tail: what the samples say, less what was sent.

    Raises ToolkitError where no sample is of a request that was answered.
    """
    sent = {record.id: record for record in records if record.whole and record.fault is None}
    pairs = [(sample, sent[sample.id]) for sample in samples if sample.ok and sample.id in sent]
    pairs = [(sample, record) for sample, record in pairs if record.token_times]
    if not pairs:
        hint = "Run it again; --no-self-check does without, and then nothing is known of the generator's error."
        raise ToolkitError("the self-check failed: none of its requests was answered", hint=hint)
    ours, theirs = [sample for sample, _ in pairs], [record for _, record in pairs]
    return GeneratorError(
        ttft_ms=_apart([s.ttft_ms for s in ours if s.ttft_ms is not None], [_ttft_ms(r) for r in theirs]),
        tpot_ms=_apart([s.tpot_ms for s in ours if s.tpot_ms is not None], [_tpot_ms(r) for r in theirs]),
        itl_ms=_apart([gap for s in ours for gap in s.itl_ms], [gap for r in theirs for gap in _gaps_ms(r)]),
        e2e_ms=_apart([s.e2e_ms for s in ours], [(r.token_times[-1] - r.arrived) * 1e3 for r in theirs]),
        dispatch_ms=Distribution(s.dispatch_ms for s in ours).percentile(99),
        cpu=cpu,
        out_of_cpu=cpu is not None and cpu > SLACK_CPU,
    )


@dataclass(frozen=True)
class Used:
    """What a test took of the processor."""

    cpu: float
    """The busiest process's share of a core."""
    seconds: float
    processes: int

    def carried(self, tokens: int) -> float | None:
        """About how many tokens/s one process carries until it is out of CPU, by what these tokens took.

        All that it did is counted as theirs: requests, prompts, the start. So it is too little where tokens are few.
        """
        took = self.cpu * self.seconds * self.processes
        return SLACK_CPU * tokens / took if took and tokens else None


def read_cpu(folder: Path) -> Used | None:
    """As the sender left it."""
    file = folder / "cpu.json"
    return Used(**json.loads(file.read_text())) if file.is_file() else None


def _busy_s() -> float:
    """CPU seconds that all cores of this machine have worked."""
    times = psutil.cpu_times()
    return sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal"))


def _ours_s(server: int) -> float:
    """CPU seconds of this process, of the generators that it started and that have ended, and of the server."""
    own, there = psutil.Process().cpu_times(), psutil.Process(server).cpu_times()
    return own.user + own.system + own.children_user + own.children_system + there.user + there.system


def _apart(measured: Sequence[float], true: Sequence[float]) -> AtPercentiles | None:
    here, there = Distribution(measured), Distribution(true)
    found = [(here.percentile(q), there.percentile(q)) for q in (50, 99)]
    errors = [abs(a - b) for a, b in found if a is not None and b is not None]
    return AtPercentiles(*errors) if len(errors) == 2 else None


def _ttft_ms(record: Record) -> float:
    return (record.token_times[0] - record.arrived) * 1e3


def _tpot_ms(record: Record) -> float:
    times = record.token_times
    return (times[-1] - times[0]) / max(len(times) - 1, 1) * 1e3


def _gaps_ms(record: Record) -> list[float]:
    times = record.token_times
    return [(after - before) * 1e3 for before, after in pairwise(times)]
