"""Finds the highest rate at which a running deployment meets the latencies of its SLO, by load tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from toolkit.errors import ToolkitError
from toolkit.load.requests import OF_THE_YAML
from toolkit.load.runner import Options, attempt, check_itself, source_for
from toolkit.load.search import BUDGET_S, LONGEST_S, Trial, find_capacity
from toolkit.reports.rates.report import measured_line, write
from toolkit.slo.rates import RateSeries, RateTest, edge
from toolkit.slo.saturation import SaturationCheck
from toolkit.slo.verdict import Outcome, Verdict, of_a_rate

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

FEWEST = 20
"""Fewest requests of a test."""
OF_ONE_TEST = ("rate", "seed", "requests", "warmup_requests")
"""Settings that differ between the tests."""
Tell = Callable[[str], None]


def measure_capacity(deployment: Deployment, options: Options, tell: Tell, budget_s: float = BUDGET_S) -> RateSeries:
    """Search with the workload of `options`. Each test sends other requests, so that no cache knows them.

    Calls `tell` with a line for each test. Writes the result into `deployment.rates_dir`. The report is that of the
    last test. A test that could not run ends the search. Raises ToolkitError if that is the first test.
    """
    guess = options.rate or deployment.slo.requests_per_s or deployment.workload.rate or 1.0
    tests = _RateTests(deployment, options, guess, tell)

    def search() -> tuple[float | None, float | None, str]:
        result = find_capacity(tests.test, guess, budget_s=budget_s)
        return result.rate, result.missed, result.why

    return tests.run("capacity", search)


def sweep(deployment: Deployment, options: Options, rates: Sequence[float], tell: Tell) -> RateSeries:
    """Run a test at each rate, from the lowest on. Otherwise as measure_capacity."""
    tests = _RateTests(deployment, options, max(rates), tell)

    def each() -> tuple[float | None, float | None, str]:
        for rate in sorted(rates):
            tests.test(rate, LONGEST_S)
        return *edge(tests.trials), ""

    return tests.run("sweep", each)


class _RateTests:
    """Load tests of one workload at different rates."""

    def __init__(self, deployment: Deployment, options: Options, highest: float, tell: Tell) -> None:
        options = replace(options, workload=options.workload or OF_THE_YAML)
        self._deployment, self._tell, self._seed = deployment, tell, options.seed or 0
        self._started, self._settings = time.time(), dict[str, Any]()
        self.trials: list[RateTest] = []
        if options.self_check:
            at_highest = replace(options, rate=highest)
            own = check_itself(deployment, at_highest, source_for(deployment, at_highest))
            options = replace(options, own=own, self_check=False)
        self._options = options

    def test(self, rate: float, seconds: float) -> Trial:
        self._seed += 1
        requests = max(FEWEST, round(rate * seconds))
        options = replace(self._options, rate=rate, requests=requests, seed=self._seed)
        attempted = attempt(self._deployment, options)
        verdict, ran = attempted.verdict, attempted.run
        if ran is None or verdict.outcome is Outcome.COULD_NOT_RUN:
            raise ToolkitError(verdict.reason)
        self._settings = {name: value for name, value in ran.settings.items() if name not in OF_ONE_TEST}
        saturation = SaturationCheck.of(verdict.measured)
        met = met_by(verdict, saturation)
        trial = RateTest.of(verdict, rate, self._seed, met, _why(verdict, met), saturation, ran.predicted)
        self.trials.append(trial)
        self._tell(f"{rate:.3g} requests/s for {seconds:.0f} s: {trial.result}: {measured_line(trial)}")
        if attempted.stopped:
            raise KeyboardInterrupt
        return Trial(rate, seconds, met)

    def run(
        self, kind: Literal["capacity", "sweep"], tests: Callable[[], tuple[float | None, float | None, str]]
    ) -> RateSeries:
        """Run the tests and write the result, also if they are cut short."""
        cut_short = None
        try:
            rate, missed, why = tests()
        except (ToolkitError, KeyboardInterrupt) as stopped:
            if not self.trials:
                raise
            (rate, missed), why = edge(self.trials), ""
            cut_short = f"cut short in test {len(self.trials) + 1}: {str(stopped) or 'stopped'}"
        result = RateSeries(kind, tuple(self.trials), self._started, rate, missed, why, cut_short, self._settings)
        write(self._deployment, result)
        return result


def met_by(verdict: Verdict, saturation: SaturationCheck | None) -> bool | None:
    """Whether the server meets every latency and the compliance and keeps up with the rate. None: undecided."""
    if _of_a_rate(verdict, "FAIL") or (saturation and saturation.behind):
        return False
    return None if _of_a_rate(verdict, "UNDECIDED") else True


def _of_a_rate(verdict: Verdict, outcome: str) -> list[str]:
    """The targets with this outcome, of those that decide whether a rate is met."""
    return [target.label for target in of_a_rate(verdict.targets) if target.outcome == outcome]


def _why(verdict: Verdict, met: bool | None) -> str:
    if met:
        return ""
    if met is None:
        return f"undecided: {', '.join(_of_a_rate(verdict, 'UNDECIDED'))}"
    return ", ".join(_of_a_rate(verdict, "FAIL")) or "fewer requests end than arrive: the queue grows"
