"""The exporter: shows the metrics of a deployment on a port of loopback, until it is told to end."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError
from toolkit.gateway.places import LOOPBACK
from toolkit.monitor.collector import PageCollector
from toolkit.monitor.read_page import metrics_url
from toolkit.monitor.watcher import EVERY_S, Watcher


def export(deployment: Deployment, urls: Mapping[str, str], ended: Callable[[float], bool]) -> None:
    """Export until `ended` is true; it waits for the seconds that it gets. Raises ToolkitError if the port is taken.

    `urls` are the pages of the front end and the workers, by name.
    """
    collector, registry = PageCollector(), CollectorRegistry()
    registry.register(collector)
    ProcessCollector(namespace="toolkit_exporter", registry=registry)
    with _served(deployment, registry):
        watcher = Watcher(deployment, urls)
        try:
            print(f"ready: {metrics_url(deployment)}", flush=True)
            next_look = time.monotonic()
            while not ended(max(0.0, next_look - time.monotonic())):
                collector.page = watcher.look()
                # After a stall it continues from now, without the looks that it missed.
                next_look = max(next_look + EVERY_S, time.monotonic())
        finally:
            watcher.close()


class _Served(contextlib.AbstractContextManager[None]):
    def __init__(self, server: WSGIServer, thread: threading.Thread) -> None:
        self._server, self._thread = server, thread

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _served(deployment: Deployment, registry: CollectorRegistry) -> _Served:
    port = deployment.monitoring.exporter_port
    try:
        return _Served(*start_http_server(port, LOOPBACK, registry))
    except OSError as error:
        what = f"monitoring.exporter_port: {port} on {LOOPBACK} cannot be used: {error.strerror}"
        raise ToolkitError(what, where=deployment.file, hint="Stop what uses it, or choose another port.") from None
