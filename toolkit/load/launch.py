"""Runs a load test: Locust in a process of its own, because gevent must patch sockets before anything uses them."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType

from toolkit.config import Deployment
from toolkit.errors import ToolkitError
from toolkit.load.scale import advice, asked_tokens_per_s
from toolkit.load.self_check import own_error
from toolkit.load.target import require_ready, require_ready_at
from toolkit.load.work import Work, work_of
from toolkit.slo import report
from toolkit.slo.own_error import OwnError
from toolkit.slo.verdict import Verdict, could_not_run

USERS_FILE = Path(__file__).with_name("users.py")
HANDED_ON = ("protocol", "users", "requests", "workload", "rate", "seed", "processes", "target", "model")
"""Options that the users' process has by the same names."""


@dataclass(frozen=True)
class Options:
    """What a load test is told beside the YAML; what is None is as the workload or the YAML's `loadtest` says."""

    protocol: str | None = None
    users: int | None = None
    requests: int | None = None
    workload: str | None = None
    """A file, the name of one in loadtest/workloads, or `yaml`."""
    rate: float | None = None
    seed: int | None = None
    processes: int | None = None
    target: str | None = None
    """The URL of another server than the deployment's."""
    model: str | None = None
    """The model to ask, as a server with OpenAI's API calls it."""
    web_ui: bool = False
    self_check: bool = False
    """Whether the generator measures its own error first, on a server whose times are known."""
    own: OwnError | None = None
    """That error, where it is known already."""


def run(deployment: Deployment, options: Options | None = None) -> Verdict:
    """Load-test the running deployment.

    Progress goes to stderr, the report to `deployment.report_dir`. With `web_ui` Locust's own page starts and
    stops the test instead, as often as one likes, until Ctrl-C; the verdict is then that of the last one.
    Ctrl-C and SIGTERM stop the test; the report of what was measured by then is still written and says so.
    Never raises for a server that is down or bad prompts: the verdict is COULD NOT RUN and says why.
    """
    options = options or Options()
    protocol = options.protocol or deployment.loadtest.protocol
    try:
        work = work_of(deployment, options.workload, options.rate, options.requests, options.users, options.seed)
        if options.target:
            require_ready_at(options.target)
        elif not options.web_ui:
            require_ready(deployment, protocol)
        own = options.own or (check_itself(deployment, options, work) if options.self_check else None)
    except ToolkitError as error:
        return could_not_run(deployment.slo, str(error))
    command = locust_command(deployment, options)
    if own is not None:
        command += ["--own-error", json.dumps(own.as_dict())]
    started = time.time()
    code = _run_locust(command)
    with contextlib.suppress(ToolkitError):
        finished = report.read(deployment)
        if finished.started >= started:
            return report.verdict_of(deployment, finished)
    reason = (
        "no test was started" if options.web_ui else f"the load generator ended with exit code {code} and no report"
    )
    return could_not_run(deployment.slo, reason)


def check_itself(deployment: Deployment, options: Options, work: Work) -> OwnError:
    """The generator's own error with this load. Raises ToolkitError when it cannot be measured."""
    protocol = options.protocol or deployment.loadtest.protocol
    print("self-check: the same load on a server whose times are known", file=sys.stderr, flush=True)
    own = own_error(work, protocol, partial(_send, deployment, options))
    if text := advice(own, asked_tokens_per_s(deployment, work), options.processes or 1):
        print(f"self-check: {text}", file=sys.stderr, flush=True)
    return own


def _send(deployment: Deployment, options: Options, url: str, requests: int, folder: Path) -> None:
    """A part of the test against another server, for the self-check."""
    command = locust_command(deployment, replace(options, target=url, requests=requests, model=None))
    _run_locust([*command, "--samples", str(folder)], quiet=True)


def locust_command(deployment: Deployment, options: Options) -> list[str]:
    wanted = {
        "--locustfile": USERS_FILE,
        "--deployment": deployment.file,
        "--engine": deployment.engine,
        **{f"--{name}": getattr(options, name) for name in HANDED_ON},
    }
    mode = ["--web-host", "127.0.0.1"] if options.web_ui else ["--headless", "--only-summary", "--skip-log-setup"]
    if (options.processes or 1) > 1:  # another test on this machine may have Locust's usual port
        port = _free_port()
        wanted |= {"--master-bind-host": "127.0.0.1", "--master-bind-port": port, "--master-port": port}
    given = [text for name, value in wanted.items() if value is not None for text in (name, str(value))]
    return [sys.executable, "-m", "locust", *given, *mode]


def _run_locust(command: list[str], quiet: bool = False) -> int:
    """Run Locust to its end and return its exit code. Its tables on stdout are not ours, so they are dropped."""
    # In a session of its own, so that Ctrl-C reaches it once, from us, and it can still write the report.
    with (
        subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL if quiet else None,
            start_new_session=True,
        ) as process,
        _forward_to(process),
    ):
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


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])
