"""Measures the error of the load generator on this machine: the same load, on a server whose times are known.

Each sample is compared with the server's own record. The error includes sending late and reading late.
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
from toolkit.slo.distribution import Distribution
from toolkit.slo.generator_error import AtPercentiles, GeneratorError
from toolkit.slo.sample import Sample

if TYPE_CHECKING:
    from toolkit.load.requests import RequestSource

TTFT_MS, ITL_MS = 200.0, 20.0
SECONDS = 8.0
LEAST, MOST = 16, 2000
"""Requests."""
LONGEST_TOKENS = 200
SLACK_CPU = 0.9
"""A process that used a larger share of its core read or sent late."""

Send = Callable[[str, int, Path], None]
"""Sends a number of the test's requests to a URL, and writes the samples and `cpu.json` into a folder."""


def requests_of(source: RequestSource) -> int:
    """How many requests the self-check sends: those of a few seconds, at the rate or with the users of the test."""
    if source.users is None:
        seconds = source.due(source.firsts[-1]) or 1.0
        requests = source.count / seconds * SECONDS
    else:
        tokens = min(source.request(0).request.max_tokens, LONGEST_TOKENS)
        requests = source.users * max(1.0, SECONDS * 1e3 / (TTFT_MS + (tokens - 1) * ITL_MS))
    return min(max(LEAST, round(requests)), MOST, source.count)


def generator_error(source: RequestSource, protocol: str, send: Send) -> GeneratorError:
    """Run a short test against the built-in server. Raises ToolkitError if it does not start."""
    count = requests_of(source)
    grpc_port = 0 if protocol == "grpc" else None
    settings = Settings(ttft_ms=TTFT_MS, itl_ms=ITL_MS, tokens=LONGEST_TOKENS, grpc_port=grpc_port)
    with tempfile.TemporaryDirectory(prefix="toolkit-self-check-") as folder, KnownTruth(settings) as truth:
        begin, busy, ours = time.monotonic(), _busy_s(), _ours_s(truth.pid)
        send(truth.url(protocol), count, Path(folder))
        others = (_busy_s() - busy - (_ours_s(truth.pid) - ours)) / (time.monotonic() - begin)
        samples, use = read_samples(Path(folder)), read_cpu(Path(folder))
        error = replace(compare(samples, truth.records(), use.cpu if use else None), others_cpu=max(0.0, others))
        tokens = sum(sample.tokens_out for sample in samples)
        return replace(error, tokens_per_s=use.carried(tokens)) if use else error


def compare(samples: Iterable[Sample], records: Iterable[Record], cpu: float | None) -> GeneratorError:
    """The error of P50 and P99 of each metric: the samples against the records.

    Raises ToolkitError if no request was answered.
    """
    sent = {record.id: record for record in records if record.whole and record.fault is None}
    pairs = [(sample, sent[sample.id]) for sample in samples if sample.ok and sample.id in sent]
    pairs = [(sample, record) for sample, record in pairs if record.token_times]
    if not pairs:
        hint = "Run it again. With --no-self-check the test runs, but the generator's error is unknown."
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
class CpuUse:
    """The CPU time of a test."""

    cpu: float
    """The share of a core that the busiest process used."""
    seconds: float
    processes: int

    def carried(self, tokens: int) -> float | None:
        """About how many tokens/s one process carries before it is out of CPU.

        All CPU time counts for tokens: also that for requests, prompts and the start. So the result is too low for
        short answers.
        """
        cpu_s = self.cpu * self.seconds * self.processes
        return SLACK_CPU * tokens / cpu_s if cpu_s and tokens else None


def read_cpu(folder: Path) -> CpuUse | None:
    """The CPU use that the sender wrote. None if there is none."""
    file = folder / "cpu.json"
    return CpuUse(**json.loads(file.read_text())) if file.is_file() else None


def _busy_s() -> float:
    """CPU seconds of all cores of this machine."""
    times = psutil.cpu_times()
    return sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal"))


def _ours_s(server: int) -> float:
    """CPU seconds of this process, of its generators that have ended, and of the server."""
    own, there = psutil.Process().cpu_times(), psutil.Process(server).cpu_times()
    return own.user + own.system + own.children_user + own.children_system + there.user + there.system


def _apart(measured: Sequence[float], true: Sequence[float]) -> AtPercentiles | None:
    here, there = Distribution(measured), Distribution(true)
    pairs = [(here.percentile(q), there.percentile(q)) for q in (50, 99)]
    errors = [abs(a - b) for a, b in pairs if a is not None and b is not None]
    return AtPercentiles(*errors) if len(errors) == 2 else None


def _ttft_ms(record: Record) -> float:
    return (record.token_times[0] - record.arrived) * 1e3


def _tpot_ms(record: Record) -> float:
    times = record.token_times
    return (times[-1] - times[0]) / max(len(times) - 1, 1) * 1e3


def _gaps_ms(record: Record) -> list[float]:
    times = record.token_times
    return [(after - before) * 1e3 for before, after in pairwise(times)]
