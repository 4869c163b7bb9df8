"""The exporter and the web page in the foreground, until they are told to end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from toolkit.config.deployment import Deployment
from toolkit.monitor import packages
from toolkit.monitor.subject import Subject
from toolkit.processes import stop_requests

LOOK_S = 0.1


def export_here(deployment: Deployment) -> None:
    """Export until SIGTERM, SIGHUP or Ctrl-C, for what `toolkit serve` alone started. Raises ToolkitError."""
    packages.require(packages.EXPORTER)
    from toolkit.monitor.exporter import export

    with _until_stopped() as ended:
        export(deployment, {}, ended)


def serve_page_here(subject: Subject, port: int) -> None:
    """Show the web page until SIGTERM, SIGHUP or Ctrl-C. Raises ToolkitError."""
    from toolkit.monitor.web import serve

    with _until_stopped() as ended:
        serve(subject, port, ended, lambda url: print(f"ready: {url}  (Ctrl-C ends it)", flush=True))


@contextmanager
def _until_stopped() -> Iterator[Callable[[float], bool]]:
    """A function that waits for some seconds, and returns whether to end."""
    with stop_requests() as stop:

        def ended(wait_s: float) -> bool:
            until = time.monotonic() + wait_s
            while not stop.count and time.monotonic() < until:
                time.sleep(min(LOOK_S, max(0.0, until - time.monotonic())))
            return bool(stop.count)

        yield ended
