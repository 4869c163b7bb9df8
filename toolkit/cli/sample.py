from __future__ import annotations

from pathlib import Path

import click

from toolkit.cli.common import note
from toolkit.cli.progress import progress

MODEL = "smollm2"
"""The sample that is made, not copied."""


@click.command()
@click.argument("name", type=click.Choice([MODEL, "tiny-llama", "configs", "workloads"]))
@click.argument("directory", type=click.Path(path_type=Path))
def sample(name: str, directory: Path) -> None:
    """Write a model, or example files, into a directory.

    smollm2 is SmolLM2-135M-Instruct: a rehearsal with it gives real answers. tiny-llama has 0.8M parameters: a
    rehearsal with it takes seconds. configs are deployment files, workloads are traffic for load tests. Files that are
    already there stay as they are.
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
