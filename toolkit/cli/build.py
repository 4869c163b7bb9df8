from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit.cli.common import deployment_options, next_command, note, progress

if TYPE_CHECKING:
    from toolkit.config import Deployment


@click.command()
@deployment_options
@click.option(
    "--checkpoint",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Build from this TensorRT-LLM checkpoint, whoever wrote it, and convert nothing.",
)
def build(deployment: Deployment, checkpoint: Path | None) -> None:
    """Convert, then build the engines: one file a rank."""
    from toolkit.checkpoint import convert
    from toolkit.engine import build as run
    from toolkit.engine import require_buildable

    require_buildable(deployment)
    if checkpoint is None:
        with progress("convert") as report:
            converted = convert(deployment, report)
        note("converted" if converted else "already converted from the same source")
    with progress("build") as report:
        built = run(deployment, report, checkpoint)
    note("built" if built else "already built from the same checkpoint; nothing to do")
    click.echo(deployment.engine_dir)
    next_command(deployment, "repo")
