from __future__ import annotations

from typing import TYPE_CHECKING

import click

from toolkit.cli.common import deployment_options, dry_run_option, note

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment


@click.command()
@deployment_options
@click.option("--detach", is_flag=True, help="Return once it is ready, and keep it up in the background.")
@dry_run_option
def up(deployment: Deployment, detach: bool, dry_run: bool) -> None:
    """Start all replicas behind one port for OpenAI's and Triton's APIs; start again what fails.

    Ctrl-C lets running requests finish and stops everything. Exit codes: 0 when it was stopped as asked, 1 when it
    could not be started or every replica was given up, 2 for a wrong command line.
    """
    if dry_run:
        from toolkit.up.dry_run import dry_run as describe

        return click.echo(describe(deployment))
    from toolkit.doctor.preflight import check_serve
    from toolkit.up.control import up as run

    check_serve(deployment, note)
    run(deployment, detach=detach)
