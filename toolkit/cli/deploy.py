from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit.cli.common import deployment_options, json_option, note, print_json

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment


@click.command()
@deployment_options
@click.option(
    "--to", "target", required=True, type=click.Choice(["compose", "slurm", "kubernetes"]), help="What runs it."
)
@click.option("--output", "directory", required=True, metavar="DIR", type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Write nothing. Compare DIR with what would be written; 1 if it differs.")
@json_option
def deploy(deployment: Deployment, target: str, directory: Path, check: bool, as_json: bool) -> None:
    """Write everything that docker compose, Slurm or Kubernetes needs to run this deployment into DIR.

    The files explain their choices, and are locked to the YAML. It refuses a folder with other files, or with changes
    by hand. Exit codes: 0 done, 1 an error, or a difference with --check.
    """
    from toolkit.deploy import deploy as work

    if check:
        differences = work.differences(deployment, target, directory)
        if as_json:
            print_json({"target": target, "directory": str(directory.absolute()), "differences": differences})
        for name, difference in () if as_json else differences.items():
            click.echo(f"{name}: {difference}")
        if not differences:
            note(f"{directory} is what would be written")
        sys.exit(1 if differences else 0)
    written = work.write(deployment, target, directory)
    if as_json:
        files = sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
        return print_json(
            {"target": target, "directory": str(directory.absolute()), "written": written, "files": files}
        )
    note("written" if written else "already written from the same YAML; nothing to do")
    click.echo(directory)
    note(f"next: {directory / 'README.md'} has the commands")
    return None
