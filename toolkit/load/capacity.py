"""The highest rate at which a running deployment meets its SLO, by load tests of its workload."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from toolkit.errors import ToolkitError
from toolkit.load.launch import Options, check_itself, run
from toolkit.load.search import BUDGET_S, LONGEST_S, Found, Trial, find_capacity
from toolkit.load.work import OF_THE_YAML, work_of
from toolkit.slo.verdict import Outcome, Verdict

if TYPE_CHECKING:
    from toolkit.config import Deployment

NOT_OF_A_RATE = ("requests_per_s", "gpu_utilisation", "load_balance_variance")
"""Targets that a lower rate misses, or that are the machine's: not what says whether a rate is borne."""
SATURATED = 0.9
"""A server that completes less than this share of what comes is behind, whatever its latencies are so far."""
FEWEST = 20
"""Requests of a test."""


def measure_capacity(
    deployment: Deployment, options: Options, tell: Callable[[str], None], budget_s: float = BUDGET_S
) -> Found:
    """Search with the workload of `options`, each test with other requests: a cache would know the same ones.

    `tell` is called with a line for each test. The report that is left is the last test's. Raises ToolkitError when a
    test could not run.
    """
    guess = options.rate or deployment.slo.requests_per_s or deployment.workload.rate or 1.0
    at = _Rates(deployment, options, guess, tell)
    return find_capacity(at.test, guess, budget_s=budget_s)


def sweep(deployment: Deployment, options: Options, rates: Sequence[float], tell: Callable[[str], None]) -> list[Trial]:
    """A test at each rate, from the lowest on. Raises ToolkitError when one could not run."""
    at = _Rates(deployment, options, max(rates), tell)
    return [at.test(rate, LONGEST_S) for rate in sorted(rates)]


class _Rates:
    """Load tests of one workload at different rates."""

    def __init__(self, deployment: Deployment, options: Options, highest: float, tell: Callable[[str], None]) -> None:
        options = replace(options, workload=options.workload or OF_THE_YAML)
        self._deployment, self._tell, self._seed = deployment, tell, options.seed or 0
        if options.self_check:
            work = work_of(deployment, options.workload, highest)
            own = check_itself(deployment, replace(options, rate=highest), work)
            options = replace(options, own=own, self_check=False)
        self._options = options

    def test(self, rate: float, seconds: float) -> Trial:
        self._seed += 1
        requests = max(FEWEST, round(rate * seconds))
        told = replace(self._options, rate=rate, requests=requests, seed=self._seed)
        verdict = run(self._deployment, told)
        if verdict.outcome is Outcome.COULD_NOT_RUN:
            raise ToolkitError(verdict.reason)
        trial = Trial(rate, seconds, met_by(verdict, rate), _line(verdict))
        self._tell(f"{rate:.3g} requests/s for {seconds:.0f} s: {_word(trial.met)}: {trial.told}")
        return trial


def met_by(verdict: Verdict, rate: float) -> bool | None:
    """Whether a rate is borne: every latency and the compliance are, and the server keeps up. None: it is open."""
    targets = [target for target in verdict.targets if target.name not in NOT_OF_A_RATE]
    if any(
        target.outcome == "FAIL" for target in targets
    ) or verdict.measured.requests_per_s < rate * SATURATED * _span(verdict, rate):
        return False
    return None if any(target.outcome == "UNDECIDED" for target in targets) else True


def _span(verdict: Verdict, rate: float) -> float:
    """What share of the run requests were due in: after the last one the server only ends what it has."""
    samples = verdict.measured.samples
    if len(samples) < 2 or not verdict.measured.duration_s:
        return 1.0
    return (max(s.due for s in samples) - min(s.due for s in samples)) / verdict.measured.duration_s


def _word(met: bool | None) -> str:
    return {True: "meets the SLO", False: "misses it", None: "undecided"}[met]


def _line(verdict: Verdict) -> str:
    found = verdict.measured.distributions
    ttft, tpot = found["ttft_ms"].percentile(99), found["tpot_ms"].percentile(99)
    share = verdict.measured.goodput_share
    parts = [f"TTFT P99 {ttft:,.0f} ms" if ttft is not None else "", f"TPOT P99 {tpot:,.1f} ms" if tpot else ""]
    parts.append(f"{share:.1%} inside all limits" if share is not None else "")
    return ", ".join(filter(None, parts))
