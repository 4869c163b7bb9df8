from __future__ import annotations

from typing import TYPE_CHECKING

import click

from toolkit.cli.common import deployment_options, next_command, note, progress

if TYPE_CHECKING:
    from toolkit.config import Deployment


@click.command()
@deployment_options
def convert(deployment: Deployment) -> None:
    """Convert the Hugging Face checkpoint into one TensorRT-LLM file a rank."""
    from toolkit.checkpoint import convert as run

    with progress("convert") as report:
        written = run(deployment, report)
    note("converted" if written else "already converted from the same source; nothing to do")
    click.echo(deployment.checkpoint_dir)
    next_command(deployment, "build")
