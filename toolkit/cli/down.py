from __future__ import annotations

from typing import TYPE_CHECKING

import click

from toolkit.cli.common import deployment_options, tell

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment


@click.command()
@deployment_options
def down(deployment: Deployment) -> None:
    """Let running requests finish, then stop everything that `toolkit up` started."""
    from toolkit.up.control import down as run

    tell(run(deployment))
