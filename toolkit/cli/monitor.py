from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit.cli.common import deployment_options, json_option, print_json

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment


@click.command()
@deployment_options
@click.option("--once", is_flag=True, help="Show it once. So it is when the output is no terminal.")
@click.option("--exporter", is_flag=True, help="Show nothing; be the exporter of metrics until Ctrl-C.")
@click.option("--dashboards", type=Path, metavar="DIR", help="Write dashboards for Grafana into a folder.")
@json_option
def monitor(deployment: Deployment, once: bool, exporter: bool, dashboards: Path | None, as_json: bool) -> None:
    """Watch a served deployment: replicas, GPUs, queue, KV cache, latencies against the SLO, events.

    It works on what `toolkit up` or `toolkit serve` started. With --exporter it shows the same values to Prometheus,
    as `toolkit up` does by itself.
    """
    if exporter + bool(dashboards) + (once or as_json) > 1:
        raise click.UsageError("--exporter, --dashboards, and --once or --json cannot be combined.")
    if dashboards:
        from toolkit.monitor import packages

        packages.require(packages.DASHBOARDS)
        from toolkit.monitor.dashboards import write_dashboards

        return click.echo("\n".join(map(str, write_dashboards(dashboards))))
    if exporter:
        from toolkit.monitor.foreground import export_here

        return export_here(deployment)
    from toolkit.monitor.live import look_again, look_once

    if as_json:
        return print_json(look_once(deployment).as_data())
    from toolkit.monitor.view import as_text
    from toolkit.reports.terminal import Terminal

    terminal = Terminal()
    if once or not sys.stdout.isatty():
        return terminal.print(as_text(deployment, look_once(deployment)))
    from rich.live import Live

    with Live(console=terminal, auto_refresh=False, screen=True) as live:
        look_again(deployment, lambda page: live.update(as_text(deployment, page), refresh=True))
