"""Ties a process to its starter: it reads the starter's lines, and ends when the starter ends, in any way."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable


def end_with_starter(hear: Callable[[str], None] = lambda line: None) -> None:
    """End this process when standard input, a pipe from the starter, closes. Until then `hear` gets each line.

    `hear` runs in a thread of its own.
    """

    def listen() -> None:
        for line in sys.stdin:
            hear(line.strip())
        os._exit(0)

    threading.Thread(target=listen, name="held", daemon=True).start()
