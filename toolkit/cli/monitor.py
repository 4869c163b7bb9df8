from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit.cli.common import json_option, optional_deployment, print_json

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment
    from toolkit.monitor.subject import Subject


@click.command()
@optional_deployment
@click.option("--target", metavar="URL", help="Watch any Triton by its metrics: http://HOST:8002.")
@click.option("--once", is_flag=True, help="Show it once. The default if the output is not a terminal.")
@click.option("--web", is_flag=True, help="Show it as a web page on this machine, until Ctrl-C.")
@click.option("--port", type=click.IntRange(1, 65535), help="The port of the web page. Default: a free one.")
@click.option("--exporter", is_flag=True, help="Show nothing; export the metrics for Prometheus until Ctrl-C.")
@click.option("--dashboards", type=Path, metavar="DIR", help="Write dashboards for Grafana into a folder.")
@json_option
def monitor(
    deployment: Deployment | None,
    target: str | None,
    once: bool,
    web: bool,
    port: int | None,
    exporter: bool,
    dashboards: Path | None,
    as_json: bool,
) -> None:
    """Watch a served deployment: replicas, GPUs, queue, KV cache, latencies against the SLO, events.

    It works on what `toolkit up` or `toolkit serve` started. --target needs no CONFIG; a CONFIG adds its SLO.
    --exporter gives the same values to Prometheus, as `toolkit up` does by itself.
    """
    if exporter + bool(dashboards) + web + (once or as_json) > 1:
        raise click.UsageError("--exporter, --dashboards, --web, and --once or --json cannot be combined.")
    if port and not web:
        raise click.UsageError("--port needs --web.")
    if target and (exporter or dashboards):
        raise click.UsageError("--target cannot be combined with --exporter or --dashboards.")
    if dashboards:
        from toolkit.monitor import packages

        packages.require(packages.DASHBOARDS)
        from toolkit.monitor.dashboards import write_dashboards

        return click.echo("\n".join(map(str, write_dashboards(dashboards))))
    if deployment is None and not target:
        raise click.UsageError("Give a CONFIG, or --target URL.")
    if exporter and deployment:
        from toolkit.monitor.foreground import export_here

        return export_here(deployment)
    from toolkit.monitor.subject import subject_of

    watched = subject_of(deployment, target)
    if web:
        from toolkit.monitor.foreground import serve_page_here

        return serve_page_here(watched, port or 0)
    _show(watched, once, as_json)


def _show(watched: Subject, once: bool, as_json: bool) -> None:
    from toolkit.monitor.live import look_again, look_once

    if as_json:
        return print_json(look_once(watched).as_data())
    from toolkit.monitor.view import as_text
    from toolkit.reports.terminal import Terminal

    terminal = Terminal()
    if once or not sys.stdout.isatty():
        return terminal.print(as_text(watched, look_once(watched)))
    from rich.live import Live

    with Live(console=terminal, auto_refresh=False, screen=True) as live:
        look_again(watched, lambda page: live.update(as_text(watched, page), refresh=True))
