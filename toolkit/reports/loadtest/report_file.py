"""report.json: its form, which pydantic writes and reads. JSON has no infinity: null stands for it."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, SerializerFunctionWrapHandler, ValidationError, WrapSerializer

from toolkit.config.metrics import METRICS
from toolkit.errors import ToolkitError, harmless
from toolkit.files.invalid import first_problem
from toolkit.files.json_file import finite, read_json
from toolkit.slo.distribution import Distribution
from toolkit.slo.generator_error import GeneratorError
from toolkit.slo.metrics import Measured
from toolkit.slo.prediction import Predicted
from toolkit.slo.run import Run
from toolkit.slo.sample import Count, Moment
from toolkit.slo.server_metrics import ServerSeen
from toolkit.slo.target import Target
from toolkit.slo.verdict import Outcome, Verdict

NAME = "report.json"
PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
NOTES = (
    "Percentiles count every failed request as infinitely late (null where they reach); "
    "avg, min, max and std are of the successful ones. time_to_first_token and request_latency count from "
    "the moment a request was due. inter_token_latency is AIPerf's name for TPOT, "
    "(request_latency - time_to_first_token) / (tokens - 1); token_gap is the list of single gaps."
)


def _with_outcome(target: Target, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
    return {**fields(target), "outcome": target.outcome}


def _with_infinity(target: Any) -> Any:
    """A judged target whose value is null was infinitely late; null in an interval is its infinite end."""
    if not isinstance(target, dict):
        return target
    target = dict(target)
    if target.get("passed") is not None and target.get("measured") is None:
        target |= {"measured": math.inf, "margin": -math.inf}
    if isinstance(target.get("interval"), list):
        target["interval"] = [math.inf if end is None else end for end in target["interval"]]
    return target


class VerdictPart(BaseModel):
    """The judgement, as it was made when the report was written."""

    outcome: str
    exit_code: Outcome
    reason: str
    targets: tuple[Annotated[Target, BeforeValidator(_with_infinity), WrapSerializer(_with_outcome)], ...]


class RunPart(BaseModel):
    """The circumstances of the run. The samples have a file of their own."""

    started: Moment
    warmup: Count
    repeats: tuple[Count, ...] = ()
    cut_short: str | None
    token_counts_from: str = "nobody"
    own_error: GeneratorError | None = None
    server: ServerSeen | None = None
    requests_per_replica: tuple[Count, ...] = ()
    settings: dict[str, Any]


class ReportFile(BaseModel):
    """All of report.json. A file of an earlier version may lack whatever has a default."""

    verdict: VerdictPart | None = None
    metrics: dict[str, Any] = {}
    repeats: tuple[dict[str, Any], ...] = ()
    predicted: Predicted | None = None
    notes: str = ""
    errors: dict[str, Count] = {}
    run: RunPart
    deployment: dict[str, Any]
    versions: Any = None

    @classmethod
    def of(cls, deployment: dict[str, Any], run: Run, verdict: Verdict, versions: dict[str, str]) -> ReportFile:
        """The file for a judged run. `deployment` is the dump of its deployment."""
        measured, errors = verdict.measured, Counter[str]()
        for error, count in verdict.measured.errors.most_common():
            errors[harmless(error)] += count
        repeats = (each.measured(measured.limits_ms) for each in run.each if run.repeats)
        return cls(
            verdict=VerdictPart(
                outcome=str(verdict.outcome), exit_code=verdict.outcome, reason=verdict.reason, targets=verdict.targets
            ),
            metrics=metrics_by_name(measured),
            repeats=tuple(map(metrics_by_name, repeats)),
            predicted=run.predicted,
            notes=NOTES,
            errors=dict(errors),
            run=RunPart(
                started=run.started,
                warmup=run.warmup,
                repeats=run.repeats,
                cut_short=run.cut_short,
                token_counts_from=run.counted_by,
                own_error=run.own,
                server=run.server,
                requests_per_replica=measured.per_replica,
                settings=dict(run.settings),
            ),
            deployment=deployment,
            versions=versions,
        )

    @classmethod
    def read(cls, directory: Path, hint: str | None = None) -> ReportFile:
        """The report.json in a directory. Raises ToolkitError, with the hint where there is none."""
        path = directory / NAME
        if not path.exists():
            raise ToolkitError("there is no report here", where=directory, hint=hint)
        try:
            return cls.model_validate(read_json(path))
        except ValidationError as error:
            raise ToolkitError(f"is not a valid report: {first_problem(error).line}", where=path) from None

    def as_text(self) -> str:
        """The text of report.json, in ASCII."""
        return json.dumps(finite(self.model_dump(mode="json")), indent=2) + "\n"


def metrics_by_name(measured: Measured) -> dict[str, Any]:
    """The metrics by AIPerf's names, each with its unit; of a distribution avg, min, max, std, percentiles."""
    distributions = measured.distributions
    answered = [sample for sample in measured.samples if sample.ok]
    prompts = [sample.tokens_in for sample in answered if sample.tokens_in is not None]
    return {
        "request_throughput": _value("requests/sec", measured.requests_per_s),
        "request_count": _value("requests", len(answered)),
        "error_request_count": _value("requests", measured.failed),
        **{metric.json_name: _statistics("ms", distributions[name]) for name, metric in METRICS.items()},
        "dispatch_delay": _statistics("ms", distributions["dispatch_ms"]),
        "output_token_throughput": _value("tokens/sec", measured.tokens_per_s),
        "output_sequence_length": _statistics("tokens", Distribution(sample.tokens_out for sample in answered)),
        "input_sequence_length": _statistics("tokens", Distribution(prompts)),
        "total_output_tokens": _value("tokens", measured.tokens_out),
        "good_request_count": _value("requests", measured.good),
        "good_request_share": _value("share", measured.goodput_share),
        "goodput": _value("requests/sec", measured.goodput_per_s),
        "benchmark_duration": _value("sec", measured.duration_s),
    }


def _value(unit: str, value: float | None) -> dict[str, Any]:
    return {"unit": unit, "avg": value}


def _statistics(unit: str, distribution: Distribution) -> dict[str, Any]:
    values = distribution.values
    return {
        "unit": unit,
        "avg": distribution.mean,
        "min": values[0] if values else None,
        "max": values[-1] if values else None,
        "std": distribution.std,
        "count": len(values),
        **{f"p{q}": distribution.percentile(q) for q in PERCENTILES},
    }
