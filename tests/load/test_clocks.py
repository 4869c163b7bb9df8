"""The clocks of the workers: how far they are off, and that what they report is put right."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import pytest

from tests.commands import toolkit
from tests.load.trial import LOCUSTFILE, recorded, workload_file
from tests.ports import free_port
from toolkit.clock import now
from toolkit.load import clocks
from toolkit.load.clocks import ROUNDS, Clocks, Offset
from toolkit.reports.loadtest import report
from toolkit.slo.sample import Sample

AHEAD_S = 100.0
WITH_ANOTHER_CLOCK = "import sys, toolkit.clock as clock; clock.EPOCH += {}; from locust.main import main; main()"


class Runner:
    """Sends messages to workers that answer, each with a clock of its own, at a time of its own."""

    def __init__(self, **ahead_s: float | None) -> None:
        self.ahead_s, self.asked = ahead_s, list[str]()

    def send_message(self, _: str, client_id: str) -> None:
        self.asked.append(client_id)

    def run(self) -> Clocks:
        made = Clocks(self, self.ahead_s)
        while self.asked:
            worker = self.asked.pop()
            if (ahead_s := self.ahead_s[worker]) is not None:
                time.sleep(0.001)
                made.hear(worker, now() + ahead_s)
        return made


def sample(due: float) -> Sample:
    return Sample("1", "http", due, due + 1, due + 4, (due + 2, due + 3), due + 2, worker=0)


def test_a_clock_that_is_off_is_said_and_put_right():
    made = Runner(good=0.0, fast=5.0, slow=-3600.0).run()
    said = (
        r"put right: fast is [45],\d{3}\.\d ms ahead, known to \d+\.\d ms; slow is 3,\d{3},\d{3}\.\d ms behind, .* ms"
    )
    assert re.fullmatch(said, made.words), made.words
    assert made.put_right(sample(1000.0), "good") == sample(1000.0)
    right = made.put_right(sample(1005.0), "fast")
    for moment, wanted in zip(
        (right.due, right.sent, right.ended, right.first_text, *right.token_times),
        (1000, 1001, 1004, 1002, 1002, 1003),
        strict=True,
    ):
        assert moment == pytest.approx(wanted, abs=0.5)
    assert right.ttft_ms == pytest.approx(sample(1005.0).ttft_ms), "times within a request are right anyway"
    [(due, late_ms)] = made.put_lags_right([(1005.0, 7.0)], "fast")
    assert (due, late_ms) == (pytest.approx(1000, abs=0.5), 7.0)


def test_the_answer_with_the_shortest_round_trip_counts(monkeypatch):
    """One of 2 ms next to others of 200: it tells the offset of 40 ms to 1 ms."""
    moments = iter([0.0, 0.2, 1.0, 1.002, 2.0, 2.2])
    monkeypatch.setattr(clocks.time, "perf_counter", lambda: next(moments))
    monkeypatch.setattr(clocks, "ROUNDS", 3)
    runner = Runner(one=None)
    made = Clocks(runner, ["one"])
    for read_at, master in ((0.19, 0.2), (1.001, 1.002), (2.01, 2.2)):
        monkeypatch.setattr(clocks, "now", lambda master=master: master)
        made.hear("one", read_at + 0.04)
    assert made._best["one"].ahead_s == pytest.approx(0.04) and made._best["one"].round_trip_s == pytest.approx(0.002)
    assert runner.asked == ["one"] * 3 and "known to 1.0 ms" in made.words


def test_what_the_round_trip_explains_is_left_alone():
    assert not Offset(0.0, 0.0).matters and not Offset(0.05, 0.06).matters and not Offset(-0.002, 0.0001).matters
    assert Offset(0.05, 0.01).matters and Offset(-0.05, 0.01).matters


def test_a_worker_that_does_not_answer_is_named():
    runner = Runner(good=0.0, silent=None)
    assert runner.run().words == "not known of silent, which did not answer"
    made = Clocks(runner, ["good"])
    made.hear("a stranger", 5.0)
    assert made.words.startswith("not known of good") and ROUNDS > 1


@pytest.mark.slow
def test_a_worker_of_another_machine_with_another_clock(server, deployment, tmp_path, tiny_llama):
    """A master and two workers, as on three machines. One worker's clock is 100 s ahead, the server's is right."""
    load = deployment(server, model=tiny_llama)
    file, port = workload_file(tmp_path, arrivals="constant", rate=20, requests=30), str(free_port())
    ours = ["-m", "toolkit", "loadtest", load.file, "--workload", file]
    worker = ["-f", LOCUSTFILE, "--deployment", load.file, "--workload", file, "--worker", "--master-port", port]
    commands = [
        [*ours, "--workers", "2", "--listen", f"127.0.0.1:{port}"],
        [*ours, "--join", f"127.0.0.1:{port}"],
        ["-c", WITH_ANOTHER_CLOCK.format(AHEAD_S), *worker],
    ]
    started = [
        subprocess.Popen([sys.executable, *map(str, one)], stderr=subprocess.PIPE, text=True) for one in commands
    ]
    said = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], said
    found, seen = report.read(load), recorded(server)
    assert len(found.samples) == 30 and found.settings["processes"] == 2, said
    assert {one.worker for one in found.samples} == {0, 1}
    for one in found.samples:
        assert one.sent == pytest.approx(seen[one.id].arrived, abs=AHEAD_S / 4)
    assert found.settings["clocks"].startswith("put right: ") and found.settings["clocks"].count(" ahead") == 1
    assert f"clocks of the workers: {found.settings['clocks']}\n" in said[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--workers", "2"], "--workers and --listen need each other"),
        (["--listen", "10.0.0.1"], "--workers and --listen need each other"),
        (["--workers", "2", "--listen", "10.0.0.1", "--join", "10.0.0.2"], "--workers collects, and --join sends"),
        (["--workers", "2", "--listen", "10.0.0.1", "--processes", "2"], "--processes is for those that --join"),
        (["--join", "10.0.0.2", "--sweep", "1,2"], "--join cannot be combined with --find-capacity, --sweep, --rep"),
        (["--workers", "2", "--listen", "10.0.0.1", "--repeat", "2"], "--workers cannot be combined with --find-cap"),
        (["--join", "10.0.0.2:70000"], "--join: expected HOST or HOST:PORT, got '10.0.0.2:70000'"),
        (["--join", "a b"], "--join: expected HOST or HOST:PORT, got 'a b'"),
        (["--workers", "0", "--listen", "10.0.0.1"], "0"),
    ],
)
def test_options_that_do_not_go_together(deployment, options, said):
    done = toolkit("loadtest", deployment(None).file, *options)
    assert (done.returncode, done.stdout) == (3, "") and said in done.stderr, done.stderr


def test_a_server_that_is_down_is_said_before_any_worker_is_awaited(deployment):
    done = toolkit("loadtest", deployment(None).file, "--workers", "1", "--listen", "127.0.0.1")
    assert done.returncode == 3 and "COULD NOT RUN" in done.stdout
