from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from toolkit.cli.common import deployment_options, json_option, print_json, tell

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment


@click.command()
@deployment_options
@json_option
def status(deployment: Deployment, as_json: bool) -> None:
    """Show whether the deployment is being served, by which process, and its state.

    Exit codes: 0 ready; 1 degraded (some replicas are not ready, or the group does not answer); 2 loading; 3 not
    served.
    """
    from toolkit.serve import overview
    from toolkit.up.control import status as status_with_door

    status_now = status_with_door(deployment) or overview(deployment)
    print_json(status_now.data()) if as_json else tell(status_now)
    sys.exit(status_now.exit_code)
