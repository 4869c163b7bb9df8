"""Runs a load test: Locust in a process of its own, because gevent must patch sockets before anything uses them."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from toolkit.config import Deployment
from toolkit.errors import ToolkitError
from toolkit.load.prompts import load_prompts
from toolkit.load.target import require_ready
from toolkit.slo import report
from toolkit.slo.verdict import Verdict, could_not_run

USERS_FILE = Path(__file__).with_name("users.py")


def run(
    deployment: Deployment,
    protocol: str | None = None,
    users: int | None = None,
    requests: int | None = None,
    web_ui: bool = False,
) -> Verdict:
    """Load-test the running deployment; what is not given is as the YAML's `loadtest` says.

    Progress goes to stderr, the report to `deployment.report_dir`. With `web_ui` Locust's own page starts and
    stops the test instead, as often as one likes, until Ctrl-C; the verdict is then that of the last one.
    Ctrl-C and SIGTERM stop the test; the report of what was measured by then is still written and says so.
    Never raises for a server that is down or bad prompts: the verdict is COULD NOT RUN and says why.
    """
    load = deployment.loadtest
    protocol = protocol or load.protocol
    try:
        load_prompts(load.prompts)
        if not web_ui:
            require_ready(deployment, protocol)
    except ToolkitError as error:
        return could_not_run(deployment.slo, str(error))
    command = locust_command(deployment, protocol, users or load.users, requests or load.requests, web_ui)
    started = time.time()
    code = _run_locust(command)
    with contextlib.suppress(ToolkitError):
        finished = report.read(deployment)
        if finished.started >= started:
            return report.verdict_of(deployment, finished)
    reason = "no test was started" if web_ui else f"the load generator ended with exit code {code} and no report"
    return could_not_run(deployment.slo, reason)


def locust_command(deployment: Deployment, protocol: str, users: int, requests: int, web_ui: bool) -> list[str]:
    wanted = {
        "--locustfile": USERS_FILE,
        "--deployment": deployment.file,
        "--engine": deployment.engine,
        "--protocol": protocol,
        "--requests": requests,
        "--users": users,
    }
    mode = ["--web-host", "127.0.0.1"] if web_ui else ["--headless", "--only-summary", "--skip-log-setup"]
    options = [text for name, value in wanted.items() for text in (name, str(value))]
    return [sys.executable, "-m", "locust", *options, *mode]


def _run_locust(command: list[str]) -> int:
    """Run Locust to its end and return its exit code. Its tables on stdout are not ours, so they are dropped."""
    # In a session of its own, so that Ctrl-C reaches it once, from us, and it can still write the report.
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as process, _forward_to(process):
        return process.wait()


@contextlib.contextmanager
def _forward_to(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Hand Ctrl-C and SIGTERM on as SIGTERM, and as SIGKILL from the second time on."""
    asked = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal asked
        process.kill() if asked else process.terminate()
        asked = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
