"""Looks at a deployment once, or again and again: by its exporter if that runs, else by itself."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError
from toolkit.monitor.page import Page
from toolkit.monitor.read_page import read_exporter
from toolkit.monitor.watcher import EVERY_S, PAGES_EVERY_S, Watcher


@contextlib.contextmanager
def looking(deployment: Deployment) -> Iterator[Callable[[], Page]]:
    """A function that gives the values of now. The exporter knows the last minute; without it, it begins now."""

    def exported() -> Page:
        return Page.of_text(read_exporter(deployment))

    watcher = None
    try:
        exported()
    except ToolkitError:
        watcher = Watcher(deployment, predictions=False)
    try:
        yield watcher.look if watcher else exported
    finally:
        if watcher:
            watcher.close()


def look_once(deployment: Deployment) -> Page:
    """The values of now. Without an exporter it looks twice, to know how busy the ranks are."""
    with looking(deployment) as look:
        page = look()
        if not page.values.get("toolkit_gpu_utilisation_ratio"):
            time.sleep(PAGES_EVERY_S)
            page = look()
    return page


def look_again(deployment: Deployment, show: Callable[[Page], None]) -> None:
    """Show each second what is seen, until Ctrl-C. An exporter that is gone for a while shows nothing new."""
    with looking(deployment) as look, contextlib.suppress(KeyboardInterrupt):
        while True:
            with contextlib.suppress(ToolkitError):
                show(look())
            time.sleep(EVERY_S)
