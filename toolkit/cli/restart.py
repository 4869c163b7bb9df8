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
@click.option(
    "--with", "new", type=click.Path(path_type=Path), metavar="FILE", help="Start the replicas with this YAML instead."
)
def restart(deployment: Deployment, rolling: bool, new: Path | None) -> None:
    """Restart the replicas of a deployment that is up, each after its requests have finished."""
    from toolkit.config.load import load_deployment
    from toolkit.up.control import restart as run

    engine = deployment.engine if deployment.engine_given else None
    run(deployment, rolling=rolling, new=load_deployment(new, engine) if new else None, hear=note)
