from __future__ import annotations

from typing import TYPE_CHECKING

import click

from toolkit.cli.common import deployment_options, dry_run_option, note

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment


@click.command()
@deployment_options
@click.option("--detach", is_flag=True, help="Run in the background, and return once it is ready.")
@dry_run_option
def up(deployment: Deployment, detach: bool, dry_run: bool) -> None:
    """Start all replicas behind one port for OpenAI's and Triton's APIs, and restart what fails.

    Ctrl-C lets running requests finish, then stops everything. Exit codes: 0 stopped on request; 1 it could not
    start, or every replica was given up; 2 wrong usage.
    """
    if dry_run:
        from toolkit.up.dry_run import dry_run as describe

        return click.echo(describe(deployment))
    from toolkit.doctor.preflight import check_serve
    from toolkit.up.control import up as run

    if deployment.here():
        check_serve(deployment, note)
    run(deployment, detach=detach)
