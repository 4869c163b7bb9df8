"""Runs a load test inside Locust: hands out the requests, collects the samples, ends the test, writes the report.

With `--processes` or `--worker` the users are in worker processes. Each worker asks the master for its quota of
requests when its first user starts, and sends every sample to the master. With a single process the messages are the
same, and Locust delivers them by a plain call.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent
import psutil
from gevent.event import AsyncResult
from locust.env import Environment
from locust.runners import MasterRunner

from toolkit.clock import now
from toolkit.errors import ToolkitError
from toolkit.load import LAUNCHER
from toolkit.load.clocks import Clocks
from toolkit.load.live import Live, Snapshot
from toolkit.load.messages import CLOCK, LOOP_LAG, QUOTA, QUOTA_WANTED, SAMPLE
from toolkit.load.options import RunOptions
from toolkit.load.prediction import predicted
from toolkit.load.private_locust import cpu_shares, live_workers, ready_workers
from toolkit.load.progress import Progress
from toolkit.load.self_check import SLACK_CPU
from toolkit.load.server_watch import ServerWatch
from toolkit.load.target import metrics_urls
from toolkit.monitor.read_page import read_exporter
from toolkit.reports.loadtest import report
from toolkit.reports.loadtest.samples import write_samples
from toolkit.reports.loadtest.terminal import summary_text
from toolkit.slo.generator_error import GeneratorError, Lag, read_late_ms
from toolkit.slo.run import Run
from toolkit.slo.sample import Sample
from toolkit.slo.server_metrics import ServerSeen
from toolkit.slo.target import limits_of_a_request
from toolkit.slo.verdict import Outcome, Verdict

WATCH_S = 0.5
LOST_AFTER_S = 10.0
"""Missing requests are given up if no user is left, or a worker is lost, for so long. Workers report every 3 s."""

START_S = 1.0
"""From handing out the quotas of an open loop to its first request, so that workers can prepare requests."""


class RequestQuota:
    """The numbers of the requests that this process sends in one run."""

    def __init__(self) -> None:
        self._numbers: AsyncResult | None = None
        self._begin = 0.0

    def forget(self, **_: Any) -> None:
        """Drop the quota, because another run begins."""
        self._numbers = None

    def next(self, runner: Any) -> int | None:
        """The next number. None if there are no more. The first call waits for the master's answer."""
        return next(self._requested(runner).get(), None)

    def all(self, runner: Any) -> tuple[Iterator[int], float]:
        """All numbers of this process, and when the open loop begins, in seconds since the Unix epoch."""
        return self._requested(runner).get(), self._begin

    def receive(self, environment: Environment, msg: Any, **_: Any) -> None:
        *numbers, seconds = msg.data
        if self._numbers is not None:
            self._begin = now() + seconds  # by this machine's clock: the master may be on another machine
            self._numbers.set(iter(range(*numbers)))

    def _requested(self, runner: Any) -> AsyncResult:
        if self._numbers is None:
            self._numbers = AsyncResult()
            runner.send_message(QUOTA_WANTED)
        return self._numbers


class Coordinator:
    """Runs every test of the master, or of the only process, one after another."""

    def __init__(self, environment: Environment, run_options: RunOptions) -> None:
        self.environment, self.run_options = environment, run_options
        self.deployment, self.source = run_options.deployment, run_options.source
        self.settings: dict[str, Any] = {}
        self.samples: list[Sample] = []
        self.senders: list[str] = []
        """The worker of each sample."""
        self.lag: dict[str, list[Lag]] = {}
        self.total = self.quotas_given = self.runs = 0
        self.started = 0.0
        self.live: Live | None = None
        self.verdict: Verdict | None = None
        self.running = False
        self.begin = 0.0
        """When the open loop begins, on the monotonic clock."""
        events = environment.events
        events.test_start.add_listener(self.start)
        events.test_stop.add_listener(self.finish)
        events.test_stop.add_listener(self.end_if_alone)
        events.quitting.add_listener(self.quit)
        events.cpu_warning.add_listener(self.note_cpu)
        self._runner.register_message(QUOTA_WANTED, self.give_quota)
        self._runner.register_message(SAMPLE, self.receive)
        self._runner.register_message(LOOP_LAG, self.receive_lag)
        self._runner.register_message(CLOCK, self.receive_clock)
        if launcher := os.environ.get(LAUNCHER):
            gevent.spawn(self._end_with, int(launcher))

    def start(self, **_: Any) -> None:
        options, self.source, workers = self._options, self.run_options.source, ready_workers(self._runner)
        self.settings = {
            "model": self.source.model,
            **self.source.settings(),
            **({"users": options.num_users} if self.source.users else {}),
            "processes": len(workers) or 1,
            "warmup_requests": self.source.warmup,
            "requests": self.source.count - self.source.warmup,
            "timeout_s": self.deployment.loadtest.timeout_s,
            "protocol": options.protocol,
            "answers": "whole" if options.no_stream else "streamed",
        }
        self.total = self.source.count
        self.samples, self.senders, self.lag, self.verdict = [], [], {}, None
        self.started, self.running = time.time(), True
        self.cpu_before, self.busiest = sum(psutil.Process().cpu_times()[:2]), 0.0
        urls = metrics_urls(self.deployment, options.target)
        exporter = functools.partial(read_exporter, self.deployment)
        self.watch = ServerWatch(urls, exporter).__enter__() if urls else None
        self.workers, self.clocks = workers, Clocks(self._runner, workers)
        self.quotas_given, self.progress, self.runs = 0, Progress(), self.runs + 1
        self.live = Live(self.total, self.source.turns, limits_of_a_request(self.deployment.slo))
        gevent.spawn(self._watch)

    def give_quota(self, environment: Environment, msg: Any, **_: Any) -> None:
        """Give every n-th number to each of n processes. Locust gives each of these processes a user."""
        processes = min(self.settings["processes"], self.source.users or self.settings["processes"])
        if not self.quotas_given:
            self.begin = time.monotonic() + START_S
        client = {"client_id": msg.node_id} if isinstance(self._runner, MasterRunner) else {}
        firsts = self.source.firsts
        numbers = (self.quotas_given * firsts.step, firsts.stop, processes * firsts.step)
        self._runner.send_message(QUOTA, (*numbers, max(0.0, self.begin - time.monotonic())), **client)
        self.quotas_given += 1

    def receive(self, environment: Environment, msg: Any, **_: Any) -> None:
        if self.running and self.live is not None:
            sample = Sample.from_dict(msg.data)
            self.samples.append(sample)
            self.senders.append(msg.node_id)
            self.live.add(sample, time.time() - self.started)

    def receive_lag(self, environment: Environment, msg: Any, **_: Any) -> None:
        if self.running:
            self.lag.setdefault(msg.node_id, []).extend(msg.data)

    def receive_clock(self, environment: Environment, msg: Any, **_: Any) -> None:
        if self.running:
            self.clocks.hear(msg.node_id, msg.data)

    def now(self) -> Snapshot | None:
        """How far the test is. None before the first test."""
        if self.live is None:
            return None
        return self.live.now(time.time() - self.started, self._in_flight(self.live))

    def _in_flight(self, live: Live) -> int | None:
        if not self.running or not self.quotas_given:
            return 0
        if self.source.users is not None:
            return min(int(self._runner.user_count), live.total - live.done)
        elapsed = time.monotonic() - self.begin
        return max(0, bisect.bisect_right(self.source.firsts, elapsed, key=self.source.due) - live.over)

    def finish(self, **_: Any) -> None:
        """Write the report, once, when the test has stopped."""
        if not self.running:
            return
        self.running = False
        if self.live and (state := self.now()):
            self.live.mark(state, last=True)
        done = len(self.samples)
        cut_short = None if done >= self.total else f"stopped after {done} of {self.total} requests{self._why()}"
        if said := self.clocks.words:
            self.settings["clocks"] = said
            print(f"clocks of the workers: {said}", file=sys.stderr)
        put_right = map(self.clocks.put_right, self.samples, self.senders)
        samples = tuple(sorted(put_right, key=lambda sample: sample.due))
        run = Run(samples, self.settings["warmup_requests"], self.started, self.settings, cut_short)
        if self._options.samples:
            return self._leave(run, Path(self._options.samples))
        run = replace(run, own=self._generator_error(run), server=self._server_seen(run))
        with contextlib.suppress(ToolkitError):  # some deployments and some runs cannot be predicted
            run = replace(run, predicted=predicted(self.deployment, run))
        if self._shows_progress:
            self.progress.clear()
        try:
            self.verdict = report.write(self.deployment, run)
        except ToolkitError as error:
            print(f"error: {error}", file=sys.stderr)
            return
        if not self._shows_progress:
            print(summary_text(self.verdict), report.report_page(self.deployment), sep="\n", file=sys.stderr)

    def _lost(self) -> int:
        """How many of the run's worker processes are gone or silent."""
        return len(self.workers - live_workers(self._runner)) if self.workers else 0

    def _why(self) -> str:
        lost, missing = self._lost(), self.total - len(self.samples)
        if not lost:
            return ""
        workers = f"{lost} of {len(self.workers)} worker processes"
        return f": {workers} died or went silent, and {missing} requests have no answer"

    def end_if_alone(self, **_: Any) -> None:
        """End Locust after its last worker was lost: it would wait for new workers for ever."""
        if self._options.headless and self.workers and self._lost() == len(self.workers):
            gevent.spawn(self._runner.quit)

    def _leave(self, run: Run, folder: Path) -> None:
        """Write the samples and the CPU use only: a self-check judges nothing."""
        write_samples(folder, run)
        cpu_use = {"cpu": self._cpu(), "seconds": time.time() - self.started, "processes": self.settings["processes"]}
        (folder / "cpu.json").write_text(json.dumps(cpu_use), encoding="utf-8")

    def _generator_error(self, run: Run) -> GeneratorError | None:
        """The error that the self-check measured, or a larger one that this run shows."""
        if not self._options.generator_error:
            return None
        own, cpu = GeneratorError.from_json(self._options.generator_error), self._cpu()
        judged, out_of_cpu = run.judged, own.out_of_cpu or cpu > SLACK_CPU
        lags = [lag for worker, own_lags in self.lag.items() for lag in self.clocks.put_lags_right(own_lags, worker)]
        late = read_late_ms(lags, judged[0].due, max(sample.ended for sample in judged)) if judged else None
        late = max((ms for ms in (late, own.read_late_ms) if ms is not None), default=None)
        return replace(own, cpu=max(cpu, own.cpu or 0.0), out_of_cpu=out_of_cpu, read_late_ms=late)

    def _cpu(self) -> float:
        """The share of a core that the busiest process uses: this one, or a worker by its last report."""
        seconds = max(time.time() - self.started, 1e-3)
        own = (sum(psutil.Process().cpu_times()[:2]) - self.cpu_before) / seconds
        return max(own, self.busiest)

    def _server_seen(self, run: Run) -> ServerSeen | None:
        if self.watch is None:
            return None
        self.watch.__exit__(None, None, None)
        judged = run.judged
        return self.watch.seen(judged[0].due, judged[-1].ended) if judged else None

    def quit(self, **_: Any) -> None:
        """Locust is about to end: stop a running test, so that its report is written, and set the exit code."""
        self._runner.stop()
        self.finish()
        outcome = Outcome.COULD_NOT_RUN if self.verdict is None else self.verdict.outcome
        self.environment.process_exit_code = outcome.value

    def note_cpu(self, cpu_usage: float, **_: Any) -> None:
        if self.running:
            self.settings["load_generator"] = f"used {cpu_usage:.0f} % of a core: latencies may be overstated"

    @property
    def _shows_progress(self) -> bool:
        """True if Locust prints no tables while it runs."""
        return bool(self._options.only_summary)

    @property
    def _options(self) -> Any:
        return self.environment.parsed_options

    @property
    def _runner(self) -> Any:
        return self.environment.runner

    def _end_with(self, launcher: int) -> None:
        while os.getppid() == launcher:
            gevent.sleep(WATCH_S)
        self._runner.quit()

    def _watch(self) -> None:
        """Show progress. End the test when all samples are there, or when no user is left to send the rest."""
        last_seen = time.monotonic()
        while self.running and len(self.samples) < self.total and time.monotonic() - last_seen < LOST_AFTER_S:
            gevent.sleep(WATCH_S)
            if self._runner.user_count and not self._lost():
                last_seen = time.monotonic()
            self.busiest = max([self.busiest, *cpu_shares(self._runner)])
            if self.running and (state := self.now()) and self.live:
                self.live.mark(state)
                if self._shows_progress:
                    self.progress.show(state)
        if not self.running:
            return
        if self._options.headless:
            self._runner.quit()
        else:
            self._runner.stop()
