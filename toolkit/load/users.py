"""The Locust users: each streams one answer after another, in a closed loop, over HTTP or gRPC.

They read through toolkit.client, which takes the time of each event when its bytes arrive; the usual ways
to read a stream in Locust wait for a buffer to fill and show a first token of 200 ms as 322 ms.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import count
from typing import Any

from gevent.event import AsyncResult
from locust import User, events, task
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import WorkerRunner

from toolkit.client import GenerateRequest, connect
from toolkit.config import Deployment
from toolkit.errors import ToolkitError
from toolkit.load import conductor
from toolkit.load.conductor import Conductor, Share
from toolkit.load.measure import ASKED_OF_THE_SERVER, measure, now
from toolkit.load.prompts import as_chat, load_prompts
from toolkit.load.target import require_ready
from toolkit.slo.metrics import Sample
from toolkit.slo.verdict import Outcome

MODEL = "tensorrt_llm_bls"
LARGEST_SPAWN_RATE = 100
"""Users started per second: Locust warns of more."""


class Workload:
    """What the users of this process share."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.prompts = as_chat(deployment.model.path, load_prompts(deployment.loadtest.prompts))

    def request(self, number: int) -> GenerateRequest:
        return GenerateRequest(
            prompt=self.prompts[number % len(self.prompts)],
            max_tokens=self.deployment.loadtest.max_tokens,
            model=MODEL,
            id=f"load-{number}",
            sampling=ASKED_OF_THE_SERVER,
        )

    def settings(self) -> dict[str, Any]:
        load = self.deployment.loadtest
        return {
            "model": MODEL,
            "loop": "closed",
            "warmup_requests": load.warmup_requests,
            "max_tokens": load.max_tokens,
            "timeout_s": load.timeout_s,
            "prompts": f"{len(self.prompts)} from {load.prompts or 'the built-in questions'}",
        }


SHARE = Share()
WORKLOAD: AsyncResult = AsyncResult()
"""Users wait for it: a worker process may be told to start them before Locust has told us that it is up."""

USERS = count()
"""Numbers the users of this process, who take the replicas in turn."""

events.test_start.add_listener(SHARE.forget)


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """Our options beside Locust's own. Those of a run are in the form of its web UI, too."""
    parser.add_argument(
        "--deployment",
        env_var="TOOLKIT_CONFIG",
        metavar="CONFIG",
        include_in_web_ui=False,
        help="The deployment's YAML",
    )
    parser.add_argument("--engine", metavar="NAME", include_in_web_ui=False, help="Replaces the YAML's engine")
    parser.add_argument("--protocol", choices=["http", "grpc"], help="Default: the YAML's loadtest.protocol")
    parser.add_argument("--requests", type=int, help="Default: the YAML's loadtest.requests")


@events.init.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    """Read the deployment and fill in the options that were not given."""
    options: Any = environment.parsed_options
    try:
        if not options.deployment:
            raise ToolkitError("no deployment given", hint="Use --deployment CONFIG or TOOLKIT_CONFIG=CONFIG.")
        deployment = Deployment.load(options.deployment, options.engine)
        load = deployment.loadtest
        options.protocol = options.protocol or load.protocol
        options.requests = options.requests or load.requests
        options.num_users = options.num_users or load.users
        options.spawn_rate = options.spawn_rate or min(options.num_users, LARGEST_SPAWN_RATE)
        StreamingUser.host = deployment.url(options.protocol)  # to be shown; the web UI would ask for it
        workload = Workload(deployment)
        if options.headless:
            require_ready(deployment, options.protocol)
    except ToolkitError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(Outcome.COULD_NOT_RUN.value)
    runner: Any = environment.runner
    runner.register_message(conductor.SHARE, SHARE.receive)
    if not isinstance(runner, WorkerRunner):
        Conductor(environment, deployment, workload.settings())
    WORKLOAD.set(workload)


class StreamingUser(User):
    """Asks, reads the stream to its end, and asks again, until the requests of this process are used up."""

    def on_start(self) -> None:
        self.workload: Workload = WORKLOAD.get()
        self.protocol = self.environment.parsed_options.protocol
        deployment = self.workload.deployment
        self.timeout_s = deployment.loadtest.timeout_s
        replicas = deployment.apart()
        # Users of several processes would all begin with the same one.
        number = next(USERS) + getattr(self.environment.runner, "worker_index", 0)
        target = replicas[number % len(replicas)]
        self.replica = target.replica
        self.client = connect(target.url(self.protocol), first_event_timeout_s=self.timeout_s)
        self.free_since = now()

    @task
    def ask(self) -> None:
        number = SHARE.next(self.environment.runner)
        if number is None:
            raise StopUser
        sample = measure(
            self.client,
            self.workload.request(number),
            due=self.free_since,
            protocol=self.protocol,
            deadline_s=self.timeout_s,
        )
        sample = replace(sample, replica=self.replica)
        self.free_since = sample.ended
        self._tell_locust(sample)
        self.environment.runner.send_message(conductor.SAMPLE, sample.as_dict())

    def on_stop(self) -> None:
        self.client.close()

    def _tell_locust(self, sample: Sample) -> None:
        """The request for Locust's statistics. TTFT and TPOT have lines of their own there, which do not count
        as requests in its totals."""
        self.environment.events.request.fire(
            request_type=self.protocol,
            name="end-to-end",
            response_time=sample.e2e_ms,
            response_length=sample.tokens_out,
            exception=None if sample.ok else ToolkitError(sample.error or ""),
            context={},
        )
        if sample.ok:
            for name, value in (("TTFT", sample.ttft_ms), ("TPOT", sample.tpot_ms)):
                if value is not None:
                    self.environment.stats.get(name, self.protocol).log(value, 0)
