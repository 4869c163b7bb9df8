"""A diagnosis as text for people, and as data."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from toolkit.doctor import Diagnosis
from toolkit.doctor.check import Check
from toolkit.errors import printable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

STYLES = {"ok": "green", "warning": "bold yellow", "error": "bold red"}


def doctor_data(diagnosis: Diagnosis) -> dict[str, Any]:
    """Every check and everything that was seen, in bytes and counts, as JSON-ready data."""
    deployment = diagnosis.deployment
    return {
        "config": str(deployment.file) if deployment else None,
        "engine": deployment.engine if deployment else None,
        "errors": diagnosis.count("error"),
        "warnings": diagnosis.count("warning"),
        "checks": [
            {"heading": heading, **asdict(check)} for heading, checks in diagnosis.checks.items() for check in checks
        ],
        "machine": asdict(diagnosis.machine),
    }


def doctor_text(diagnosis: Diagnosis) -> RenderableType:
    """The checks for a terminal of 100 columns, and at the end what they mean together."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = [_title(diagnosis)]
    for heading, checks in diagnosis.checks.items():
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
        table.add_column(width=9)
        table.add_column(width=12, no_wrap=True)
        table.add_column(overflow="fold")
        for check in checks:
            table.add_row(Text(f"  {check.status}", STYLES[check.status]), check.name, _finding(check))
        parts += ["", Text(heading, "bold"), table]
    return Group(*parts, "", _summary(diagnosis))


def _title(diagnosis: Diagnosis) -> Text:
    from rich.text import Text

    deployment = diagnosis.deployment
    if deployment is None:
        return Text("this machine, and what a rehearsal needs")
    parallel, ranks = deployment.parallel, deployment.all_ranks
    size = f"engine {deployment.engine}, {ranks} rank{'s' if ranks > 1 else ''} = pp {parallel.pp} x tp {parallel.tp}"
    if parallel.replicas > 1:
        size += f" x {parallel.replicas} replicas"
    return Text.assemble((deployment.name, "bold"), f"  {size}")


def _finding(check: Check) -> Text:
    from rich.text import Text

    # Text, not markup: the finding may hold [brackets].
    text = Text(printable(check.found))
    if check.needed:
        text.append(f"; needs {check.needed}")
    if check.fix:
        text.append(f"\n-> {printable(check.fix)}", "" if check.status == "ok" else STYLES[check.status])
    return text


def _summary(diagnosis: Diagnosis) -> Text:
    from rich.text import Text

    errors, warnings = diagnosis.count("error"), diagnosis.count("warning")
    counts = [f"{n} {word}{'s' if n > 1 else ''}" for n, word in ((errors, "error"), (warnings, "warning")) if n]
    what = "this machine can rehearse" if diagnosis.deployment is None else "this deployment can run here"
    if errors:
        what = what.replace("can ", "cannot ")
    status = "error" if errors else "warning" if warnings else "ok"
    return Text.assemble((what, STYLES[status]), f": {', '.join(counts) or 'nothing to fix'}")
