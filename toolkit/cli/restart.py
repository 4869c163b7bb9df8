from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit.cli.common import deployment_options, note

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment


@click.command()
@deployment_options
@click.option("--rolling", is_flag=True, help="One replica at a time, while the others serve.")
@click.option("--with", "new", type=click.Path(path_type=Path), help="Go on with this deployment's YAML.")
def restart(deployment: Deployment, rolling: bool, new: Path | None) -> None:
    """Restart the replicas of a deployment that is up, each after its requests have finished."""
    from toolkit.config.load import load_deployment
    from toolkit.up.control import restart as run

    run(deployment, rolling=rolling, new=load_deployment(new) if new else None, hear=note)
