"""Load tests with one workload at different rates: a sweep, or the search for the capacity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from toolkit.slo.generator_error import GeneratorError
from toolkit.slo.metrics import LATENCIES
from toolkit.slo.prediction import Predicted
from toolkit.slo.saturation import SaturationCheck
from toolkit.slo.verdict import Verdict

SHOWN = (50, 90, 99)


@dataclass(frozen=True)
class RateTest:
    """One load test. `met` is None if it is undecided."""

    rate: float
    """Requests per second that were due."""
    seconds: float
    """From the time the first request was due to the end of the last one."""
    seed: int
    met: bool | None
    why: str
    """The targets that are missed or undecided; empty if the rate meets the latencies."""
    outcome: str
    """The verdict on all targets, GPU targets included."""
    reason: str
    requests: int
    failed: int
    latencies: Mapping[str, Mapping[str, float | None]]
    """ttft_ms and the others, each with p50, p90 and p99."""
    completed_per_s: float
    good_per_s: float
    good_share: float | None
    tokens_per_s: float
    kept_up: SaturationCheck | None = None
    own: GeneratorError | None = None
    predicted: Predicted | None = None

    @classmethod
    def of(
        cls,
        verdict: Verdict,
        rate: float,
        seed: int,
        met: bool | None,
        why: str,
        kept_up: SaturationCheck | None,
        predicted: Predicted | None,
    ) -> RateTest:
        measured = verdict.measured
        distributions = {metric: measured.distributions[metric] for metric in LATENCIES}
        latencies = {m: {f"p{q}": d.percentile(q) for q in SHOWN} for m, d in distributions.items() if d.values}
        return cls(
            rate,
            measured.duration_s,
            seed,
            met,
            why,
            str(verdict.outcome),
            verdict.reason,
            len(measured.samples),
            measured.failed,
            latencies,
            measured.requests_per_s,
            measured.goodput_per_s,
            measured.goodput_share,
            measured.tokens_per_s,
            kept_up,
            verdict.own,
            predicted,
        )

    def latency(self, metric: str, q: int) -> float | None:
        return self.latencies.get(metric, {}).get(f"p{q}")

    @property
    def result(self) -> str:
        return {True: "meets the latencies", False: "misses them", None: "undecided"}[self.met]


@dataclass(frozen=True)
class RateSeries:
    """The tests in the order in which they ran, and the result."""

    kind: Literal["capacity", "sweep"]
    trials: tuple[RateTest, ...]
    started: float
    """Seconds since the Unix epoch."""
    rate: float | None = None
    """The highest rate that met the latencies, with no lower rate that missed them."""
    missed: float | None = None
    """The lowest rate that missed them."""
    why: str = ""
    """Why a search ended before it reached its precision."""
    cut_short: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The settings of the load that all tests share."""

    @property
    def within(self) -> float | None:
        """The precision of the result, as a share: from the highest rate that met the latencies to the lowest above."""
        return None if self.rate is None or self.missed is None else self.missed / self.rate - 1

    @property
    def line(self) -> str:
        """The outcome in one line."""
        end = f"; {self.cut_short or self.why}" if self.cut_short or self.why else ""
        if self.rate is None:
            lowest = f", down to {self.missed:.3g} requests/s" if self.missed else ""
            return f"no rate meets the latencies{lowest}{end}"
        what = "capacity" if self.kind == "capacity" else "the latencies are met up to"
        return f"{what} {self.rate:.3g} requests/s{f'; {self.missed:.3g} misses them' if self.missed else ''}{end}"


def edge(trials: Sequence[RateTest]) -> tuple[float | None, float | None]:
    """(highest rate that met the latencies, lowest rate that did not). An undecided test did not."""
    missed = min((trial.rate for trial in trials if not trial.met), default=None)
    met = [trial.rate for trial in trials if trial.met and (missed is None or trial.rate < missed)]
    return max(met, default=None), missed
