"""The private parts of Locust that the load test needs.

- The page of its web UI: names of two endpoints, the elements below which our tab goes, and where the page keeps its
  theme. Why: Locust's charts show response times only, and its page takes tables from Python but no charts.
- The list of workers in the master's runner. Why: a test whose worker died must end and say so; Locust's events do
  not tell which workers a run began with.

Tried with the releases in TRIED. What replaces it: a tab of Locust's page that takes HTML from Python, and an event for
a lost worker. Without the page's parts the charts are still at `/live`.
"""

from __future__ import annotations

from typing import Any

TRIED = ("2.47.0", "2.47.0")
"""The first and the last release that the tests of the load test passed with. 2.46 failed a test of the web form."""
INDEX, SWARM = "locust.index", "locust.swarm"
"""Flask's names of the page, and of the request that starts a test."""
THEME = "theme"
"""The key in localStorage that holds `dark` or `light`."""
TABS, CONTAINER = "[role=tablist]", ".MuiContainer-root"
"""CSS selectors of the page: its tabs, and the element that holds them and what they show."""
TAB_KEY = "live"
TAB_SCRIPT = f"""<script>
setInterval(() => {{
  const shown = new URLSearchParams(location.search).get("tab") === "{TAB_KEY}";
  const tabs = document.querySelector("{TABS}");
  let frame = document.getElementById("toolkit-live");
  if (!shown || !tabs) {{ frame?.remove(); return; }}
  if (!frame) {{
    frame = Object.assign(document.createElement("iframe"), {{id: "toolkit-live", src: "live", title: "Live"}});
    frame.style.cssText = "border: 0; display: block; width: 100%; height: 400px";
    (tabs.closest("{CONTAINER}") || document.body).append(frame);
  }}
  const inside = frame.contentDocument?.querySelector("main");
  if (inside) frame.style.height = `${{inside.scrollHeight}}px`;
}}, 200);
</script>
"""
"""Shows `/live` below Locust's tabs while ours is the open one."""


def ready_workers(runner: Any) -> set[str]:
    """The ids of the worker processes that a test can start with; empty if this process does all."""
    return {client.id for client in runner.clients.ready} if hasattr(runner, "clients") else set()


def live_workers(runner: Any) -> set[str]:
    """The ids of the worker processes that still report."""
    clients = runner.clients
    return {client.id for client in clients.all} - {client.id for client in clients.missing}


def cpu_shares(runner: Any) -> list[float]:
    """The share of a core that each worker process uses, as it reported last."""
    return [client.cpu_usage / 100 for client in runner.clients.all] if hasattr(runner, "clients") else []
