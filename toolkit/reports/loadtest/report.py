"""The report of a load test: samples.jsonl.gz (raw), report.json (for machines), report.html (for people), and for
CI junit.xml and summary.md."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from toolkit.config.deployment import Deployment
from toolkit.config.metrics import METRICS
from toolkit.errors import ToolkitError
from toolkit.files import distribution
from toolkit.files.artifacts import atomic_directory
from toolkit.files.json_file import finite, problem_of, read_json
from toolkit.reports.loadtest import junit, markdown
from toolkit.reports.loadtest.samples import read_samples, write_samples
from toolkit.slo.generator_error import GeneratorError
from toolkit.slo.metrics import Count, Distribution, Measured, Moment
from toolkit.slo.prediction import Predicted
from toolkit.slo.run import Run
from toolkit.slo.server_metrics import ServerSeen
from toolkit.slo.target import limits_of_a_request
from toolkit.slo.verdict import Verdict, judge

JSON_NAME = "report.json"
HTML_NAME = "report.html"
PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
NOTES = (
    "Percentiles count every failed request as infinitely late (null where they reach); "
    "avg, min, max and std are of the successful ones. time_to_first_token and request_latency count from "
    "the moment a request was due. inter_token_latency is AIPerf's name for TPOT, "
    "(request_latency - time_to_first_token) / (tokens - 1); token_gap is the list of single gaps."
)


def verdict_of(deployment: Deployment, run: Run) -> Verdict:
    """Judge a run by the SLO of its deployment."""
    limits = limits_of_a_request(deployment.slo)
    measured = run.measured(limits)
    open_loop = run.settings.get("loop") == "open"
    return judge(deployment.slo, measured, run.cut_short, run.own, run.server, intervals=True, open_loop=open_loop)


def write(deployment: Deployment, run: Run) -> Verdict:
    """Judge the run and replace `deployment.report_dir` by its report. Raises ToolkitError when it cannot."""
    from toolkit.reports.loadtest.page import render

    verdict = verdict_of(deployment, run)
    content = as_json(deployment, run, verdict)
    with atomic_directory(deployment.report_dir) as directory:
        directory.chmod(0o700)  # errors and samples may quote what was asked and answered
        write_samples(directory, run)
        (directory / JSON_NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        (directory / HTML_NAME).write_text(render(deployment, run, verdict, versions()), encoding="utf-8")
        (directory / junit.NAME).write_text(junit.document(deployment, run, verdict, versions()), encoding="utf-8")
        (directory / markdown.NAME).write_text(markdown.summary(deployment, run, verdict), encoding="utf-8")
    return verdict


def read(deployment: Deployment) -> Run:
    """The run that the report was made from. Raises ToolkitError when there is none or it is damaged."""
    hint = f"Run: toolkit loadtest {deployment.file}"
    return run_of(deployment.report_dir, read_content(deployment.report_dir, hint))


def read_content(directory: Path, hint: str | None = None) -> dict[str, Any]:
    """The report.json of a directory. Raises ToolkitError, with the hint where there is none."""
    path = directory / JSON_NAME
    if not path.exists():
        raise ToolkitError("there is no report here", where=directory, hint=hint)
    return read_json(path)


class Written(BaseModel):
    """What a report.json has of its run, apart from the samples. `predicted` is beside it there."""

    started: Moment
    warmup: Count
    settings: dict[str, Any]
    cut_short: str | None
    own_error: GeneratorError | None = None
    server: ServerSeen | None = None
    repeats: tuple[Count, ...] = ()
    predicted: Predicted | None = None


def run_of(directory: Path, content: Mapping[str, Any]) -> Run:
    """The run of a report whose report.json holds `content`. Raises ToolkitError when it is damaged."""
    samples, run = tuple(read_samples(directory)), content.get("run")
    try:
        told = Written.model_validate({**run, "predicted": content.get("predicted")} if isinstance(run, dict) else run)
    except ValidationError as error:
        raise ToolkitError(f"is no report: {problem_of(error, 'run')}", where=directory / JSON_NAME) from None
    if told.repeats and sum(told.repeats) != len(samples):
        what = f"is no report: run.repeats has {sum(told.repeats)} samples, there are {len(samples)}"
        raise ToolkitError(what, where=directory / JSON_NAME)
    own, server = told.own_error, told.server
    return Run(
        samples, told.warmup, told.started, told.settings, told.cut_short, own, server, told.predicted, told.repeats
    )


def as_json(deployment: Deployment, run: Run, verdict: Verdict) -> dict[str, Any]:
    """The content of report.json."""
    return {
        "verdict": {
            "outcome": str(verdict.outcome),
            "exit_code": verdict.exit_code,
            "reason": verdict.reason,
            "targets": [finite({**asdict(target), "outcome": target.outcome}) for target in verdict.targets],
        },
        "metrics": metrics_as_json(verdict.measured),
        "repeats": [metrics_as_json(one.measured(verdict.measured.limits_ms)) for one in run.each if run.repeats],
        "predicted": None if run.predicted is None else run.predicted.as_dict(),
        "notes": NOTES,
        "errors": dict(verdict.measured.errors.most_common()),
        "run": {
            "started": run.started,
            "warmup": run.warmup,
            "repeats": list(run.repeats),
            "cut_short": run.cut_short,
            "token_counts_from": counted_by(run),
            "own_error": None if run.own is None else run.own.as_dict(),
            "server": None if run.server is None else asdict(run.server),
            "requests_per_replica": list(verdict.measured.per_replica),
            "settings": dict(run.settings),
        },
        "deployment": deployment.model_dump(mode="json"),
        "versions": versions(),
    }


def metrics_as_json(measured: Measured) -> dict[str, Any]:
    """The metrics by AIPerf's names, each with its unit; of a distribution avg, min, max, std, percentiles."""
    found = measured.distributions
    good = [sample for sample in measured.samples if sample.ok]
    prompts = [sample.tokens_in for sample in good if sample.tokens_in is not None]
    return {
        "request_throughput": _value("requests/sec", measured.requests_per_s),
        "request_count": _value("requests", len(good)),
        "error_request_count": _value("requests", measured.failed),
        **{metric.json_name: _statistics("ms", found[name]) for name, metric in METRICS.items()},
        "dispatch_delay": _statistics("ms", found["dispatch_ms"]),
        "output_token_throughput": _value("tokens/sec", measured.tokens_per_s),
        "output_sequence_length": _statistics("tokens", Distribution(s.tokens_out for s in good)),
        "input_sequence_length": _statistics("tokens", Distribution(prompts)),
        "total_output_tokens": _value("tokens", measured.tokens_out),
        "good_request_count": _value("requests", measured.good),
        "good_request_share": _value("share", measured.goodput_share),
        "goodput": _value("requests/sec", measured.goodput_per_s),
        "benchmark_duration": _value("sec", measured.duration_s),
    }


def counted_by(run: Run) -> str:
    """Who counted the output tokens of the run: "server", "events", "mixed", or "nobody" without samples."""
    found = {sample.counted_by for sample in run.judged if sample.ok}
    return "mixed" if len(found) > 1 else next(iter(found), "nobody")


def versions() -> dict[str, str]:
    """The versions of Python, the toolkit and the libraries that measure."""
    others = {name: metadata.version(name) for name in ("locust", "gevent", "h2")}
    return {"python": platform.python_version(), "toolkit": distribution.VERSION, **others}


def job_summary(deployment: Deployment, verdict: Verdict) -> str:
    """What summary.md says, or why there is none."""
    if verdict.measured.samples:
        return (deployment.report_dir / markdown.NAME).read_text(encoding="utf-8")
    return markdown.could_not_run(deployment.name, verdict.reason)


def report_page(deployment: Deployment) -> Path:
    """Where the page of the latest load test is."""
    return deployment.report_dir / HTML_NAME


def _value(unit: str, value: float | None) -> dict[str, Any]:
    return {"unit": unit, "avg": value}


def _statistics(unit: str, found: Distribution) -> dict[str, Any]:
    values = found.values
    return {
        "unit": unit,
        "avg": found.mean,
        "min": values[0] if values else None,
        "max": values[-1] if values else None,
        "std": found.std,
        "count": len(values),
        **{f"p{q}": finite(found.percentile(q)) for q in PERCENTILES},
    }
