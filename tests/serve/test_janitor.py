import os
import signal
import subprocess
import sys
import time

import pytest

from toolkit.serve.janitor import RUN_ID, SHARED_MEMORY, Janitor, Member, ServerRun, members, sweep


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run = ServerRun.new()
    yield run
    sweep(run)


def spawn(run: ServerRun, code: str) -> subprocess.Popen[str]:
    environment = {**os.environ, RUN_ID: run.id}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)


def test_sweep_ends_processes_that_hide(run):
    """Ones in a session of their own, orphaned, or ignoring signals."""
    code = """
import os, signal, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print("hidden", flush=True)
        time.sleep(100)
    os._exit(0)
time.sleep(100)
"""
    process = spawn(run, code)
    assert process.stdout.readline() == "hidden\n"
    (SHARED_MEMORY / f"{run.shm_prefix}0-x").touch()
    other = SHARED_MEMORY / f"other-{run.id}"
    other.touch()
    try:
        assert len(sweep(run)) == 2
        assert process.wait(20) == -signal.SIGKILL
        assert members(run) == [] and run.segments() == [] and not run.tmp.exists()
        assert other.exists()
    finally:
        other.unlink()


def test_other_runs_are_left_alone(run):
    process = spawn(ServerRun(run.id + "0", run.tmp), "import time; print('up', flush=True); time.sleep(100)")
    process.stdout.readline()
    sweep(run)
    assert process.poll() is None
    process.kill()
    process.wait()


def test_the_janitor_sweeps_when_its_pipe_ends(run):
    process = spawn(run, "import time; print('up', flush=True); time.sleep(100)")
    process.stdout.readline()
    janitor = Janitor(run)
    time.sleep(0.3)  # a janitor that swept too soon would have ended it by now
    assert process.poll() is None
    janitor.dismiss()
    assert process.wait(20) == -signal.SIGKILL


def test_a_suspended_janitor_is_woken(run):
    process, janitor = spawn(run, "import time; print('up', flush=True); time.sleep(100)"), Janitor(run)
    process.stdout.readline()
    os.kill(janitor.pid, signal.SIGSTOP)
    member, deadline = Member(janitor.pid, 0, None, ()), time.monotonic() + 20
    while not member.suspended and time.monotonic() < deadline:
        time.sleep(0.01)
    janitor.keep_alive()
    while member.suspended and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not member.suspended
    os.kill(janitor.pid, signal.SIGSTOP)
    janitor.dismiss()
    assert process.wait(20) == -signal.SIGKILL
