from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from toolkit.cli.common import VerdictCommand, deployment_options, json_option, note, print_json, tell

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment


@click.command(cls=VerdictCommand)
@deployment_options
@click.argument("names", nargs=-1, metavar="[NAMES]...")
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True, max=1000),
    help="Requests/s. Default: what four clients reach, each sending one request after another.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=1),
    help="Seconds of load before each failure and after recovery.  [default: 8]",
)
@click.option("--yes", is_flag=True, help="Kill processes on GPUs without asking.")
@json_option
def drill(
    deployment: Deployment, names: tuple[str, ...], rate: float | None, seconds: float | None, yes: bool, as_json: bool
) -> None:
    """Make failures happen under load, and judge what `toolkit up` promises about each.

    NAMES are drills (kill-rank, poison, ...). Without NAMES all run. The deployment must be up.
    Exit codes: 0 PASS, 1 FAIL, 3 could not run.
    """
    from toolkit.drill import report, run, wording
    from toolkit.drill.load import not_up
    from toolkit.drill.promise import Verdict
    from toolkit.gateway.door import up_pid

    failures = run.chosen(names)
    if up_pid(deployment) is None:
        raise not_up(deployment)
    if deployment.kind.on_gpus and not yes:
        listed = ", ".join(failure.name for failure in failures)
        click.confirm(
            f"{deployment.name} serves on GPUs. These drills kill its processes: {listed}. Go on?", abort=True, err=True
        )
    note("quiet run: the text of each prompt without a failure")
    texts, settings = run.quiet_run(deployment, rate, seconds)
    note(f"load: {settings.rate:.2g} requests/s")
    drills = []
    for result in run.run(deployment, failures, texts, settings, note):
        drills.append(result)
        (note if as_json else tell)(wording.line(result))
        content = report.write(deployment, settings, drills)
    if as_json:
        print_json(content)
    else:
        tell(f"{wording.verdict_of(drills)}  report: {report.folder(deployment) / report.HTML_NAME}")
    sys.exit(1 if wording.verdict_of(drills) is Verdict.FAIL else 0)
