"""Ends this model's process when its tritonserver, the parent process, ends."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time

CHECK_PERIOD_S = 0.5


def end_with_server() -> None:
    """End this process when its server ends. A tritonserver that is killed leaves its model processes behind."""
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(server: int) -> None:
    with contextlib.suppress(OSError):  # the server has ended, or the kernel has no pidfd
        select.select([os.pidfd_open(server)], [], [])
    while os.getppid() == server:
        time.sleep(CHECK_PERIOD_S)
    os._exit(1)
