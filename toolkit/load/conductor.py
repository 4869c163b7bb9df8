"""Runs a load test inside Locust: hands out the requests, collects the samples, ends the test, writes the report.

With `--processes` or `--worker` the users are in worker processes. Each then sends the requests of its share
and ships every sample as a message; the master, or the only process, collects them. The same messages travel
in the only process, where Locust delivers them by a plain call.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import gevent
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from toolkit.config import Deployment
from toolkit.slo import report
from toolkit.slo.metrics import Distribution, Sample
from toolkit.slo.run import Run
from toolkit.slo.terminal import summary_text
from toolkit.slo.verdict import Verdict

SHARE, SAMPLE = "toolkit-share", "toolkit-sample"
WATCH_S = 0.5
LOST_AFTER_S = 10.0
"""How long there may be no user left before the missing requests are given up (workers report every 3 s)."""
QUIET_PROGRESS_S = 10.0


class Share:
    """The numbers of the requests that the users of this process send."""

    def __init__(self) -> None:
        self._numbers: Iterator[int] = iter(())

    def receive(self, environment: Environment, msg: Any, **_: Any) -> None:
        self._numbers = iter(range(*msg.data))

    def next(self) -> int | None:
        return next(self._numbers, None)


class Conductor:
    """One for the master or the only process; collects one run after another, as often as a test is started."""

    def __init__(self, environment: Environment, deployment: Deployment, settings: Mapping[str, Any]) -> None:
        self.environment, self.deployment = environment, deployment
        self.settings: dict[str, Any] = dict(settings)
        self.samples: list[Sample] = []
        self.total = 0
        self.started = 0.0
        self.verdict: Verdict | None = None
        self.running = False
        events = environment.events
        events.test_start.add_listener(self.start)
        events.test_stop.add_listener(self.finish)
        events.quitting.add_listener(self.quit)
        events.cpu_warning.add_listener(self.note_cpu)
        self._runner.register_message(SAMPLE, self.receive)

    def start(self, **_: Any) -> None:
        options, runner = self._options, self._runner
        self.settings |= {"users": options.num_users, "requests": int(options.requests), "protocol": options.protocol}
        self.total = self.settings["requests"] + self.settings["warmup_requests"]
        self.samples, self.verdict, self.started, self.running = [], None, time.time(), True
        if self._is_master:
            workers = [worker.id for worker in runner.clients.ready]
            for index, worker in enumerate(workers):
                runner.send_message(SHARE, (index, self.total, len(workers)), client_id=worker)
            self.settings["processes"] = len(workers)
        else:
            runner.send_message(SHARE, (0, self.total, 1))
        gevent.spawn(self._watch)

    def receive(self, environment: Environment, msg: Any, **_: Any) -> None:
        if self.running:
            self.samples.append(Sample.from_dict(msg.data))

    def finish(self, **_: Any) -> None:
        """The test has stopped: write the report, once."""
        if not self.running:
            return
        self.running = False
        done = len(self.samples)
        cut_short = None if done >= self.total else f"stopped after {done} of {self.total} requests"
        samples = tuple(sorted(self.samples, key=lambda sample: sample.due))
        run = Run(samples, self.settings["warmup_requests"], self.started, dict(self.settings), cut_short)
        self.verdict = report.write(self.deployment, run)
        self._clear_progress()
        if not self._options.only_summary:
            print(summary_text(self.verdict), report.report_page(self.deployment), sep="\n", file=sys.stderr)

    def quit(self, **_: Any) -> None:
        """Locust is about to end: stop a test that still runs, so that its report is written, and say how it went."""
        self._runner.stop()
        self.finish()
        if self.verdict is not None:
            self.environment.process_exit_code = self.verdict.exit_code

    def note_cpu(self, cpu_usage: float, **_: Any) -> None:
        self.settings["load_generator"] = f"used {cpu_usage:.0f} % of a core: latencies may be overstated"

    @property
    def _options(self) -> Any:
        return self.environment.parsed_options

    @property
    def _runner(self) -> Any:
        return self.environment.runner

    @property
    def _is_master(self) -> bool:
        return isinstance(self.environment.runner, MasterRunner)

    def _watch(self) -> None:
        """Show progress; end the test when all samples are there, or when nobody is left to send the rest."""
        last_seen = time.monotonic()
        while self.running and len(self.samples) < self.total and time.monotonic() - last_seen < LOST_AFTER_S:
            gevent.sleep(WATCH_S)
            if self._runner.user_count:
                last_seen = time.monotonic()
            self._show_progress()
        if not self.running:
            return
        if self._options.headless:
            self._runner.quit()
        else:
            self._runner.stop()

    def _show_progress(self) -> None:
        """One line, rewritten, on a terminal; now and then one elsewhere. Only where Locust prints no table."""
        if not self._options.only_summary:
            return
        elapsed = time.time() - self.started
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{self._progress(elapsed)}")
        elif elapsed % QUIET_PROGRESS_S < WATCH_S:
            sys.stderr.write(f"{self._progress(elapsed)}\n")
        sys.stderr.flush()

    def _progress(self, elapsed: float) -> str:
        good = [sample for sample in self.samples if sample.ok]
        ttft = Distribution(sample.ttft_ms for sample in good).percentile(50)
        tokens = sum(sample.tokens_out for sample in good) / elapsed
        timing = "" if ttft is None else f", TTFT P50 {ttft:.0f} ms, {tokens:.0f} tokens/s"
        failed = len(self.samples) - len(good)
        return f"{len(self.samples)} of {self.total} requests{timing}, {failed} failed, {elapsed:.0f} s"

    def _clear_progress(self) -> None:
        if self._options.only_summary and sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")


def is_worker(environment: Environment) -> bool:
    return isinstance(environment.runner, WorkerRunner)
