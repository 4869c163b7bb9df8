"""The subject that is watched: a deployment of ours, or any Triton with the engine's metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError
from toolkit.gateway.door import folder, read_door
from toolkit.gateway.running import Running
from toolkit.monitor.events import EVENTS, newest_events
from toolkit.monitor.latencies import slo_targets
from toolkit.monitor.page import Page
from toolkit.monitor.read_page import read_exporter
from toolkit.monitor.target import TargetWatcher
from toolkit.monitor.watcher import Watcher


class Subject(Protocol):
    """Something to watch."""

    name: str

    @property
    def tp(self) -> int:
        """The ranks of a pipeline stage."""

    def state(self) -> str:
        """How it is served, in a few words."""

    def events(self) -> list[dict[str, Any]]:
        """The newest events, the newest last."""

    def looking(self) -> AbstractContextManager[Callable[[], Page]]:
        """A function that returns the present values. It raises ToolkitError while there are none."""


class Served:
    """A deployment: by its exporter if that runs, else by our own looks."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self.name, self._running = deployment.name, Running(deployment)

    @property
    def tp(self) -> int:
        return self._running.look(read_door(self._deployment)).mapping.tp

    def state(self) -> str:
        door = read_door(self._deployment)
        if door is None:
            return "without a door"
        admitted = f", lets in {door.admission.limit}" if door.admission else ""
        return f"{door.phase}, {door.url}{admitted}"

    def events(self) -> list[dict[str, Any]]:
        return newest_events(folder(self._deployment) / EVENTS)

    @contextmanager
    def looking(self) -> Iterator[Callable[[], Page]]:
        """The exporter knows the last minute. Without it the history begins now."""

        def exported() -> Page:
            return Page.of_text(read_exporter(self._deployment))

        watcher = None
        try:
            exported()
        except ToolkitError:
            watcher = Watcher(self._deployment, predictions=False)
        try:
            yield watcher.look if watcher else exported
        finally:
            if watcher:
                watcher.close()


class Target:
    """The Triton whose metrics are at a URL. The SLO is that of a deployment, if there is one."""

    tp = 1

    def __init__(self, url: str, deployment: Deployment | None) -> None:
        self._watcher = TargetWatcher(url, slo_targets(deployment) if deployment else ())
        self.name = self._watcher.url

    def state(self) -> str:
        return "Triton"

    def events(self) -> list[dict[str, Any]]:
        return []

    @contextmanager
    def looking(self) -> Iterator[Callable[[], Page]]:
        """Raises ToolkitError if there are no such metrics."""
        self._watcher.require()
        yield self._watcher.look


def subject_of(deployment: Deployment | None, target: str | None) -> Subject:
    """The Triton at `target` if given, else the deployment. Raises ToolkitError if `target` is not a URL."""
    if target:
        return Target(target, deployment)
    assert deployment, "the command line needs one of them"
    return Served(deployment)
