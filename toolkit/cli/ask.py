from __future__ import annotations

from typing import TYPE_CHECKING

import click

from toolkit.cli.common import deployment_options, json_option, next_command, print_json

if TYPE_CHECKING:
    from toolkit.config import Deployment


@click.command()
@deployment_options
@json_option
def ask(deployment: Deployment, as_json: bool) -> None:
    """Show what the deployment needs: layers and memory of each GPU, KV capacity, headroom."""
    from toolkit.plan.report import plan_data, plan_text

    if as_json:
        return print_json(plan_data(deployment))
    from rich.console import Console

    Console(highlight=False, width=100).print(plan_text(deployment))
    next_command(deployment, "build")
