from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit.cli.common import deployment_options, json_option, note, print_json
from toolkit.cli.progress import progress
from toolkit.errors import ToolkitError

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

PATH = click.Path(path_type=Path)


@click.command()
@deployment_options
@click.option("--traffic", type=PATH, metavar="FILE", help="A trace, instead of what monitoring.traffic has kept.")
@click.option("--calibration", type=PATH, metavar="FILE", help="Use the step times of toolkit calibrate.")
@click.option(
    "--write", "target", type=PATH, metavar="FILE", help="Write the YAML with the best settings, comments kept."
)
@click.option("--force", is_flag=True, help="Let --write replace FILE.")
@json_option
def tune(
    deployment: Deployment,
    traffic: Path | None,
    calibration: Path | None,
    target: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """List the settings that would serve the traffic better, each with what it is predicted to give.

    Some need a restart only: --write takes the best of these. The others need other engines.
    """
    from toolkit.config.edit_yaml import check_free, write_edited
    from toolkit.plan.show.tune_report import WIDTH, advice_data, advice_text
    from toolkit.plan.tune import advise, predict_with, with_traffic
    from toolkit.reports.terminal import Terminal
    from toolkit.steptimes.calibration import load

    predict = predict_with(deployment, load(calibration) if calibration else None)
    seen = with_traffic(deployment, traffic)
    if target:
        check_free(target, force)
    with progress("simulating settings", "settings") as report:
        advice = advise(seen, predict, report)
    if as_json:
        print_json(advice_data(advice))
    else:
        Terminal(width=WIDTH).print(advice_text(advice))
    best = advice.best_without_engine
    if target and best is None:
        raise ToolkitError("--write: no other settings of the same engines serve this traffic better")
    if target and best:
        write_edited(
            deployment.file, target, best.settings, deployment.engine if deployment.engine_given else None, force
        )
        note(f"written: {target}")
        note(f"next: {deployment.command('restart', '--rolling', '--with', str(target))}")
