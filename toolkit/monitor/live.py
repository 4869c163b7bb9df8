"""Looks at a subject once, or again and again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from toolkit.errors import ToolkitError
from toolkit.monitor.page import Page
from toolkit.monitor.subject import Subject
from toolkit.monitor.watcher import EVERY_S, PAGES_EVERY_S


def look_once(subject: Subject) -> Page:
    """The present values. Without an exporter it looks twice, to know how busy the ranks are."""
    with subject.looking() as look:
        page = look()
        if not page.values.get("toolkit_gpu_utilisation_ratio"):
            time.sleep(PAGES_EVERY_S)
            page = look()
    return page


def look_again(subject: Subject, show: Callable[[Page], None]) -> None:
    """Show new values each second, until Ctrl-C. While the exporter is away, the view stays as it is."""
    with subject.looking() as look, contextlib.suppress(KeyboardInterrupt):
        while True:
            with contextlib.suppress(ToolkitError):
                show(look())
            time.sleep(EVERY_S)
