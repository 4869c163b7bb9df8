from __future__ import annotations

from pathlib import Path

import click

from toolkit.cli.common import note
from toolkit.cli.progress import progress

MODEL = "smollm2"
"""The one that is made, and not copied."""


@click.command()
@click.argument("name", type=click.Choice([MODEL, "tiny-llama", "configs", "workloads"]))
@click.argument("directory", type=click.Path(path_type=Path))
def sample(name: str, directory: Path) -> None:
    """Write something to begin with into a directory.

    smollm2 is SmolLM2-135M-Instruct, to rehearse with real answers; tiny-llama has 0.8M parameters and rehearses in
    seconds. configs are the deployments of build_configs, workloads those of loadtest/workloads. Your own files stay
    as they are.
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
