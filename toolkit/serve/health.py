"""Checks whether a group answers: ready by a real token, how many requests run, and a watch for hangs."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from toolkit.config.deployment import Deployment
from toolkit.serve.janitor import ServerRun, members

ASKED_MODEL = "tensorrt_llm_bls"
CANARY = "toolkit-canary"
"""The id of its requests, which our models leave out of the kept traffic (triton_repo/shared/kept_traffic.py)."""
CHECK_EVERY_S = 5.0
CHECK_TIMEOUT_S = 15.0
LOOK_TIMEOUT_S = 2.0
"""Timeout for /v2/health/ready and the metrics, which Triton answers without the models."""
HOLD_S = 5.0
"""Timeout of the connection that a drain holds open."""
CHECKS_FAILED = 2
"""A group hangs if this many checks in a row fail. That is about 40 s after the last token if they time out, and 15 s
if they get an error."""

_RUNNING = re.compile(r'^nv_trt_llm_request_metrics\{.*request_type="active".*\} (\S+)$', re.MULTILINE)
_PROGRESS = re.compile(r'^nv_trt_llm_general_metrics\{.*"iteration_counter".*\} .*$', re.MULTILINE)


@dataclass(frozen=True)
class HttpReply:
    """Status and body of an HTTP response."""

    status: int
    text: str

    @property
    def error(self) -> str:
        """The server's message about a failed request."""
        try:
            return str(json.loads(self.text)["error"])
        except (ValueError, KeyError, TypeError):
            return f"HTTP {self.status} {self.text[:200]}".strip()


class Probe:
    """Asks a group over its ports. Every method but `ready` returns None if nothing answers in time."""

    def __init__(self, deployment: Deployment) -> None:
        serving = deployment.serving
        self.host = reachable(serving.host)
        self.http_port, self.metrics_port = serving.http_port, serving.metrics_port

    def ready(self) -> bool:
        """Whether the server says that all models are loaded. That does not prove that they work."""
        reply = self._request("GET", self.http_port, "/v2/health/ready", LOOK_TIMEOUT_S)
        return reply is not None and reply.status == 200

    def one_token(self, timeout_s: float) -> HttpReply | None:
        """Request one token, which every rank must compute."""
        body = json.dumps({"id": CANARY, "text_input": "Hello", "max_tokens": 1})
        return self._request("POST", self.http_port, f"/v2/models/{ASKED_MODEL}/generate", timeout_s, body)

    def running(self) -> int | None:
        """How many requests the engine has now, waiting ones included."""
        metrics = self._metrics()
        match = _RUNNING.search(metrics) if metrics else None
        return int(float(match[1])) if match else None

    def progress(self) -> str | None:
        """A text that changes with every step of the engine; "" if the engine does not count its steps."""
        metrics = self._metrics()
        return None if metrics is None else "\n".join(_PROGRESS.findall(metrics))

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Keep an HTTP connection open, if the server still accepts one.

        One request is answered on it first. Without that the kernel alone might have accepted the connection, and a
        server that ends does not wait for such a connection.
        """
        connection = http.client.HTTPConnection(self.host, self.http_port, timeout=HOLD_S)
        with contextlib.closing(connection):
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("GET", "/v2/health/live")
                connection.getresponse().read()
            yield

    def _metrics(self) -> str | None:
        reply = self._request("GET", self.metrics_port, "/metrics", LOOK_TIMEOUT_S)
        return reply.text if reply is not None and reply.status == 200 else None

    def _request(
        self, method: str, port: int, path: str, timeout_s: float, body: str | None = None
    ) -> HttpReply | None:
        connection = http.client.HTTPConnection(self.host, port, timeout=timeout_s)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            return HttpReply(response.status, response.read().decode("utf-8", "replace"))
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()


class FirstToken(threading.Thread):
    """Requests one token as soon as the server says that it is ready. `reply` is set when the thread ends."""

    def __init__(self, probe: Probe, timeout_s: float) -> None:
        super().__init__(name="first-token", daemon=True)
        self._probe, self._deadline = probe, time.monotonic() + timeout_s
        self._ended = threading.Event()
        self.reply: HttpReply | None = None

    def run(self) -> None:
        while (left := self._deadline - time.monotonic()) > 0 and self.reply is None:
            if self._probe.ready():
                self.reply = self._probe.one_token(left)
            if self._ended.wait(0.1):
                return

    def end(self) -> None:
        self._ended.set()


class HangWatch(threading.Thread):
    """Detects a group that is alive but does nothing.

    A check fails if a process of the group is suspended (SIGSTOP), even if other instances of its model still answer.
    Otherwise the check compares the engine's step counter with the last check. If it has not changed, one token is
    requested; the check fails if no answer comes and the counter still does not change. After CHECKS_FAILED failures in
    a row `hung` is set, and `why` is the last reason. `doubted` is called at each failed check with the reason, and at
    the first good check after that with None. `timeout_s` is that of the one-token request.
    """

    def __init__(
        self, probe: Probe, run: ServerRun, doubted: Callable[[str | None], None], timeout_s: float | None = None
    ) -> None:
        super().__init__(name="hang-watch", daemon=True)
        self._probe, self._run, self._doubted = probe, run, doubted
        self._timeout_s = timeout_s or CHECK_TIMEOUT_S
        self._every_s = min(CHECK_EVERY_S, self._timeout_s)
        self._ended = threading.Event()
        self.hung = threading.Event()
        self.why = ""

    def run(self) -> None:
        failed, before, wait_s = 0, self._probe.progress(), self._every_s
        while not self._ended.wait(wait_s):
            check_start = time.monotonic()
            if (problem := self._suspended()) is None:
                now = self._probe.progress()
                problem = None if self._moved(before, now) else self._problem(now)
                before = now
            if problem is None:
                if failed:
                    self._doubted(None)
                failed = 0
            elif not self._ended.is_set():
                failed += 1
                self._doubted(f"{problem} ({failed} in a row)")
                if failed >= CHECKS_FAILED:
                    self.why = problem
                    return self.hung.set()
            wait_s = max(0.0, self._every_s - (time.monotonic() - check_start))

    def end(self) -> None:
        self._ended.set()

    def _problem(self, before: str | None) -> str | None:
        """Why a request for one token fails; None if it is answered, or if the engine computes meanwhile."""
        request_start = time.monotonic()
        reply = self._probe.one_token(self._timeout_s)
        if (reply is not None and reply.status == 200) or self._moved(before, self._probe.progress()):
            return None
        if reply is None:
            return f"no answer to a one-token request within {time.monotonic() - request_start:.0f} s"
        return f"a one-token request fails: {reply.error}"

    @staticmethod
    def _moved(before: str | None, now: str | None) -> bool:
        return now is not None and now != before

    def _suspended(self) -> str | None:
        """A message that names a suspended process of the group; None if there is none."""
        member = next((member for member in members(self._run) if member.suspended), None)
        if member is None:
            return None
        return f"its process {member.pid} ({member.model or Path(member.command[0]).name}) is suspended (SIGSTOP)"


def reachable(host: str) -> str:
    """The address that reaches a server bound to `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
