"""A process that takes lines from the one that started it, and ends with it, whichever way that one ends."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable


def end_with_starter(hear: Callable[[str], None] = lambda line: None) -> None:
    """End this process when standard input, a pipe from the starter, is at its end. `hear` gets each line before.

    It is called in a thread of its own.
    """

    def listen() -> None:
        for line in sys.stdin:
            hear(line.strip())
        os._exit(0)

    threading.Thread(target=listen, name="held", daemon=True).start()
