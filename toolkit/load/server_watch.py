"""Reads the /metrics of the servers under load every second, in a thread."""

from __future__ import annotations

import http.client
import math
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence

from toolkit.slo.server_metrics import Reading, ServerSeen, summed_up

EVERY_S = 1.0
TIMEOUT_S = 2.0
LARGEST = 4 << 20
"""Bytes that are read from one page."""


class ServerWatch:
    """Reads while the context is open. `seen` sums up the readings between two moments."""

    def __init__(self, urls: Sequence[str], every_s: float = EVERY_S, read: Callable[[str], str] | None = None) -> None:
        self._urls, self._every_s, self._read = urls, every_s, read or read_text
        self._readings: list[Reading] = []
        self._problem = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="server-metrics", daemon=True)

    def __enter__(self) -> ServerWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(timeout=TIMEOUT_S * len(self._urls) + 1)

    def seen(self, begin: float = -math.inf, end: float = math.inf) -> ServerSeen:
        """The summary of the readings between two moments, in seconds since the Unix epoch."""
        readings = [reading for reading in list(self._readings) if begin <= reading.time <= end]
        if not readings:
            return ServerSeen(unseen=self._problem or "the server's metrics were not read in time")
        return summed_up(readings)

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
            if self._ended.wait(self._every_s):
                return


def read_text(url: str) -> str:
    """Read a metrics page. Raises OSError."""
    # Without the environment's proxy: the server is one of ours.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=TIMEOUT_S) as answer:
        page: bytes = answer.read(LARGEST)
    return page.decode("utf-8", "replace")
