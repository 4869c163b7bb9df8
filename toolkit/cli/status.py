from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from toolkit.cli.common import deployment_options, json_option, print_json

if TYPE_CHECKING:
    from toolkit.config import Deployment


@click.command()
@deployment_options
@json_option
def status(deployment: Deployment, as_json: bool) -> None:
    """Say whether the deployment is being served, by which process, and how it is.

    Exit codes: 0, and 1 when some of its replicas are ready and others are not.
    """
    from toolkit.serve import overview

    found = overview(deployment)
    print_json(found.data()) if as_json else click.echo(found)
    if found.degraded:
        sys.exit(1)
