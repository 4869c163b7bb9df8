from __future__ import annotations

from typing import TYPE_CHECKING

import click

from toolkit.cli.common import deployment_options, json_option, print_json, tell

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment


@click.command()
@deployment_options
@json_option
def stop(deployment: Deployment, as_json: bool) -> None:
    """Let running requests finish, then stop the server."""
    from toolkit.serve import stop as run

    outcome = run(deployment)
    print_json({"result": outcome}) if as_json else tell(outcome)
