"""The servers of a deployment that show metrics: each replica, its worker, and Dynamo's front end."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator, Mapping, Sequence

from toolkit.config.deployment import Deployment
from toolkit.monitor.engine import EngineWatch
from toolkit.monitor.latencies import Latencies
from toolkit.monitor.page import Page
from toolkit.serve.health import reachable
from toolkit.slo.server_metrics import Value, parse

FRONT = "front end"


def worker(replica: int) -> str:
    """The name of the worker of a replica."""
    return f"worker {replica}"


class Servers:
    """The pages of all servers, and the engines behind them. `read` returns the text of a page, or raises OSError.

    `urls` are those of the front end and the workers, by name.
    """

    def __init__(self, deployment: Deployment, urls: Mapping[str, str], read: Callable[[str], str]) -> None:
        self._read = read
        self._urls = dict(urls)
        self._engines: dict[str, EngineWatch] = {}
        for number, replica in enumerate(deployment.here()):
            name, serving = f"replica {number}", replica.serving
            self._urls[name] = f"http://{reachable(serving.host)}:{serving.metrics_port}/metrics"
            self._engines[name] = EngineWatch(number, deployment.parallel.pp)

    def have_stages(self, stages: int) -> None:
        """The engines have so many pipeline stages now."""
        for engine in self._engines.values():
            engine.has_stages(stages)

    def fill(self, page: Page, latencies: Latencies, now: float) -> None:
        """Set the values of the engines, and note the latencies. `now` is on a clock that only goes forward.

        A server that does not answer is left out.
        """
        pages = dict(self._pages())
        for source in self._urls:
            page.set("toolkit_scrape_ok", source in pages, source=source)
        for source, values in pages.items():
            latencies.note(source, values)
            if source in self._engines:
                self._engines[source].fill(page, values, now)

    def _pages(self) -> Iterator[tuple[str, Sequence[Value]]]:
        for source, url in self._urls.items():
            try:
                yield source, tuple(parse(self._read(url)))
            except (OSError, ValueError, http.client.HTTPException):
                continue
