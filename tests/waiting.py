"""Waiting for what another process does."""

import time


def eventually(condition, timeout_s: float = 60):
    """Wait until it holds; an error in it means not yet."""
    end = time.monotonic() + timeout_s
    while True:
        try:
            if condition():
                return
        except Exception:
            if time.monotonic() > end:
                raise
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.05)
