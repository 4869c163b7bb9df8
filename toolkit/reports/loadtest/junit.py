"""The verdict as JUnit XML, which every CI server shows: one test case per target, and one for the run."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from xml.etree import ElementTree

from toolkit.config.deployment import Deployment
from toolkit.errors import printable
from toolkit.reports import wording
from toolkit.slo.run import Run
from toolkit.slo.target import Target
from toolkit.slo.verdict import Outcome, Verdict

NAME = "junit.xml"
TAGS = {"FAIL": "failure", "UNDECIDED": "skipped", "NOT MEASURED": "skipped"}
"""JUnit has no "undecided". The exit code and the Markdown summary show the difference from a pass."""


def document(deployment: Deployment, run: Run, verdict: Verdict, versions: Mapping[str, str]) -> str:
    """The verdict as a JUnit XML document."""
    could_run = verdict.outcome is not Outcome.COULD_NOT_RUN
    skipped = ("skipped", "the run could not be judged")
    cases = [(target.label, *(_result(target) if could_run else skipped)) for target in verdict.targets]
    cases.append(("The run", "" if could_run else "error", verdict.reason))
    counts = {tag: sum(case_tag == tag for _, case_tag, _ in cases) for tag in ("failure", "error", "skipped")}
    totals = {
        "name": deployment.name,
        "tests": str(len(cases)),
        "failures": str(counts["failure"]),
        "errors": str(counts["error"]),
        "skipped": str(counts["skipped"]),
        "time": f"{verdict.measured.duration_s:.3f}",
    }
    root = ElementTree.Element("testsuites", totals)
    stamp = datetime.fromtimestamp(run.started, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    suite = ElementTree.SubElement(root, "testsuite", {**totals, "timestamp": stamp})
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in _properties(deployment, run, verdict, versions).items():
        ElementTree.SubElement(properties, "property", {"name": name, "value": printable(value)})
    for name, tag, text in cases:
        attributes = {"classname": f"slo.{deployment.name}", "name": name, "time": "0"}
        case = ElementTree.SubElement(suite, "testcase", attributes)
        message = printable(text)
        if tag in ("failure", "error"):
            ElementTree.SubElement(case, tag, {"message": message, "type": str(verdict.outcome)}).text = message
        elif tag:
            ElementTree.SubElement(case, tag, {"message": message})
        else:
            ElementTree.SubElement(case, "system-out").text = message
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _result(target: Target) -> tuple[str, str]:
    """(tag of the result, empty for a pass; what was measured)."""
    note = f"; {wording.note(target)}" if wording.note(target) else ""
    if target.passed is None:
        return TAGS[target.outcome], f"not measured{note}"
    interval = f" (95 %: {wording.interval(target)})" if target.interval else ""
    value = wording.quantity(target.measured, target.unit)
    text = f"measured {value}{interval}, target {wording.limit(target)}, margin {wording.margin(target)}{note}"
    return TAGS.get(target.outcome, ""), text if not target.undecided else f"UNDECIDED: {text}"


def _properties(deployment: Deployment, run: Run, verdict: Verdict, versions: Mapping[str, str]) -> dict[str, str]:
    parallel = deployment.parallel
    return {
        "outcome": str(verdict.outcome),
        "deployment": deployment.name,
        "engine": deployment.engine,
        "layout": f"tp{parallel.tp} pp{parallel.pp} replicas{parallel.replicas}",
        "own error": wording.own_error(verdict.own),
        **{f"load.{name}": str(value) for name, value in run.settings.items()},
        **{f"version.{name}": value for name, value in versions.items()},
    }
