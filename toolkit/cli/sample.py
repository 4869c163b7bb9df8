from __future__ import annotations

from pathlib import Path

import click

from toolkit.cli.common import note, progress


@click.command()
@click.argument("name", type=click.Choice(["smollm2"]))
@click.argument("directory", type=click.Path(path_type=Path))
def sample(name: str, directory: Path) -> None:
    """Write a small model to rehearse with: smollm2 is SmolLM2-135M-Instruct."""
    from toolkit.samples.smollm2 import write

    with progress(f"write {name}", unit="tensors") as report:
        written = write(directory, progress=report)
    note("written" if written else "already there; nothing to do")
    click.echo(directory)
