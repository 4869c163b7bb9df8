"""A generator that is kept from its work by other programs, which its own use of the processor does not show."""

import contextlib
import signal
import statistics
import subprocess
import sys
import threading
import time

import psutil
import pytest

from toolkit.load.runner import Options, run
from toolkit.reports.loadtest import report
from toolkit.slo.generator_error import AtPercentiles, GeneratorError, read_late_ms
from toolkit.slo.verdict import Outcome

pytestmark = pytest.mark.alone

CALIBRATED = GeneratorError(ttft_ms=AtPercentiles(0.5, 1.0), tpot_ms=AtPercentiles(0.1, 0.1))


def test_only_beats_while_judged_requests_were_under_way_count():
    beats = [(0.5, 900.0), (1.5, 1.0), (2.0, 3.0), (2.8, 5.0), (3.5, 800.0)]
    assert read_late_ms(beats, 1.0, 2.9) == pytest.approx(4.96)
    assert read_late_ms(beats, 5.0, 6.0) is None


EARLY_START = """
import gevent
from types import SimpleNamespace
from toolkit.load.reporting import LoopLag

sent, environment = [], SimpleNamespace(runner=None)
LoopLag().start(environment)
gevent.sleep(1.2)  # its first report is due, and there is no runner yet
environment.runner = SimpleNamespace(send_message=lambda name, lag: sent.append(name))
while not sent:
    gevent.sleep(0.1)
print(*set(sent))
"""


def test_a_worker_that_starts_before_its_runner_is_set_still_reports():
    """On a busy machine, Locust tells a worker to start while its runner is still being made."""
    done = subprocess.run([sys.executable, "-c", EARLY_START], capture_output=True, text=True, timeout=60)
    assert done.stdout == "toolkit-loop-lag\n", done.stderr


@pytest.mark.slow
def test_a_generator_that_stood_still_judges_nothing(server, deployment):
    """It is stopped for 0.3 s of each 0.45 s, so that half of what came was read 0.1 s late and more."""
    slo = {"ttft_ms": {"p50": 210}, "compliance": 0.01}
    load, ended = deployment(server, slo=slo, users=8, requests=100, warmup_requests=8), threading.Event()

    def disturb() -> None:
        while not ended.is_set() and len(server.records()) < 8:  # its warm-up
            time.sleep(0.05)
        (generator,) = (child for child in psutil.Process().children() if "locust" in str(child.cmdline()))
        with contextlib.suppress(psutil.NoSuchProcess):  # done
            while not ended.wait(0.15):
                generator.send_signal(signal.SIGSTOP)
                time.sleep(0.3)
                generator.send_signal(signal.SIGCONT)

    disturbing = threading.Thread(target=disturb)
    disturbing.start()
    try:
        verdict = run(load, Options(own=CALIBRATED))
    finally:
        ended.set()
        disturbing.join()
    own = report.read(load).own
    assert statistics.median(one.ttft_ms for one in verdict.measured.samples) > 230
    assert own.read_late_ms > 200 and own.cpu < 0.9
    assert verdict.outcome is Outcome.UNDECIDED
