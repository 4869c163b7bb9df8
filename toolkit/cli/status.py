from __future__ import annotations

from typing import TYPE_CHECKING

import click

from toolkit.cli.common import deployment_options, json_option, print_json

if TYPE_CHECKING:
    from toolkit.config import Deployment


@click.command()
@deployment_options
@json_option
def status(deployment: Deployment, as_json: bool) -> None:
    """Say whether the deployment is being served, by which process, and how it is."""
    from dataclasses import asdict

    from toolkit.serve import status as run

    found = run(deployment)
    print_json(asdict(found)) if as_json else click.echo(found)
