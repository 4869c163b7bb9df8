from __future__ import annotations

from typing import TYPE_CHECKING

import click

from toolkit.cli.common import deployment_options, tell

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment


@click.command()
@deployment_options
def down(deployment: Deployment) -> None:
    """Let the requests of `toolkit up` finish, and stop everything."""
    from toolkit.up.control import down as run

    tell(run(deployment))
