"""Runs the same load test several times and judges all repeats together. What differs between them is chance."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from toolkit.errors import ToolkitError
from toolkit.load.prediction import predicted
from toolkit.load.runner import Attempt, Options, attempt, source_for
from toolkit.reports.loadtest import report
from toolkit.slo.run import Run
from toolkit.slo.server_metrics import combined

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment


def run_repeatedly(deployment: Deployment, options: Options, times: int) -> Attempt:
    """As runner.attempt, with a report for all repeats. A repeat that is cut short, or cannot run, is the last."""
    runs: list[Run] = []
    for number, seed in enumerate(_seeds(deployment, options, times), 1):
        print(f"repeat {number} of {times}", file=sys.stderr, flush=True)
        own = runs[-1].own if runs else options.own
        repeat = replace(options, seed=seed, own=own, self_check=options.self_check and not runs)
        attempted = attempt(deployment, repeat)
        if attempted.run is None or not attempted.run.samples:
            if not runs:
                return attempted
            runs[-1] = replace(runs[-1], cut_short=f"repeat {number} of {times}: {attempted.verdict.reason}")
            break
        runs.append(attempted.run)
        if cut_short := runs[-1].cut_short:
            runs[-1] = replace(runs[-1], cut_short=f"repeat {number} of {times}: {cut_short}")
            break
        if attempted.stopped and number < times:
            runs[-1] = replace(runs[-1], cut_short=f"stopped after repeat {number} of {times}")
            break
    merged = merge(runs)
    with contextlib.suppress(ToolkitError):
        merged = replace(merged, predicted=predicted(deployment, merged))
    return Attempt(report.write(deployment, merged), merged)


def merge(runs: Sequence[Run]) -> Run:
    """All repeats as one run. The generator error of the last repeat is the worst: each starts from the one before."""
    first, last = runs[0], runs[-1]
    return replace(
        first,
        samples=tuple(sample for run in runs for sample in run.samples),
        settings={**first.settings, "repeats": len(runs)},
        cut_short=last.cut_short,
        own=last.own,
        server=combined([run.server for run in runs if run.server]),
        predicted=None,
        repeats=tuple(len(run.samples) for run in runs),
    )


def _seeds(deployment: Deployment, options: Options, times: int) -> Iterator[int | None]:
    """A different seed for each repeat, so that no cache knows the requests. None for the YAML's `loadtest`."""
    first = options.seed
    if options.workload is not None and first is None:
        with contextlib.suppress(ToolkitError):  # the first run reports the error
            first = source_for(deployment, options).settings()["seed"]
    for number in range(times):
        yield None if first is None else first + number
