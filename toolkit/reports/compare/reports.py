"""The reports that are compared: read, with the settings in which they differ and what makes them hard to compare."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from toolkit.config.deployment import Deployment
from toolkit.config.sections import Section, Slo
from toolkit.errors import ToolkitError, clipped, printable, shown
from toolkit.files.invalid import first_problem
from toolkit.reports.loadtest.report import JSON_NAME, run_of
from toolkit.reports.loadtest.report_file import ReportFile
from toolkit.slo.run import Run

NOT_COMPARED = {"name", "file", "output", "replica"}
NOT_THE_LOAD = {"load_generator", "clocks", "processes", "model", "repeats"}
"""Settings of a run that do not change which requests are sent."""
NOTHING = "–"
LONGEST, DEEPEST = 80, 8
"""Characters of a setting that are shown, and levels of nested blocks."""


class _Deployment(BaseModel):
    """What a comparison needs from the deployment in a report."""

    slo: Slo


@dataclass(frozen=True)
class Report:
    """One load test of a comparison, and its letter."""

    letter: str
    directory: Path
    file: ReportFile
    run: Run
    slo: Slo

    @property
    def name(self) -> str:
        """The deployment's name, else the directory."""
        return clipped(str(self.file.deployment.get("name", self.directory)))

    @cached_property
    def settings(self) -> dict[str, str]:
        """Deployment, load and versions, flat: "limits.max_seq_len" → "8192"."""
        deployment = {key: value for key, value in self.file.deployment.items() if key not in NOT_COMPARED}
        load = deployment.pop("loadtest", None)
        deployment["loadtest"] = {**(load if isinstance(load, dict) else {}), **self.run.settings}
        return dict(_flat({**deployment, "versions": self.file.versions}))


def load(path: Path, letter: str) -> Report:
    """The report in a directory, of a report.json, or the last one of a deployment's YAML. Raises ToolkitError."""
    directory, hint = path, "Give a report directory, its report.json, or the YAML of a deployment."
    if path.suffix in (".yaml", ".yml"):
        from toolkit.config.load import load_deployment

        deployment = load_deployment(path)
        directory, hint = deployment.report_dir, f"Run: toolkit loadtest {path}"
    elif path.name == JSON_NAME:
        directory = path.parent
    file = ReportFile.read(directory, hint)
    run = run_of(directory, file)
    try:
        slo = _Deployment.model_validate(file.deployment).slo
    except ValidationError as error:
        what, hint = first_problem(error, "deployment").line, "Another version of the toolkit wrote it."
        raise ToolkitError(what, where=directory / JSON_NAME, hint=hint) from None
    if not run.judged:
        raise ToolkitError("has no requests after the warm-up, so there is nothing to compare", where=directory)
    return Report(letter, directory, file, run, slo)


def differing_settings(reports: Sequence[Report]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The settings that are not the same in all reports: (name, value in each).

    A setting that the toolkit of a report did not know yet counts as its default.
    """
    defaults, known = dict(_defaults()), {name for report in reports for name in report.settings}
    every = [
        report.settings | {name: value for name, value in defaults.items() if name in known - report.settings.keys()}
        for report in reports
    ]
    return tuple(_differing(every))


def _defaults() -> Iterator[tuple[str, str]]:
    for name, field in Deployment.model_fields.items():
        if isinstance(field.default, Section) and name not in NOT_COMPARED | {"loadtest"}:
            yield from _flat({name: field.default.model_dump(mode="json")})


def warnings_about(reports: Sequence[Report]) -> Iterator[str]:
    """Why the reports are hard to compare."""
    loads = [{name: value for name, value in _flat(r.run.settings) if name not in NOT_THE_LOAD} for r in reports]
    if differing := [f"{name} {' | '.join(values)}" for name, values in _differing(loads)]:
        yield f"the load was not the same: {'; '.join(differing)}"
    counters = [report.run.counted_by for report in reports]
    if len(set(counters)) > 1:
        yield f"the tokens were not counted in the same way: {' | '.join(counters)}"
    if len({report.slo.model_dump_json() for report in reports}) > 1:
        yield "the SLOs are not the same: all runs are measured by the limits of A"
    for first, other in combinations(reports, 2):
        if first.run.samples == other.run.samples:
            yield f"{first.letter} and {other.letter} are the same run"


def _differing(settings: Sequence[Mapping[str, str]]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for name in dict.fromkeys(name for flat in settings for name in flat):
        values = tuple(flat.get(name, NOTHING) for flat in settings)
        if any(value != following for value, following in pairwise(values)):
            yield name, values


def _flat(block: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterable[tuple[str, str]]:
    for name, value in block.items():
        field = f"{prefix}{clipped(name, LONGEST)}"
        if isinstance(value, Mapping) and depth < DEEPEST:
            yield from _flat(value, f"{field}.", depth + 1)
        else:
            yield field, printable(value) if isinstance(value, str) and len(value) < LONGEST else shown(value)
