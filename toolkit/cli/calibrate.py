from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit.cli.common import deployment_options, dry_run_option, json_option, note, print_json, progress

if TYPE_CHECKING:
    from rich.table import Table

    from toolkit.config import Deployment
    from toolkit.plan.calibration import Difference, Ratio


@click.command()
@deployment_options
@click.option("--output", metavar="FILE", type=click.Path(path_type=Path), help="Write there, not beside the stages.")
@click.option("--budget", metavar="SECONDS", type=click.FloatRange(min=1), help="Measure for about this long.")
@dry_run_option
@json_option
def calibrate(deployment: Deployment, output: Path | None, budget: float | None, dry_run: bool, as_json: bool) -> None:
    """Measure step times here, for `toolkit plan CONFIG --calibration FILE`.

    For GPUs: the layers of the model at each tensor parallel degree, on one GPU (2 minutes). For a rehearsal:
    whole steps on all its ranks, without Triton.
    """
    from toolkit.calibrate import NAME, planned, save
    from toolkit.calibrate import calibrate as run
    from toolkit.plan.calibration import parse

    if dry_run:
        return click.echo("\n".join(planned(deployment)))
    path = output or deployment.output / NAME
    with progress("calibrate", unit="") as tell:
        content = run(deployment, tell, budget)
    save(content, path)
    for text in content["notes"]:
        note(text)
    if content["skipped"]:
        note(f"not timed, for lack of time or memory: {'; '.join(content['skipped'])}")
    if as_json:
        return print_json(content)
    from rich.console import Console

    Console(highlight=False, width=100).print(_table(parse(content, path).differences(deployment)))
    click.echo(path)


def _table(differences: list[Difference]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="dim")
    for column in ("timed", "tp", "points", "fastest", "slowest", "measured / table", "measured / fitted"):
        table.add_column(column, justify="left" if column == "timed" else "right", no_wrap=True)
    for one in differences:
        times = (f"{seconds * 1e3:,.3f} ms" for seconds in (one.fastest_s, one.slowest_s))
        table.add_row(one.part, str(one.tp), str(one.points), *times, _shown(one.table), _shown(one.fitted))
    return table


def _shown(ratio: Ratio | None) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})" if ratio else "–"
