"""Reads the metrics of the servers under load, and of the exporter, every second, in a thread."""

from __future__ import annotations

import http.client
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from toolkit.errors import ToolkitError
from toolkit.monitor.read_page import read_page
from toolkit.slo.readings import Reading, summed_up
from toolkit.slo.server_metrics import NO_GPUS, ServerSeen

EVERY_S = 1.0
TIMEOUT_S = 2.0


class ServerWatch:
    """Reads while the context is open. `seen` sums up the readings between two moments.

    `exporter` gives the page of the deployment's exporter, or raises a ToolkitError that says how to have one.
    """

    def __init__(
        self,
        urls: Sequence[str],
        exporter: Callable[[], str] | None = None,
        every_s: float = EVERY_S,
        read: Callable[[str], str] | None = None,
    ) -> None:
        self._urls, self._exporter, self._every_s = urls, exporter, every_s
        self._read = read or (lambda url: read_page(url, TIMEOUT_S))
        self._readings: list[Reading] = []
        self._problem = self._without_exporter = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="server-metrics", daemon=True)

    def __enter__(self) -> ServerWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(timeout=TIMEOUT_S * (len(self._urls) + 1) + 1)

    def seen(self, begin: float = -math.inf, end: float = math.inf) -> ServerSeen:
        """The summary of the readings between two moments, in seconds since the Unix epoch."""
        readings = [reading for reading in list(self._readings) if begin <= reading.time <= end]
        if not readings:
            return ServerSeen(unseen=self._problem or "the server's metrics were not read in time")
        seen = summed_up(readings)
        if seen.unseen == NO_GPUS and self._without_exporter:
            return replace(seen, unseen=f"{NO_GPUS}, and {self._without_exporter}")
        return seen

    def _run(self) -> None:
        while True:
            for number, url in enumerate(self._urls):
                try:
                    text = self._read(url)
                except (OSError, ValueError, http.client.HTTPException) as error:
                    # The server may die during the test. The requests show that.
                    self._problem = f"the server's metrics cannot be read: {error}"
                else:
                    self._readings.append(Reading.of(text, time.time(), number))
            if self._exporter:
                try:
                    self._readings.append(Reading.of(self._exporter(), time.time(), len(self._urls)))
                except ToolkitError as error:
                    self._without_exporter = str(error)
            if self._ended.wait(self._every_s):
                return
