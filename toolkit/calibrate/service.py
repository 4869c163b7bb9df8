"""Measures how much longer the steps of a rehearsal take in service, by the number of steps in flight.

A few users ask the real server with all its ranks, while its engine logs its steps. There Triton and its Python models
use the same cores, and so do stages that compute at the same time.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from toolkit.calibrate.grid import Context, StepPlan
from toolkit.client import GenerateRequest, connect
from toolkit.config.deployment import Deployment
from toolkit.engine.steplog import VARIABLE
from toolkit.errors import ToolkitError
from toolkit.serve import serve, stop
from toolkit.steptimes.measured import MeasuredSteps
from toolkit.steptimes.step import StepWork
from toolkit.workload.prompts import QUESTIONS, as_chat

ANSWER = (8, 32)
"""Tokens of an answer: at least, and at most."""
SELDOM = 0.02
"""Numbers in flight that have less than this part of all step time are ignored."""
DEADLINE_S = 120.0


class Served(NamedTuple):
    """A step of the engine in service, in seconds of one clock."""

    begin: float
    end: float
    """When its tokens were chosen."""
    work: StepWork


def time_service(
    deployment: Deployment, alone: MeasuredSteps, budget_s: float, tell: Callable[[int, int], None]
) -> dict[str, Any]:
    """The fields `crowding` and `outside_seconds` of a calibration file; `alone` has the step times without Triton.

    `tell` is called with (numbers of users measured, numbers in all). Raises ToolkitError when the deployment cannot
    be served, or fails.
    """
    levels, users = users_of(deployment), _Users(deployment)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "steps.jsonl"
        with _serving(deployment, log):
            for done, count in enumerate(levels):
                tell(done, len(levels))
                users.ask(count, budget_s / len(levels))
        by_number = slowdowns(read_steps(log), alone)
    return {
        "crowding": [{"in_flight": number, "slowdown": slowdown} for number, slowdown in by_number.items()],
        "outside_seconds": statistics.median(users.outside),
    }


def users_of(deployment: Deployment) -> list[int]:
    """Numbers of users that ask at once: 1, 2, 4 ... up to four for each stage, within the engine's limit."""
    most = min(4 * deployment.parallel.pp, deployment.limits.max_sequences)
    return [2**n for n in range(most.bit_length())]


def read_steps(log: Path) -> list[Served]:
    """The steps that an engine has logged (`toolkit.engine.steplog`)."""
    steps = []
    for line in log.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        plan = StepPlan(tuple(Context(*context) for context in entry["contexts"]), tuple(entry["generations"]))
        steps.append(Served(entry["begin"] * 1e-9, entry["end"] * 1e-9, plan.work))
    return steps


def slowdowns(steps: Sequence[Served], alone: MeasuredSteps) -> dict[int, float]:
    """How many times longer steps take than `alone` says, by the number of steps in flight.

    Each step has spent some seconds with each number in flight. The result is the pace at each number that best
    explains the step times (least squares of relative errors). Numbers that hardly occurred are left out.
    """
    import numpy as np
    from scipy.optimize import nnls

    shares = list(_shares(steps, alone))
    numbers = sorted({number for share in shares for number in share})
    table = np.array([[share.get(number, 0.0) for number in numbers] for share in shares])
    seldom = table.sum(axis=0) < SELDOM * table.sum()
    table = table[table[:, seldom].sum(axis=1) == 0][:, ~seldom]
    paces, _ = nnls(table, np.ones(len(table)))
    often = [number for number, rare in zip(numbers, seldom, strict=True) if not rare]
    return {number: float(1 / pace) for number, pace in zip(often, paces, strict=True) if pace > 0}


def _shares(steps: Sequence[Served], alone: MeasuredSteps) -> Iterator[dict[int, float]]:
    """For each step: its seconds with each number in flight, divided by the seconds that it would take alone."""
    for step in steps:
        others = [other for other in steps if other.begin < step.end and step.begin < other.end]
        # Without sharing, the steps before it would only make it wait for the slowest stage.
        ahead = sum(other.begin <= step.begin for other in others)
        unshared = max(alone.step_seconds(step.work), ahead * max(alone.stage_seconds(step.work)))
        edges = {max(other.begin, step.begin) for other in others} | {min(other.end, step.end) for other in others}
        share: dict[int, float] = {}
        for begin, end in pairwise(sorted(edges)):
            number = sum(other.begin <= begin and end <= other.end for other in others)
            share[number] = share.get(number, 0.0) + (end - begin) / unshared
        yield share


class _Users:
    """Users who ask one question after the other."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.prompts = _prompts(deployment)
        self.outside: list[float] = []
        self._random = random.Random(0)
        self._failure: ToolkitError | None = None

    def ask(self, users: int, seconds: float) -> None:
        """Let this many users ask for this long."""
        until = time.monotonic() + seconds
        threads = [threading.Thread(target=self._be_user, args=(until,)) for _ in range(users)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._failure:
            raise self._failure

    def _be_user(self, until: float) -> None:
        try:
            with connect(self.deployment.url("http")) as client:
                while not self._failure:
                    request = GenerateRequest(
                        self._random.choice(self.prompts),
                        self._random.randint(*ANSWER),
                        sampling={"return_perf_metrics": True},
                    )
                    sent = time.perf_counter()
                    if self.deployment.serving.decoupled:
                        events = list(client.generate_stream(request, DEADLINE_S))
                        seen, inside = events[0].received, _inside(events[-1].outputs, "first_token")
                    else:
                        answer = client.generate(request, DEADLINE_S)
                        seen, inside = answer.received, _inside(answer.outputs, "last_token")
                    self.outside.append(seen - sent - inside)
                    if time.monotonic() >= until:
                        return
        except ToolkitError as error:
            self._failure = error


def _prompts(deployment: Deployment) -> tuple[str, ...]:
    """Questions that fit the engine with the longest answer. For a very small engine, one word."""
    from tokenizers import Tokenizer

    # The server's own tokenizer, which is known to be whole.
    tokenizer = Tokenizer.from_file(str(deployment.repository_dir / "preprocessing/1/tokenizer/tokenizer.json"))
    limits = deployment.limits
    most = min(limits.max_num_tokens, limits.max_seq_len - ANSWER[1])
    prompts = as_chat(deployment.model.path, QUESTIONS, deployment.model.chat_template)
    return tuple(prompt for prompt in prompts if len(tokenizer.encode(prompt).ids) <= most) or ("a",)


def _inside(outputs: dict[str, Any], token: str) -> float:
    """Seconds from the arrival of the request at the engine until its "first_token" or "last_token"."""
    return float(outputs[f"{token}_time_ns"] - outputs["arrival_time_ns"]) * 1e-9


@contextlib.contextmanager
def _serving(deployment: Deployment, log: Path) -> Iterator[None]:
    """Run the deployment's server during the block. Its engine writes its steps to `log`."""
    os.environ[VARIABLE] = str(log)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            serve(deployment, detach=True)
        yield
    finally:
        del os.environ[VARIABLE]
        stop(deployment)
