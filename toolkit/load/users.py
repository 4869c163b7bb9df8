"""The Locust users: they read answers over HTTP or gRPC, streamed or whole, in a closed loop or an open one.

They read through toolkit.client, which takes the time of each event when its bytes arrive; the usual ways
to read a stream in Locust wait for a buffer to fill and show a first token of 200 ms as 322 ms.
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
from toolkit.load.coordinator import Coordinator, RequestQuota
from toolkit.load.dispatch import dispatch
from toolkit.load.exchange import Exchange, hear
from toolkit.load.options import PROTOCOLS, Chosen
from toolkit.load.private_locust import ready_workers
from toolkit.load.reporting import LoopLag, Reporter
from toolkit.load.requests import Asked, Work
from toolkit.load.target import can_stream, require_ready
from toolkit.slo.metrics import Sample
from toolkit.slo.verdict import Outcome

LARGEST_SPAWN_RATE = 100
"""Users started per second: Locust warns of more."""

QUOTA = RequestQuota()
CHOSEN: AsyncResult = AsyncResult()
"""What is to be sent. Users wait for it: a worker may be told to start them before Locust has told us that it is up."""

USERS = count()
"""Numbers the users of this process, who take the replicas in turn."""

REPORTER = Reporter()
LOOP_LAG = LoopLag()

events.test_start.add_listener(QUOTA.forget)
events.test_start.add_listener(LOOP_LAG.start)
events.test_stop.add_listener(LOOP_LAG.stop)


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """Our options beside Locust's own. Those of a run are in the form of its web UI, too, which asks here for them each
    time: once it is known what is sent, the form says so, and offers the workloads that there are.
    """
    chosen: Chosen | None = CHOSEN.get() if CHOSEN.ready() else None
    protocol, requests = (chosen.options.protocol, chosen.options.requests) if chosen else (None, None)
    protocols = chosen.protocols if chosen else PROTOCOLS
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
        choices=chosen and chosen.workloads,
        default=chosen and chosen.workload,
        help="A file, or a name in loadtest/workloads, or yaml: the deployment's own",
    )
    parser.add_argument("--rate", type=float, help="Requests/s of an open loop, instead of the workload's")
    parser.add_argument("--requests", type=int, default=requests, help="Default: the workload's or loadtest.requests")
    parser.add_argument("--seed", type=int, help="Another seed than the workload's")
    parser.add_argument("--protocol", choices=protocols, default=protocol, help="Default: loadtest.protocol")
    parser.add_argument("--target", metavar="URL", include_in_web_ui=False, help="Ask this server instead")
    parser.add_argument("--model", metavar="NAME", include_in_web_ui=False, help="The model to ask")
    parser.add_argument("--no-stream", action="store_true", include_in_web_ui=False, help="Ask for whole answers")
    parser.add_argument("--samples", metavar="DIR", include_in_web_ui=False, help="Leave samples there, and no report")
    parser.add_argument("--own-error", metavar="JSON", include_in_web_ui=False, help="The load generator's own error")


@events.init.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    """Read the deployment and fill in the options that were not given."""
    options: Any = environment.parsed_options
    try:
        if not options.deployment:
            raise ToolkitError("no deployment given", hint="Use --deployment CONFIG or TOOLKIT_CONFIG=CONFIG.")
        deployment = load_deployment(options.deployment, options.engine)
        options.no_stream |= not can_stream(deployment, options.target)
        chosen = Chosen(deployment, options)
        options.num_users = users_of(environment, chosen.work)
        options.spawn_rate = options.spawn_rate or min(options.num_users, LARGEST_SPAWN_RATE)
        AskingUser.host = options.target or deployment.url(options.protocol)  # to be shown
        if options.headless and not options.target:
            require_ready(deployment, options.protocol)
    except ToolkitError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(Outcome.COULD_NOT_RUN.value)
    runner: Any = environment.runner
    runner.register_message(messages.QUOTA, QUOTA.receive)
    if isinstance(runner, WorkerRunner):
        environment.user_classes = [ClosedLoop, OpenLoop]  # the master says which
    else:
        conducting = Coordinator(environment, chosen)
        if environment.web_ui is not None:
            web.extend(environment, conducting, partial(users_of, environment))
    CHOSEN.set(chosen)


def users_of(environment: Environment, work: Work) -> int:
    """How many users of Locust's a run of this work has, whose kind is made the only one."""
    environment.user_classes = [ClosedLoop if work.users else OpenLoop]
    # Of an open loop one user a process sends everything.
    return work.users or _processes(environment)


def _processes(environment: Environment) -> int:
    """How many processes there are, or will be, of which each sends its share of an open loop."""
    options: Any = environment.parsed_options
    if ready := ready_workers(environment.runner):
        return len(ready)
    wanted = options.processes or (options.expect_workers if options.master else 1)
    return os.cpu_count() or 1 if wanted == -1 else max(1, wanted)


class AskingUser(User):
    """Asks, reads the answer to its end, and ships the sample. How often and when, its kinds say."""

    abstract = True

    def on_start(self) -> None:
        chosen: Chosen = CHOSEN.get()
        deployment, self.work = chosen.deployment, chosen.work
        options = self.environment.parsed_options
        self.protocol, self.timeout_s = options.protocol, deployment.loadtest.timeout_s
        replicas = deployment.per_replica()
        urls = [options.target] if options.target else [replica.url(self.protocol) for replica in replicas]
        self.count = chosen.count
        self.streamed = not options.no_stream
        self.clients = [connect(url, first_event_timeout_s=self.timeout_s) for url in urls]
        # Users of several processes would all begin with the same one.
        self.number = next(USERS) + getattr(self.environment.runner, "worker_index", 0)

    def converse(self, asked: Asked, due: float, replica: int) -> float:
        """Ask, and go on with the conversation where there is one; returns when the last answer ended."""
        replica %= len(self.clients)
        following: Asked | None = asked
        while following is not None:
            request = following.request
            heard = hear(
                self.clients[replica],
                request,
                due=due,
                protocol=self.protocol,
                deadline_s=self.timeout_s,
                streamed=self.streamed,
                count=self.count,
            )
            REPORTER.report(self.environment, heard, replica if len(self.clients) > 1 else None)
            if self.work.turns == 1:
                break
            if not heard.sample.ok:
                self._give_up(asked, heard.sample)
                break
            following = self.work.after(following, heard.text)
            due = heard.ended + self.work.think_s
            if following is not None:
                gevent.sleep(max(0.0, due - now()))
        return heard.ended

    def _give_up(self, asked: Asked, failed: Sample) -> None:
        """Without an answer a conversation cannot go on: the turns that it would have had count as misses."""
        first, at = (asked.sent.number if asked.sent else 0), int(failed.id.removeprefix("load-"))
        then, error = failed.ended, "an earlier turn of it failed"
        for number in range(at + 1, first + self.work.turns):
            request = replace(asked.request, id=f"load-{number}")
            REPORTER.report(self.environment, Exchange(request, self.protocol, then, then, then, (), True, error), None)

    def on_stop(self) -> None:
        REPORTER.report_all()
        for client in self.clients:
            client.close()


class ClosedLoop(AskingUser):
    """Asks again when its last answer has ended, until the requests of this process are used up."""

    @task
    def ask(self) -> None:
        """All in one task: between two of them Locust lets every other user go first."""
        free_since = now()
        while (number := QUOTA.next(self.environment.runner)) is not None:
            free_since = self.converse(self.work.request(number), free_since, self.number)
        raise StopUser


class OpenLoop(AskingUser):
    """Sends all requests of this process, each when it is due, whatever became of the others."""

    @task
    def send(self) -> None:
        numbers, begin = QUOTA.all(self.environment.runner)
        dispatch(numbers, self.work, begin, self._converse)
        raise StopUser

    def _converse(self, number: int, asked: Asked, due: float) -> None:
        self.converse(asked, due, number // self.work.turns)
