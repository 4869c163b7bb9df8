"""Ctrl-C, and even SIGKILL, end `toolkit plan --compare` at once, and the processes that simulate for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

LONG = {"workload__requests": 100_000}
"""Minutes of simulation for each layout, and a limit of seconds for the end."""
ENDS_S = 20


def _heed_ctrl_c() -> None:
    """A shell that starts the tests in the background has it ignored, also in what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def comparing(flagship, tmp_path):
    """`toolkit plan --compare` in a process group of its own, as a shell starts it, once its workers are there."""
    command = [sys.executable, "-m", "toolkit", "plan", flagship(**LONG), "--compare", "--html", tmp_path / "plan.html"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, preexec_fn=_heed_ctrl_c
    ) as process:
        parent, end = psutil.Process(process.pid), time.monotonic() + 60
        while not parent.children():
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.01)
        try:
            yield process, parent.children()
        finally:
            process.kill()


@pytest.mark.parametrize("whole_group", [True, False], ids=["from the terminal", "from a program"])
def test_ctrl_c_ends_it_and_leaves_nothing(comparing, tmp_path, whole_group):
    process, workers = comparing
    if whole_group:
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=ENDS_S)
    assert (process.returncode, said.strip().splitlines()[-1]) == (130, "interrupted")
    assert "Traceback" not in said
    assert not psutil.wait_procs(workers, ENDS_S)[1]
    assert list(tmp_path.iterdir()) == []


def test_workers_end_with_a_killed_parent(comparing):
    process, workers = comparing
    process.kill()
    assert not psutil.wait_procs(workers, ENDS_S)[1]
