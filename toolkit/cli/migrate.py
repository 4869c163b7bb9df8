from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit.cli.common import deployment_options, dry_run_option, json_option, note, print_json

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment


@click.command()
@deployment_options
@click.option(
    "--output", metavar="FILE", type=click.Path(path_type=Path), help="The twin's file.  [default: CONFIG-pytorch.yaml]"
)
@dry_run_option
@json_option
def migrate(deployment: Deployment, output: Path | None, dry_run: bool, as_json: bool) -> None:
    """Write the PyTorch twin of a deployment with engines, and list what has no equivalent.

    The twin has no engines to build: TensorRT-LLM loads the model itself. Everything else is the same, so the same
    requests and the same load test work for both.
    """
    from toolkit.repository.migrate import as_text, twin_of
    from toolkit.repository.migrate import migrate as write

    twin = twin_of(deployment, output)
    written = None if dry_run else write(twin)
    if as_json:
        return print_json({"file": str(twin.file), "changes": [asdict(change) for change in twin.changes]})
    click.echo(as_text(twin))
    if dry_run:
        return click.echo(f"\n{twin.text}", nl=False)
    note(f"{twin.file}: {'written' if written else 'is up to date; nothing to do'}")
    note(f"next: toolkit plan {twin.file}")
