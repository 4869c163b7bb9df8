"""The Locust users: they send requests over HTTP or gRPC, in a closed or an open loop, and read the answers.

They use toolkit.client, which notes the time of each event when its bytes arrive. The usual ways to read a stream in
Locust wait until a buffer is full, and show a first token of 200 ms as 322 ms.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import gevent
from gevent.event import AsyncResult
from locust import User, events, task
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import WorkerRunner

from toolkit.client import connect
from toolkit.clock import now
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.load import messages, web
from toolkit.load.clocks import tell
from toolkit.load.coordinator import Coordinator, RequestQuota
from toolkit.load.dispatch import dispatch
from toolkit.load.exchange import Exchange, exchange
from toolkit.load.options import PROTOCOLS, RunOptions
from toolkit.load.private_locust import ready_workers
from toolkit.load.reporting import LoopLag, Reporter
from toolkit.load.requests import PlannedRequest, RequestSource
from toolkit.load.target import can_stream, require_ready
from toolkit.slo.sample import Sample
from toolkit.slo.verdict import Outcome

LARGEST_SPAWN_RATE = 100
"""Most users started per second. Locust warns above that."""

QUOTA = RequestQuota()
RUN_OPTIONS: AsyncResult = AsyncResult()
"""What a run sends. Users wait for it: Locust may start users in a worker before it calls `prepare`."""

USERS = count()
"""Numbers the users of this process. Users take the replicas in turn."""

REPORTER = Reporter()
LOOP_LAG = LoopLag()

events.test_start.add_listener(QUOTA.forget)
events.test_start.add_listener(LOOP_LAG.start)
events.test_stop.add_listener(LOOP_LAG.stop)


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """Add our options to Locust's. Locust calls this again for each form of its web UI.

    After `prepare`, the form shows what is sent and offers the workloads that exist.
    """
    run_options: RunOptions | None = RUN_OPTIONS.get() if RUN_OPTIONS.ready() else None
    protocol, requests = (run_options.options.protocol, run_options.options.requests) if run_options else (None, None)
    protocols = run_options.protocols if run_options else PROTOCOLS
    parser.add_argument(
        "--deployment",
        env_var="TOOLKIT_CONFIG",
        metavar="CONFIG",
        include_in_web_ui=False,
        help="The deployment's YAML",
    )
    parser.add_argument("--engine", metavar="NAME", include_in_web_ui=False, help="Replaces the YAML's engine")
    parser.add_argument(
        "--workload",
        choices=run_options and run_options.workloads,
        default=run_options and run_options.workload,
        help="A file, a name in loadtest/workloads, or yaml for the deployment's own",
    )
    parser.add_argument("--rate", type=float, help="Requests/s of an open loop, instead of the workload's")
    parser.add_argument("--requests", type=int, default=requests, help="Default: the workload's or loadtest.requests")
    parser.add_argument("--seed", type=int, help="Default: the workload's")
    parser.add_argument("--protocol", choices=protocols, default=protocol, help="Default: loadtest.protocol")
    parser.add_argument("--target", metavar="URL", include_in_web_ui=False, help="Ask this server instead")
    parser.add_argument("--model", metavar="NAME", include_in_web_ui=False, help="The model to ask")
    parser.add_argument("--no-stream", action="store_true", include_in_web_ui=False, help="Ask for whole answers")
    parser.add_argument("--samples", metavar="DIR", include_in_web_ui=False, help="Leave samples there, and no report")
    parser.add_argument(
        "--generator-error", metavar="JSON", include_in_web_ui=False, help="The load generator's own error"
    )


@events.init.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    """Read the deployment and fill in the options that were not given."""
    options: Any = environment.parsed_options
    try:
        if not options.deployment:
            raise ToolkitError("the deployment is missing", hint="Use --deployment CONFIG or TOOLKIT_CONFIG=CONFIG.")
        deployment = load_deployment(options.deployment, options.engine)
        options.no_stream |= not can_stream(deployment, options.target)
        run_options = RunOptions(deployment, options)
        options.num_users = users_of(environment, run_options.source)
        options.spawn_rate = options.spawn_rate or min(options.num_users, LARGEST_SPAWN_RATE)
        AskingUser.host = options.target or deployment.url(options.protocol)  # for Locust's page
        if options.headless and not options.target:
            require_ready(deployment, options.protocol)
    except ToolkitError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(Outcome.COULD_NOT_RUN.value)
    runner: Any = environment.runner
    runner.register_message(messages.QUOTA, QUOTA.receive)
    if isinstance(runner, WorkerRunner):
        runner.register_message(messages.CLOCK_WANTED, tell)
        environment.user_classes = [ClosedLoop, OpenLoop]  # the master chooses
    else:
        coordinator = Coordinator(environment, run_options)
        if environment.web_ui is not None:
            web.extend(environment, coordinator, partial(users_of, environment))
    RUN_OPTIONS.set(run_options)


def users_of(environment: Environment, source: RequestSource) -> int:
    """How many Locust users a run has. Also sets their class: closed or open loop."""
    environment.user_classes = [ClosedLoop if source.users else OpenLoop]
    # In an open loop, one user per process sends everything.
    return source.users or _processes(environment)


def _processes(environment: Environment) -> int:
    """How many processes there are, or will be. Each sends its quota of an open loop."""
    options: Any = environment.parsed_options
    if ready := ready_workers(environment.runner):
        return len(ready)
    processes = options.processes or (options.expect_workers if options.master else 1)
    return os.cpu_count() or 1 if processes == -1 else max(1, processes)


class AskingUser(User):
    """Sends requests, reads the answers, and reports the samples. Subclasses decide how often and when."""

    abstract = True

    def on_start(self) -> None:
        run_options: RunOptions = RUN_OPTIONS.get()
        deployment, self.source = run_options.deployment, run_options.source
        options = self.environment.parsed_options
        self.protocol, self.timeout_s = options.protocol, deployment.loadtest.timeout_s
        replicas = deployment.per_replica()
        urls = [options.target] if options.target else [replica.url(self.protocol) for replica in replicas]
        self.count = run_options.count
        self.streamed = not options.no_stream
        self.clients = [connect(url, first_event_timeout_s=self.timeout_s) for url in urls]
        # Without the index, the first users of all processes would take the same replica.
        self.number = next(USERS) + getattr(self.environment.runner, "worker_index", 0)

    def converse(self, planned: PlannedRequest, due: float, replica: int) -> float:
        """Send a request, and the later turns of its conversation. Returns when the last answer ended."""
        replica %= len(self.clients)
        following: PlannedRequest | None = planned
        while following is not None:
            request = following.request
            exchanged = exchange(
                self.clients[replica],
                request,
                due=due,
                protocol=self.protocol,
                deadline_s=self.timeout_s,
                streamed=self.streamed,
                count=self.count,
            )
            REPORTER.report(self.environment, exchanged, replica if len(self.clients) > 1 else None)
            if self.source.turns == 1:
                break
            if not exchanged.sample.ok:
                self._give_up(planned, exchanged.sample)
                break
            following = self.source.after(following, exchanged.text)
            due = exchanged.ended + self.source.think_s
            if following is not None:
                gevent.sleep(max(0.0, due - now()))
        return exchanged.ended

    def _give_up(self, planned: PlannedRequest, failed: Sample) -> None:
        """Report the turns after a failed one as failed: without its answer the conversation cannot go on."""
        first, at = (planned.sent.number if planned.sent else 0), int(failed.id.removeprefix("load-"))
        then, error = failed.ended, "an earlier turn of the conversation failed"
        for number in range(at + 1, first + self.source.turns):
            request = replace(planned.request, id=f"load-{number}")
            REPORTER.report(self.environment, Exchange(request, self.protocol, then, then, then, (), True, error), None)

    def on_stop(self) -> None:
        REPORTER.report_all()
        for client in self.clients:
            client.close()


class ClosedLoop(AskingUser):
    """Sends the next request when its last answer has ended, until the quota of this process is used up."""

    @task
    def ask(self) -> None:
        """Send all requests in one task: between two tasks, Locust lets every other user go first."""
        free_since = now()
        while (number := QUOTA.next(self.environment.runner)) is not None:
            free_since = self.converse(self.source.request(number), free_since, self.number)
        raise StopUser


class OpenLoop(AskingUser):
    """Sends each request of this process when it is due, without waiting for earlier answers."""

    @task
    def send(self) -> None:
        numbers, begin = QUOTA.all(self.environment.runner)
        dispatch(numbers, self.source, begin, self._converse)
        raise StopUser

    def _converse(self, number: int, planned: PlannedRequest, due: float) -> None:
        self.converse(planned, due, number // self.source.turns)
