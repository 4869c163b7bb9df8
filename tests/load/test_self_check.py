"""The load generator's own error, by hand: what samples say against what was sent."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.load.measure import measure
from toolkit.client import GenerateRequest, connect
from toolkit.clock import now
from toolkit.errors import ToolkitError
from toolkit.known_truth import Record
from toolkit.load.processes import advice
from toolkit.load.self_check import SLACK_CPU, CpuUse, compare, generator_error
from toolkit.reports.loadtest.samples import write_samples
from toolkit.slo.generator_error import GeneratorError
from toolkit.slo.run import Run
from toolkit.slo.sample import Sample


def sent(number: int, arrived: float, times: tuple[float, ...], fault: str | None = None) -> Record:
    return Record(
        number,
        f"load-{number}",
        "http",
        "generate_stream",
        5,
        len(times),
        arrived,
        arrived,
        times[-1],
        times,
        0,
        fault,
        fault is None,
    )


def seen(number: int, due: float, times: tuple[float, ...], error: str | None = None) -> Sample:
    return Sample(f"load-{number}", "http", due, due + 0.004, times[-1], times, times[0], error=error)


def test_sending_late_and_reading_late_are_both_errors():
    """Due at 10.000, sent at 10.004, arrived at 10.005; the first token left at 10.205 and was read at 10.207."""
    records = [sent(n, 10.005, (10.205, 10.225, 10.245)) for n in range(3)]
    samples = [seen(n, 10.0, (10.207, 10.228, 10.249)) for n in range(3)]
    own = compare(samples, records, cpu=0.3)
    assert own.ttft_ms.p50 == pytest.approx(7, abs=1e-6)  # 207 measured, 200 true
    assert own.tpot_ms.p50 == pytest.approx(1, abs=1e-6)  # 21 measured, 20 true
    assert own.itl_ms.p99 == pytest.approx(1, abs=1e-6)
    assert own.e2e_ms.p50 == pytest.approx(9, abs=1e-6)  # 249 measured, 240 true
    assert own.dispatch_ms == pytest.approx(4, abs=1e-6)
    assert (own.cpu, own.out_of_cpu) == (0.3, False)


def test_a_tail_of_its_own():
    records = [sent(n, 10.0, (10.2, 10.22)) for n in range(101)]
    samples = [seen(n, 10.0, (10.25, 10.27) if n > 90 else (10.2, 10.22)) for n in range(101)]
    own = compare(samples, records, cpu=None)
    assert own.ttft_ms.p50 == pytest.approx(0, abs=1e-6) and own.ttft_ms.p99 == pytest.approx(50, abs=1e-6)


def test_broken_answers_say_nothing():
    records = [sent(0, 10.0, (10.2, 10.22)), sent(1, 10.0, (10.9, 10.92), fault="slow")]
    samples = [seen(0, 10.0, (10.2, 10.22)), seen(1, 10.0, (10.9, 10.92)), seen(2, 10.0, (11.0, 11.1), error="x")]
    assert compare(samples, records, cpu=0.1).ttft_ms.p99 == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("cpu", "out"), [(0.89, False), (0.95, True)])
def test_out_of_cpu(cpu, out):
    assert compare([seen(0, 1.0, (1.2, 1.3))], [sent(0, 1.0, (1.2, 1.3))], cpu).out_of_cpu is out


def test_nothing_in_common_is_no_calibration():
    with pytest.raises(ToolkitError, match="none of its requests was answered"):
        compare([], [], cpu=0.1)


def test_what_one_process_carries():
    """Two processes of which the busier used 0.2 of a core for 10 s: 4 s of CPU at most for 20,000 tokens."""
    assert CpuUse(0.2, 10.0, 2).carried(20_000) == pytest.approx(20_000 / 4 * SLACK_CPU)
    assert CpuUse(0.2, 10.0, 2).carried(0) is None and CpuUse(0.0, 10.0, 1).carried(5) is None


def test_how_many_processes_a_test_wants(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    own = GeneratorError(tokens_per_s=6123.0)
    carries = "one process carries about 6,100 tokens/s here; this test asks for "
    assert advice(own, 900.0, 1) == carries + "900"
    assert advice(own, 12_300.0, 1) == carries + "12,000: use --processes 3"
    assert advice(own, 12_300.0, 3) == carries + "12,000"
    assert advice(own, 61_000.0, 1).startswith(carries + "61,000, which needs 10 workers, and this machine has 4 cores")
    assert not advice(GeneratorError(), 900.0, 1)
    busy = advice(replace(own, others_cpu=1.34), 900.0, 1)
    assert busy == f"other programs keep 1.3 of 4 cores busy, so it carries less: {carries}900"


def test_what_other_programs_take_of_the_machine():
    """A program that never waits, beside a test that does nothing but wait."""
    work = SimpleNamespace(users=None, count=1, firsts=range(1), due=lambda number: 1.0)

    def send(url: str, count: int, folder: Path) -> None:
        request = GenerateRequest("x", 5, id="load-0")
        with connect(url) as client:
            seen = measure(client, request, due=now(), protocol="http", deadline_s=9)
        time.sleep(1)  # the other program works meanwhile
        write_samples(folder, Run((seen,), 0, 0.0, {}))

    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:  # it ends afterwards: what has ended counts as the generators
            assert generator_error(work, "http", send).others_cpu > 0.3
        finally:
            busy.kill()
