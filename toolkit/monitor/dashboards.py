"""Grafana dashboards as JSON to import, made with Grafana's own package. No Grafana has shown them yet."""

from __future__ import annotations

from pathlib import Path

from grafana_foundation_sdk.builders import dashboard, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from toolkit.files.atomic import write_text
from toolkit.monitor.panels import DASHBOARDS, Panel

REFRESH, SHOWN = "10s", "now-30m"
HEIGHT, WIDTH = 8, 12
"""Width and height of a panel in Grafana's units. The whole width is 24."""


def write_dashboards(folder: Path) -> list[Path]:
    """Write each dashboard into the folder, which is made if it does not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, panels in DASHBOARDS.items():
        file = folder / f"toolkit-{name}.json"
        write_text(file, dashboard_json(name, panels))
        files.append(file)
    return files


def dashboard_json(name: str, panels: tuple[Panel, ...]) -> str:
    """The JSON of one dashboard."""
    made = dashboard.Dashboard(f"toolkit: {name}").uid(f"toolkit-{name}").tags(["toolkit"])
    made = made.refresh(REFRESH).time(SHOWN, "now").editable()
    for panel in panels:
        made = made.with_panel(_panel(panel))
    text: str = JSONEncoder(sort_keys=True, indent=2).encode(made.build())
    return text + "\n"


def _panel(panel: Panel) -> timeseries.Panel:
    made = timeseries.Panel().title(panel.title).unit(panel.unit).height(HEIGHT).span(WIDTH)
    for number, (expression, legend) in enumerate(panel.queries):
        query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(chr(ord("A") + number))
        made = made.with_target(query)
    return made
