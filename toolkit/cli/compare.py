from __future__ import annotations

import sys
from pathlib import Path

import click

from toolkit.cli.common import VerdictCommand, job_summary, json_option, note, print_json

PATH = click.Path(path_type=Path)


@click.command(cls=VerdictCommand)
@click.argument("reports", nargs=-1, type=PATH, required=True, metavar="A B [C]...")
@click.option("--html", type=PATH, metavar="FILE", help="Also write the comparison as a page with plots.")
@json_option
def compare(reports: tuple[Path, ...], html: Path | None, as_json: bool) -> None:
    """Compare load tests with the first one: what changed, by how much, and whether the change is significant.

    Each argument is a report directory, its report.json, or the YAML of a deployment, whose last report counts.

    Exit codes: 0 no metric that the SLO of A limits is significantly worse; 1 one is; 2 it is unclear;
    3 could not run.
    """
    from toolkit.reports.compare import page as compare_page
    from toolkit.reports.compare import text as compare_text
    from toolkit.reports.compare.compare import compare as compared

    comparison = compared(reports)
    if html:
        compare_page.write_page(comparison, html)
        note(f"page: {html}")
    if as_json:
        print_json(compare_text.data(comparison))
    else:
        from toolkit.reports.terminal import Terminal

        Terminal().print(compare_text.text(comparison), soft_wrap=True)
    job_summary(compare_text.as_markdown(comparison))
    sys.exit(comparison.outcome.value)
