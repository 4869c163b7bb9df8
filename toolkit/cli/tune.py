from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.cli.common import deployment_options, json_option, note, print_json, tell
from toolkit.cli.progress import progress
from toolkit.errors import ToolkitError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from toolkit.config.deployment import Deployment
    from toolkit.up.control import Applied

PATH = click.Path(path_type=Path)


@click.command()
@deployment_options
@click.option("--traffic", type=PATH, metavar="FILE", help="A trace, instead of what monitoring.traffic has kept.")
@click.option("--calibration", type=PATH, metavar="FILE", help="Use the step times of toolkit calibrate.")
@click.option(
    "--write", "target", type=PATH, metavar="FILE", help="Write the YAML with the best settings, comments kept."
)
@click.option("--force", is_flag=True, help="Let --write replace FILE.")
@click.option(
    "--apply",
    "as_trial",
    is_flag=True,
    help="Try the best settings on one replica that is up; keep them if they are better.",
)
@click.option("--with", "new", type=PATH, metavar="FILE", help="Let --apply try the settings of this YAML instead.")
@json_option
def tune(
    deployment: Deployment,
    traffic: Path | None,
    calibration: Path | None,
    target: Path | None,
    force: bool,
    as_trial: bool,
    new: Path | None,
    as_json: bool,
) -> None:
    """List the settings that would serve the traffic better, each with what it is predicted to give.

    Some need a restart only: --write takes the best of these. The others need other engines.

    With --apply, a replica of `toolkit up` restarts with the best of these. It is compared with the others under their
    live traffic. If it is better, the others follow; else it restarts with the settings of before. Exit codes then: 0
    taken, 1 rolled back or not tried. With --apply, --write writes only what was taken.
    """
    from toolkit.config.edit_yaml import check_free, write_edited

    if new and not as_trial:
        raise click.UsageError(
            "--with needs --apply. For a restart without a trial: toolkit restart --rolling --with FILE"
        )
    if target:
        check_free(target, force)
    settings = _settings_of(deployment, new) if new else _best(deployment, traffic, calibration, as_trial, as_json)
    if (target or as_trial) and not settings:
        option = "--apply" if as_trial else "--write"
        raise ToolkitError(f"{option}: no other settings of the same engines serve this traffic better")
    if as_trial:
        applied = _applied(deployment, settings, as_json)
        if not applied.taken:
            sys.exit(1)
        settings = applied.settings
    if target:
        engine = deployment.engine if deployment.engine_given else None
        write_edited(deployment.file, target, settings, engine, force)
        note(f"written: {target}")
        if not as_trial:
            note(f"next: {deployment.command('restart', '--rolling', '--with', str(target))}")


def _best(
    deployment: Deployment, traffic: Path | None, calibration: Path | None, as_trial: bool, as_json: bool
) -> Mapping[str, Any]:
    """The best settings of the same engines. Prints all that were found."""
    from toolkit.plan.show.tune_report import WIDTH, advice_data, advice_text
    from toolkit.plan.tune import advise, predict_with, with_traffic
    from toolkit.reports.terminal import Terminal
    from toolkit.steptimes.calibration import load
    from toolkit.up.control import ready_to_try

    base = ready_to_try(deployment) if as_trial else deployment
    predict = predict_with(base, load(calibration) if calibration else None)
    seen = with_traffic(base, traffic)
    with progress("simulating settings", "settings") as report:
        advice = advise(seen, predict, report)
    if not as_json:
        Terminal(width=WIDTH).print(advice_text(advice))
    elif not as_trial:
        print_json(advice_data(advice))
    return advice.best_without_engine.settings if advice.best_without_engine else {}


def _settings_of(deployment: Deployment, new: Path) -> Mapping[str, Any]:
    """The settings of another YAML that differ from those that run."""
    from toolkit.config.load import load_deployment
    from toolkit.up.candidate import changes_of
    from toolkit.up.control import ready_to_try

    engine = deployment.engine if deployment.engine_given else None
    return changes_of(ready_to_try(deployment), load_deployment(new, engine))


def _applied(deployment: Deployment, settings: Mapping[str, Any], as_json: bool) -> Applied:
    """Try the settings, and print how that ended."""
    from toolkit.up.control import apply

    applied = apply(deployment, settings, note)
    if as_json:
        print_json({"taken": applied.taken, "reason": applied.reason, "settings": settings})
    else:
        tell(f"{'taken' if applied.taken else 'rolled back'}: {applied.reason}")
    return applied
