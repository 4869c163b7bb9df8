"""The report of a load test: samples.jsonl.gz (raw), report.json (for machines), report.html (for people), and for
CI junit.xml and summary.md."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError
from toolkit.files import distribution
from toolkit.files.artifacts import atomic_directory
from toolkit.reports.loadtest import junit, markdown, report_file
from toolkit.reports.loadtest.report_file import ReportFile
from toolkit.reports.loadtest.samples import read_samples, write_samples
from toolkit.slo.run import Run
from toolkit.slo.target import limits_of_a_request
from toolkit.slo.verdict import Verdict, judge

JSON_NAME = report_file.NAME
HTML_NAME = "report.html"


def verdict_of(deployment: Deployment, run: Run) -> Verdict:
    """Judge a run by the SLO of a deployment. `read_judged` has the verdict of a report without judging again."""
    limits = limits_of_a_request(deployment.slo)
    open_loop = run.settings.get("loop") == "open"
    return judge(
        deployment.slo,
        run.measured(limits),
        run.cut_short,
        run.own,
        run.server,
        intervals=True,
        open_loop=open_loop,
        memory_limit=deployment.hardware.gpu_memory_limit,
    )


def write(deployment: Deployment, run: Run) -> Verdict:
    """Judge the run and replace `deployment.report_dir` by its report. Raises ToolkitError when it cannot."""
    from toolkit.reports.loadtest.page import render

    verdict = verdict_of(deployment, run)
    with atomic_directory(deployment.report_dir) as directory:
        directory.chmod(0o700)  # errors and samples may quote prompts and answers
        write_data(directory, deployment, run, verdict)
        (directory / HTML_NAME).write_text(render(deployment, run, verdict, versions()), encoding="utf-8")
        (directory / junit.NAME).write_text(junit.document(deployment, run, verdict, versions()), encoding="utf-8")
        (directory / markdown.NAME).write_text(markdown.summary(deployment, run, verdict), encoding="utf-8")
    return verdict


def write_data(directory: Path, deployment: Deployment, run: Run, verdict: Verdict) -> None:
    """Write the two files that a report is read from."""
    write_samples(directory, run)
    file = ReportFile.of(deployment.model_dump(mode="json"), run, verdict, versions())
    (directory / JSON_NAME).write_text(file.as_text(), encoding="utf-8")


def read(deployment: Deployment) -> Run:
    """The run that the report was made from. Raises ToolkitError when there is none or it is damaged."""
    return run_of(deployment.report_dir, _read_file(deployment))


def read_judged(deployment: Deployment) -> tuple[Run, Verdict]:
    """As `read`, with the verdict that the report gives: nothing is judged again."""
    file = _read_file(deployment)
    run = run_of(deployment.report_dir, file)
    measured = run.measured(limits_of_a_request(deployment.slo))
    part = file.verdict
    if part is None:
        raise ToolkitError("is not a valid report: it has no verdict", where=deployment.report_dir / JSON_NAME)
    return run, Verdict(part.exit_code, part.reason, part.targets, measured, run.own, run.server)


def run_of(directory: Path, file: ReportFile) -> Run:
    """The run of the report in a directory. Raises ToolkitError when its samples are damaged or are not all there."""
    samples, part = tuple(read_samples(directory)), file.run
    if part.repeats and sum(part.repeats) != len(samples):
        what = f"is not a valid report: run.repeats has {sum(part.repeats)} samples, there are {len(samples)}"
        raise ToolkitError(what, where=directory / JSON_NAME)
    return Run(
        samples,
        part.warmup,
        part.started,
        part.settings,
        part.cut_short,
        part.own_error,
        part.server,
        file.predicted,
        part.repeats,
    )


def versions() -> dict[str, str]:
    """The versions that the report names."""
    others = {name: metadata.version(name) for name in ("locust", "gevent", "h2")}
    return {"python": platform.python_version(), "toolkit": distribution.VERSION, **others}


def job_summary(deployment: Deployment, verdict: Verdict) -> str:
    """The text of summary.md, or why there is none."""
    if verdict.measured.samples:
        return (deployment.report_dir / markdown.NAME).read_text(encoding="utf-8")
    return markdown.could_not_run(deployment.name, verdict.reason)


def report_page(deployment: Deployment) -> Path:
    """The page of a deployment's last load test."""
    return deployment.report_dir / HTML_NAME


def _read_file(deployment: Deployment) -> ReportFile:
    return ReportFile.read(deployment.report_dir, f"Run: {deployment.command('loadtest')}")
