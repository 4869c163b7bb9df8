from __future__ import annotations

from typing import TYPE_CHECKING

import click

from toolkit.cli.common import deployment_options, next_command, note, progress

if TYPE_CHECKING:
    from toolkit.config import Deployment


@click.command()
@deployment_options
def build(deployment: Deployment) -> None:
    """Convert, then build the engines: one file a rank."""
    from toolkit.checkpoint import convert
    from toolkit.engine import build as run
    from toolkit.engine import require_buildable

    require_buildable(deployment)
    with progress("convert") as report:
        converted = convert(deployment, report)
    note("converted" if converted else "already converted from the same source")
    with progress("build") as report:
        built = run(deployment, report)
    note("built" if built else "already built from the same checkpoint; nothing to do")
    click.echo(deployment.engine_dir)
    next_command(deployment, "repo")
