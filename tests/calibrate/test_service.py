"""How much longer steps take in service: found again where it is known, and measured on the real server."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands import toolkit
from toolkit.calibrate.grid import grid
from toolkit.calibrate.service import Served, slowdowns
from toolkit.calibrate.steps import engine_settings
from toolkit.serve import status
from toolkit.steptimes.calibration import load
from toolkit.steptimes.measured import MeasuredSteps
from toolkit.steptimes.step import decode

ROOT = Path(__file__).parents[2]
BUDGET_S = 7
HALF_S = (0.5, *[0.0] * 9)
ALONE = MeasuredSteps(2, (), (HALF_S, HALF_S), (0.0, 0.0), (0.0, 0.0))
"""Two stages that take half a second, whatever the step."""


def command(deployment, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "toolkit", "calibrate", str(deployment.file), *arguments]


def step(begin: float, end: float) -> Served:
    return Served(begin, end, decode(1, 30))


def test_the_pace_at_each_number_in_flight_is_found_again():
    """A second of work takes 1.1 s alone and 3 s beside another: by hand, also where a step had some of both."""
    alone, together = [step(0.0, 1.1)], [step(10.0, 13.0), step(10.0, 13.0)]
    partly = [step(20.0, 20.0 + 0.55 + 1.5), step(20.55, 20.55 + 1.5 + 0.55)]
    found = slowdowns([*alone, *together, *partly], ALONE)
    assert found == pytest.approx({1: 1.1, 2: 3.0})


def test_waiting_in_line_is_not_slowness():
    """Two in flight all the time, through stages of 0.25 and 0.75 s: one ends every 0.75 s, after 1.5 s, as it must."""
    costs = tuple((seconds, *[0.0] * 9) for seconds in (0.25, 0.75))
    uneven = MeasuredSteps(2, (), costs, (0.0, 0.0), (0.0, 0.0))
    assert slowdowns([step(t * 0.75, t * 0.75 + 1.5) for t in range(100)], uneven) == pytest.approx({2: 1.0}, rel=0.02)


def test_a_number_that_hardly_occurred_is_left_out():
    often = [step(float(begin), begin + 1.0) for begin in range(100)]
    assert slowdowns([*often, step(200.0, 201.0), step(200.9, 209.0)], ALONE) == pytest.approx({1: 1.0}, rel=0.1)


@pytest.mark.alone
@pytest.mark.slow
def test_the_command_writes_a_file_that_the_planner_reads(tiny_llama, deploy, tmp_path):
    deployment = deploy(tiny_llama, pp=2)
    arguments = command(
        deployment, "--budget", str(BUDGET_S), "--output", str(tmp_path / "new" / "times.json"), "--json"
    )
    result = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "new" / "times.json").read_text())
    assert json.loads(result.stdout) == written
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["times.json"]
    calibration = load(tmp_path / "new" / "times.json")
    times = calibration.step_times(deployment)
    assert times.stages == 2
    # On a slow machine the budget has no room for the longest.
    assert len(written["rows"]) + len(written["skipped"]) == len(grid(engine_settings(deployment).scheduling))
    one = next(row for row in calibration.steps if row.kind == "generation").work
    assert sum(times.stage_seconds(one)) > 0 and sum(times.hops(one)) >= 0 and times.finish_seconds(one) > 0
    assert {one.part for one in calibration.differences(deployment)} == {row["kind"] for row in written["rows"]}
    assert 0 < calibration.outside_s < BUDGET_S
    assert written["crowding"] and {one["in_flight"] for one in written["crowding"]} <= {1, 2}
    assert all(0.1 < one["slowdown"] < 100 for one in written["crowding"]), "a ratio of two times of this run"
    assert status(deployment).phase == "stopped"


def test_without_a_repository_it_says_which_command_makes_one(tiny_llama, deploy):
    deployment = deploy(tiny_llama)
    (deployment.repository_dir / "lock.json").unlink()
    result = toolkit("calibrate", deployment.file)
    assert result.returncode == 1
    assert result.stderr.endswith(f"Run: toolkit repo {deployment.file}\n") and result.stderr.count("\n") == 1


def test_a_server_that_is_there_already_is_not_measured_with_it(tiny_llama, deploy):
    deployment = deploy(tiny_llama)
    begin = time.monotonic()
    with socket.create_server(("127.0.0.1", deployment.serving.http_port)):
        result = toolkit("calibrate", deployment.file)
    assert result.returncode == 1 and time.monotonic() - begin < 30
    assert "serving.http_port: cannot listen on" in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.slow
def test_ctrl_c_in_service_stops_the_server(tiny_llama, deploy):
    deployment = deploy(tiny_llama, pp=2)
    arguments = command(deployment, "--budget", "16")
    running = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    until = time.monotonic() + 90
    while status(deployment).phase != "ready" and time.monotonic() < until:
        time.sleep(0.2)
    running.send_signal(signal.SIGINT)
    output, errors = running.communicate(timeout=60)
    assert (running.returncode, output) == (130, "") and errors.endswith("interrupted\n")
    found = status(deployment)
    assert (found.phase, found.pid) == ("stopped", None)
    assert not list(deployment.output.glob("calibration*"))
