"""Sends responses to clients, and notices clients that have left."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class Reply:
    """The responses to one request, which has one or several parts. Any thread may send.

    It ends when all parts have ended, or with an error. Later responses are dropped.
    """

    def __init__(self, sender: Any, parts: int = 1, decoupled: bool = True) -> None:
        self._sender, self._parts, self._decoupled = sender, parts, decoupled
        self._lock = threading.Lock()

    def send(self, tensors: Sequence[Any], last: bool = False) -> None:
        """Send one response. With `last`, a part ends with it."""
        response = pb_utils.InferenceResponse(tensors)
        with self._lock:
            if self._parts:
                self._parts -= last
                self._sender.send(response, flags=0 if self._parts else FINAL)

    def fail(self, error: Any) -> None:
        """End all parts with this error."""
        response = pb_utils.InferenceResponse(error=error)
        with self._lock:
            if self._parts:
                self._parts = 0
                self._sender.send(response, flags=FINAL)

    def end(self) -> None:
        """End a part without another response: the client sees no event.

        A model that is not decoupled owes exactly one response, so it sends an error instead.
        """
        if not self._decoupled:
            return self.fail(pb_utils.TritonError("the request was stopped", pb_utils.TritonError.CANCELLED))
        with self._lock:
            if self._parts:
                self._parts -= 1
                if not self._parts:
                    self._sender.send(flags=FINAL)

    def client_is_gone(self) -> bool:
        # With the lock, because Triton crashes if it is asked about a request after its last response.
        with self._lock:
            return self._parts > 0 and self._sender.is_cancelled()


class CancellationWatch:
    """A thread that looks for clients that have left, and calls `stop` of their requests until these end.

    `stop` must return at once, because it blocks the thread.
    """

    def __init__(self, period_s: float) -> None:
        self._watched: dict[Reply, Callable[[], object]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(period_s,), daemon=True)
        self._thread.start()

    def add(self, reply: Reply, stop: Callable[[], object]) -> None:
        self._watched[reply] = stop

    def remove(self, reply: Reply) -> None:
        del self._watched[reply]

    def end(self) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self, period_s: float) -> None:
        while not self._over.wait(period_s):
            for reply, stop in self._watched.copy().items():
                if reply.client_is_gone():
                    stop()
