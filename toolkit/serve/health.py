"""Whether a group answers: readiness proven by a real token, requests running, and a watch for hangs."""

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
from toolkit.serve.janitor import Run, members

ASKED_MODEL = "tensorrt_llm_bls"
CHECK_EVERY_S = 5.0
CHECK_TIMEOUT_S = 15.0
LOOK_TIMEOUT_S = 2.0
"""For /v2/health/ready and the metrics, which Triton answers without the models."""
HOLD_S = 5.0
CHECKS_FAILED = 2
"""A group counts as hung after this many checks in a row without an answer and without any progress: about 40 s after
the last token if they time out, 15 s if they fail by an error."""

_RUNNING = re.compile(r'^nv_trt_llm_request_metrics\{.*request_type="active".*\} (\S+)$', re.MULTILINE)
_PROGRESS = re.compile(r'^nv_trt_llm_general_metrics\{.*"iteration_counter".*\} .*$', re.MULTILINE)


@dataclass(frozen=True)
class Answer:
    """The answer of a server to one HTTP request."""

    status: int
    text: str

    @property
    def error(self) -> str:
        """The server's own words about a failed request."""
        try:
            return str(json.loads(self.text)["error"])
        except (ValueError, KeyError, TypeError):
            return f"HTTP {self.status} {self.text[:200]}".strip()


class Probe:
    """Asks a group over its own ports. Every method returns None where nothing answers in time."""

    def __init__(self, deployment: Deployment) -> None:
        serving = deployment.serving
        self.host = reachable(serving.host)
        self.http_port, self.metrics_port = serving.http_port, serving.metrics_port

    def ready(self) -> bool:
        """What the server says of itself: all models loaded. It does not prove that they work."""
        answer = self._request("GET", self.http_port, "/v2/health/ready", LOOK_TIMEOUT_S)
        return answer is not None and answer.status == 200

    def one_token(self, timeout_s: float) -> Answer | None:
        """Have one token generated: the whole way, through every rank."""
        body = json.dumps({"text_input": "Hello", "max_tokens": 1})
        return self._request("POST", self.http_port, f"/v2/models/{ASKED_MODEL}/generate", timeout_s, body)

    def running(self) -> int | None:
        """Requests in the engine now, waiting ones included."""
        metrics = self._metrics()
        found = _RUNNING.search(metrics) if metrics else None
        return int(float(found[1])) if found else None

    def progress(self) -> str | None:
        """Text that changes whenever the engine computes a step. "" if it does not count its steps."""
        metrics = self._metrics()
        return None if metrics is None else "\n".join(_PROGRESS.findall(metrics))

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Keep an HTTP connection open, where the server still takes one.

        It has been answered on once: the kernel accepts connections that a busy server has not taken yet, and does not
        wait for.
        """
        connection = http.client.HTTPConnection(self.host, self.http_port, timeout=HOLD_S)
        with contextlib.closing(connection):
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("GET", "/v2/health/live")
                connection.getresponse().read()
            yield

    def _metrics(self) -> str | None:
        answer = self._request("GET", self.metrics_port, "/metrics", LOOK_TIMEOUT_S)
        return answer.text if answer is not None and answer.status == 200 else None

    def _request(self, method: str, port: int, path: str, timeout_s: float, body: str | None = None) -> Answer | None:
        connection = http.client.HTTPConnection(self.host, port, timeout=timeout_s)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            return Answer(response.status, response.read().decode("utf-8", "replace"))
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()


class FirstToken(threading.Thread):
    """Asks for one token as soon as the server says it is ready. `answer` is set when the thread ends."""

    def __init__(self, probe: Probe, timeout_s: float) -> None:
        super().__init__(name="first-token", daemon=True)
        self._probe, self._deadline = probe, time.monotonic() + timeout_s
        self._ended = threading.Event()
        self.answer: Answer | None = None

    def run(self) -> None:
        while (left := self._deadline - time.monotonic()) > 0 and self.answer is None:
            if self._probe.ready():
                self.answer = self._probe.one_token(left)
            if self._ended.wait(0.1):
                return

    def end(self) -> None:
        self._ended.set()


class HangWatch(threading.Thread):
    """Finds a group that is alive and does nothing.

    A check fails when a process of the group is suspended (SIGSTOP): of several instances of a model, the others still
    answer. Else, while the engine computes, its counter of steps moves and nothing is sent. When it stands still, one
    token is requested, and the check fails without an answer and without a step. `hung` is set after CHECKS_FAILED
    in a row, and `why` is the last reason. `doubted` hears at once of each failed check (the reason), and of the first
    good one after it (None). `timeout_s` is for the request for one token, CHECK_TIMEOUT_S if it is not given.
    """

    def __init__(
        self, probe: Probe, run: Run, doubted: Callable[[str | None], None], timeout_s: float | None = None
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
            looked = time.monotonic()
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
            wait_s = max(0.0, self._every_s - (time.monotonic() - looked))

    def end(self) -> None:
        self._ended.set()

    def _problem(self, before: str | None) -> str | None:
        """What a request for one token fails with; None if it is answered, or if the engine computes meanwhile."""
        asked = time.monotonic()
        answer = self._probe.one_token(self._timeout_s)
        if (answer is not None and answer.status == 200) or self._moved(before, self._probe.progress()):
            return None
        if answer is None:
            return f"no answer to a one-token request within {time.monotonic() - asked:.0f} s"
        return f"a one-token request fails: {answer.error}"

    @staticmethod
    def _moved(before: str | None, now: str | None) -> bool:
        return now is not None and now != before

    def _suspended(self) -> str | None:
        """Which process of the group is suspended, if one is."""
        member = next((member for member in members(self._run) if member.suspended), None)
        if member is None:
            return None
        return f"its process {member.pid} ({member.model or Path(member.command[0]).name}) is suspended (SIGSTOP)"


def reachable(host: str) -> str:
    """The address that reaches a server bound to `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
