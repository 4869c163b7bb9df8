from __future__ import annotations

from typing import TYPE_CHECKING

import click

from toolkit.cli.common import deployment_options, dry_run_option, note

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment


@click.command()
@deployment_options
@click.option("--detach", is_flag=True, help="Serve in the background, and return once it is ready.")
@click.option("--verbose", is_flag=True, help="Show every line that a rank prints.")
@dry_run_option
def serve(deployment: Deployment, detach: bool, verbose: bool, dry_run: bool) -> None:
    """Start the server and all its ranks. Ctrl-C lets running requests finish, then stops it.

    Exit codes: 0 stopped on request; 1 it could not start, or a rank ended or hung; 2 wrong usage.
    """
    if dry_run:
        from toolkit.serve import dry_run as describe

        return click.echo(describe(deployment))
    from toolkit.doctor.preflight import check_serve
    from toolkit.serve import serve as run

    check_serve(deployment, note)
    run(deployment, detach=detach, verbose=verbose)
