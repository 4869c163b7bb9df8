"""The same load test several times, judged together: what differs from time to time is chance, and is shown."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from toolkit.errors import ToolkitError
from toolkit.load.prediction import predicted
from toolkit.load.runner import Options, attempt, work_for
from toolkit.reports.loadtest import report
from toolkit.slo.run import Run
from toolkit.slo.server_metrics import combined
from toolkit.slo.verdict import Verdict

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment


def run_repeatedly(deployment: Deployment, options: Options, times: int) -> Verdict:
    """As launch.run, and the report is of all times. The first that is cut short, or cannot run, is the last."""
    runs: list[Run] = []
    for number, seed in enumerate(_seeds(deployment, options, times), 1):
        print(f"repeat {number} of {times}", file=sys.stderr, flush=True)
        own = runs[-1].own if runs else options.own
        told = replace(options, seed=seed, own=own, self_check=options.self_check and not runs)
        verdict, stopped = attempt(deployment, told)
        if not verdict.measured.samples:
            if not runs:
                return verdict
            runs[-1] = replace(runs[-1], cut_short=f"repeat {number} of {times}: {verdict.reason}")
            break
        runs.append(report.read(deployment))
        if cut_short := runs[-1].cut_short:
            runs[-1] = replace(runs[-1], cut_short=f"repeat {number} of {times}: {cut_short}")
            break
        if stopped and number < times:
            runs[-1] = replace(runs[-1], cut_short=f"stopped after repeat {number} of {times}")
            break
    both = one_of(runs)
    with contextlib.suppress(ToolkitError):
        both = replace(both, predicted=predicted(deployment, both))
    return report.write(deployment, both)


def one_of(runs: Sequence[Run]) -> Run:
    """All samples together. Of the generator's own error the last run has the worst, as each was told those before."""
    first, last = runs[0], runs[-1]
    return replace(
        first,
        samples=tuple(sample for one in runs for sample in one.samples),
        settings={**first.settings, "repeats": len(runs)},
        cut_short=last.cut_short,
        own=last.own,
        server=combined([one.server for one in runs if one.server]),
        predicted=None,
        repeats=tuple(len(one.samples) for one in runs),
    )


def _seeds(deployment: Deployment, options: Options, times: int) -> Iterator[int | None]:
    """Another one each time, so that no cache knows the requests; the YAML's `loadtest` has none."""
    first = options.seed
    if options.workload is not None and first is None:
        with contextlib.suppress(ToolkitError):  # which the first run will say
            first = work_for(deployment, options).settings()["seed"]
    for number in range(times):
        yield None if first is None else first + number
