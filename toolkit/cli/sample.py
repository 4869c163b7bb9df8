from __future__ import annotations

from pathlib import Path

import click

from toolkit.cli.common import note
from toolkit.cli.progress import progress

MODEL = "smollm2"
"""The sample that is made, not copied."""


@click.command()
@click.argument("name", metavar="NAME", type=click.Choice([MODEL, "tiny-llama", "configs", "workloads"]))
@click.argument("directory", type=click.Path(path_type=Path))
def sample(name: str, directory: Path) -> None:
    """Write a model or example files into a directory.

    NAME is smollm2 (SmolLM2-135M-Instruct, for a rehearsal with real answers), tiny-llama (0.8M parameters, for a
    rehearsal in seconds), configs (deployment files) or workloads (traffic for load tests). Files that are there
    already stay as they are.
    """
    from toolkit.files import copies
    from toolkit.model import sample_smollm2 as smollm2

    if name == MODEL:
        with progress(f"write {name}", unit="tensors") as report:
            written = smollm2.write(directory, progress=report)
    else:
        written = copies.copy(name, directory)
    note("written" if written else "already there; nothing to do")
    click.echo(directory)
