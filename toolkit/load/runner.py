"""Runs a load test: Locust in its own process, because gevent must patch sockets before anything uses them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType

from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError
from toolkit.files import distribution
from toolkit.files.file_lock import file_lock
from toolkit.load import LAUNCHER
from toolkit.load.processes import advice, requested_tokens_per_s
from toolkit.load.requests import RequestSource, request_source
from toolkit.load.self_check import generator_error
from toolkit.load.target import protocol_of, require_ready, require_ready_at, takes_messages
from toolkit.processes import free_port, signals_handled
from toolkit.reports.loadtest import report
from toolkit.slo.generator_error import GeneratorError
from toolkit.slo.run import Run
from toolkit.slo.verdict import Verdict, could_not_run

USERS_FILE = Path(__file__).with_name("users.py")
LOCUST = (sys.executable, "-P", "-c", "import toolkit; from locust.main import main; main()")
"""Imports this `toolkit` first: Locust searches the working directory first, which may have another one."""
HANDED_ON = ("protocol", "users", "requests", "workload", "rate", "seed", "processes", "target", "model")
"""Options that are options of Locust's process by the same names."""
WAIT_FOR_WORKERS_S = 600
"""The longest wait for the processes on other machines."""
MOST_PROCESSES = max(8, 4 * (os.cpu_count() or 1))
"""Each process keeps a core busy. Thousands of processes stop the machine before the first request."""


@dataclass(frozen=True)
class Options:
    """The options of a load test. None means: as in the workload or the YAML's `loadtest`."""

    protocol: str | None = None
    users: int | None = None
    requests: int | None = None
    workload: str | None = None
    """A file, a name in loadtest/workloads, or `yaml`."""
    rate: float | None = None
    seed: int | None = None
    processes: int | None = None
    target: str | None = None
    """The URL of a server other than the deployment's."""
    model: str | None = None
    """The model to ask, by its name in Triton or in OpenAI's API."""
    stream: bool = True
    """Whether answers come token by token. Whole answers have an end-to-end time only."""
    web_ui: bool = False
    self_check: bool = False
    """Whether the generator measures its own error first, on a server whose times are known."""
    own: GeneratorError | None = None
    """The generator's error, if it is known already."""
    workers: int | None = None
    """Send nothing, and collect from so many processes on other machines, at the address `listen`."""
    listen: tuple[str, int] | None = None
    join: tuple[str, int] | None = None
    """Send a share of the load test that collects at this address."""

    def __post_init__(self) -> None:
        if (self.processes or 1) > MOST_PROCESSES:
            what = f"--processes: {self.processes} are more than this machine can run"
            raise ToolkitError(what, hint=f"Use at most {MOST_PROCESSES}: each process keeps a core busy.")


@dataclass(frozen=True)
class Attempt:
    """A load test that was tried."""

    verdict: Verdict
    run: Run | None = None
    """None where not one request could be sent."""
    stopped: bool = False
    """Whether the user asked to stop, even too late for this test: whoever runs several tests then ends."""


def run(deployment: Deployment, options: Options | None = None) -> Verdict:
    """Load-test the running deployment.

    Progress goes to stderr, the report to `deployment.report_dir`. With `web_ui`, Locust's page starts and stops tests
    until Ctrl-C, and the verdict is that of the last test. Ctrl-C and SIGTERM stop the test, and the report covers what
    was measured by then. During the self-check they end it at once. A server that is down, or bad prompts, give the
    verdict COULD NOT RUN with the reason, not an exception.
    """
    return attempt(deployment, options or Options()).verdict


def attempt(deployment: Deployment, options: Options) -> Attempt:
    """As `run`, with the run, and whether the user asked to stop."""
    try:
        distribution.require("loadtest", "locust", "grpclib")
        protocol = protocol_of(deployment, options.protocol, options.target)
        source = source_for(deployment, options)
        for note in source.notes:
            print(f"{options.workload}: {note}", file=sys.stderr, flush=True)
        if options.target:
            require_ready_at(options.target, options.model)
        elif not options.web_ui:
            require_ready(deployment, protocol, options.model)
        with file_lock(deployment.output / "loadtest.lock", "is being load-tested by"):
            return _test(deployment, options, source)
    except ToolkitError as error:
        return Attempt(could_not_run(deployment.slo, str(error)))


def _test(deployment: Deployment, options: Options, source: RequestSource) -> Attempt:
    """As `attempt`. Raises ToolkitError when the generator cannot measure its own error."""
    own = options.own or (check_itself(deployment, options, source) if options.self_check else None)
    command = locust_command(deployment, options)
    if own is not None:
        command += ["--generator-error", own.as_json()]
    started = time.time()
    code, stopped = _run_locust(command)
    with contextlib.suppress(ToolkitError):
        finished, verdict = report.read_judged(deployment)
        if finished.started >= started:
            return Attempt(verdict, finished, stopped)
    reason = (
        "no test was started" if options.web_ui else f"the load generator ended with exit code {code} and no report"
    )
    return Attempt(could_not_run(deployment.slo, reason), stopped=stopped)


def source_for(deployment: Deployment, options: Options) -> RequestSource:
    """The requests that these options send. Raises ToolkitError."""
    arguments = (options.workload, options.rate, options.requests, options.users, options.seed, options.model)
    return request_source(deployment, *arguments, as_messages=takes_messages(options.target))


def check_itself(deployment: Deployment, options: Options, source: RequestSource) -> GeneratorError:
    """Measure the generator's own error under this load. Raises ToolkitError if that fails or is stopped."""
    # OpenAI's API is read by the same connections as Triton's HTTP, so that error holds for both.
    distribution.require("loadtest", "locust", "grpclib")
    protocol = "grpc" if protocol_of(deployment, options.protocol, options.target) == "grpc" else "http"
    print("self-check: the same load on a server whose times are known", file=sys.stderr, flush=True)
    try:
        with signals_handled(signal.default_int_handler, signal.SIGTERM):
            own = generator_error(source, protocol, partial(_send, deployment, options))
    except KeyboardInterrupt:
        raise ToolkitError("stopped during the self-check, before the first request to the server") from None
    if text := advice(own, requested_tokens_per_s(deployment, source), options.processes or 1):
        print(f"self-check: {text}", file=sys.stderr, flush=True)
    return own


def _send(deployment: Deployment, options: Options, url: str, requests: int, folder: Path) -> None:
    """Send a part of the test to another server, for the self-check. Raises KeyboardInterrupt if it was stopped."""
    there = replace(options, target=url, protocol=None, requests=requests, model=None)
    _, stopped = _run_locust([*locust_command(deployment, there), "--samples", str(folder)], quiet=True)
    if stopped:
        raise KeyboardInterrupt


def join(deployment: Deployment, options: Options) -> int:
    """Send a share of a load test that another machine began, or will soon. Returns Locust's exit code.

    Nothing is judged or written here. Raises ToolkitError for options that cannot be carried out.
    """
    distribution.require("loadtest", "locust", "grpclib")
    source_for(deployment, options)
    return _run_locust(locust_command(deployment, options))[0]


def locust_command(deployment: Deployment, options: Options) -> list[str]:
    """The command line that starts Locust for these options."""
    options_of_locust: dict[str, object] = {
        "--locustfile": USERS_FILE,
        "--deployment": deployment.file,
        "--engine": deployment.engine,
        **{f"--{name}": getattr(options, name) for name in HANDED_ON},
    }
    mode = ["--web-host", "127.0.0.1"] if options.web_ui else ["--headless", "--only-summary", "--skip-log-setup"]
    if options.join:
        host, options_of_locust["--master-port"] = options.join
        options_of_locust |= {"--master-host": host}
        mode.append("--worker")
    elif options.workers and options.listen:
        host, options_of_locust["--master-bind-port"] = options.listen
        options_of_locust |= {"--master-bind-host": host, "--expect-workers": options.workers}
        options_of_locust |= {"--expect-workers-max-wait": WAIT_FOR_WORKERS_S}
        mode.append("--master")
    elif (options.processes or 1) > 1:  # another test on this machine may have Locust's usual port
        port = free_port()
        options_of_locust |= {"--master-bind-host": "127.0.0.1", "--master-bind-port": port, "--master-port": port}
    arguments = [text for name, value in options_of_locust.items() if value is not None for text in (name, str(value))]
    return [*LOCUST, *arguments, *([] if options.stream else ["--no-stream"]), *mode]


def _run_locust(command: list[str], quiet: bool = False) -> tuple[int, bool]:
    """Run Locust to its end. Returns its exit code, and whether the user asked to stop. Drops Locust's stdout."""
    # In a session of its own, so that Ctrl-C reaches it once, from us, and it can still write the report.
    with (
        subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL if quiet else None,
            start_new_session=True,
            env={**os.environ, LAUNCHER: str(os.getpid())},
        ) as process,
        _forward_to(process) as asked,
    ):
        return process.wait(), bool(asked)


@contextlib.contextmanager
def _forward_to(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Hand Ctrl-C and SIGTERM on as SIGTERM, and from the second time on as SIGKILL to its workers, too. Gives the
    list in which they are noted."""
    asked: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL) if asked else process.terminate()
        asked.append(number)

    with signals_handled(stop, signal.SIGINT, signal.SIGTERM):
        yield asked
