from __future__ import annotations

from typing import TYPE_CHECKING

import click

from toolkit.cli.common import deployment_options, next_command, note

if TYPE_CHECKING:
    from toolkit.config import Deployment


@click.command()
@deployment_options
def repo(deployment: Deployment) -> None:
    """Generate the Triton model repository of the engines."""
    from toolkit.repository import generate

    written = generate(deployment)
    note("generated" if written else "already generated from the same engine; nothing to do")
    click.echo(deployment.repository_dir)
    next_command(deployment, "serve")
