from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit.cli.common import deployment_options, dry_run_option, json_option, note, print_json
from toolkit.cli.progress import progress

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment


@click.command()
@deployment_options
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write the file there, not into the output folder.",
)
@click.option("--budget", metavar="SECONDS", type=click.FloatRange(min=1), help="Measure for about this long.")
@dry_run_option
@json_option
def calibrate(deployment: Deployment, output: Path | None, budget: float | None, dry_run: bool, as_json: bool) -> None:
    """Measure step times here, for `toolkit plan CONFIG --calibration FILE`.

    For GPUs: the layers of the model at each tensor parallel degree, on one GPU (2 minutes). For a rehearsal:
    whole steps on all its ranks, alone and in service (3 minutes). That needs the repository of `toolkit repo`.
    """
    from toolkit.calibrate import calibrate as run
    from toolkit.calibrate import planned, save
    from toolkit.plan.show.report import calibration_text
    from toolkit.steptimes.calibration import Calibration

    if dry_run:
        return click.echo("\n".join(planned(deployment)))
    path = output or deployment.calibration_file
    with progress("calibrate", unit="") as tell:
        content = run(deployment, tell, budget)
    save(content, path)
    for text in content.notes:
        note(text)
    if content.skipped:
        note(f"not timed, because time or memory was short: {'; '.join(content.skipped)}")
    if as_json:
        return print_json(content.model_dump(mode="json", exclude_none=True))
    from toolkit.reports.terminal import Terminal

    Terminal(width=100).print(calibration_text(Calibration(path, content), deployment))
    click.echo(path)
