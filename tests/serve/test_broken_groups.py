"""Groups of real tritonserver and mpirun that are killed, hang, or cannot load. Their models are trivial."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from toolkit.serve import status

from .stream import Stream

pytestmark = pytest.mark.slow


KILLS = {
    "leader": (0, "", "rank 0 was killed by SIGKILL"),
    "last rank": (3, "", "rank 3 was killed by SIGKILL"),
    "model of the leader": (0, "tensorrt_llm_bls", "rank 0 lost its tensorrt_llm_bls process"),
    "model of a rank": (2, "tensorrt_llm", "rank 2 lost its tensorrt_llm process"),
    "mpirun": (None, "", "mpirun was killed by SIGKILL"),
}


@pytest.mark.parametrize("rank, model, message", KILLS.values(), ids=KILLS)
def test_a_kill_under_load_ends_the_group(deploy, start, rank, model, message):
    serving = start(deploy(tp=2, pp=2)).wait_ready()
    streams = [Stream(serving.deployment, tokens=500) for _ in range(4)]
    serving.wait_for(lambda: all(stream.received for stream in streams))
    os.kill(serving.member(rank, model).pid, signal.SIGKILL)
    assert serving.ended(60) == 1
    assert message in serving.stderr
    assert "Traceback" not in serving.stderr
    assert serving.left() == []
    assert serving.state.phase == "failed" and message in serving.state.message
    assert (f"rank{rank}.log" if rank is not None else "mpirun.log") in serving.stderr
    if rank == 3:
        start(serving.deployment).wait_ready()


def test_an_mpirun_that_somebody_told_to_end(deploy, start):
    serving = start(deploy(pp=2)).wait_ready()
    os.kill(serving.member(None).pid, signal.SIGTERM)
    assert serving.ended(60) == 1
    assert "mpirun was told to end by a signal, and ended its ranks (exited with code 1)" in serving.stderr
    assert serving.left() == []


def test_a_killed_supervisor_leaves_nothing(deploy, start):
    serving = start(deploy(tp=2, pp=2)).wait_ready()
    assert len(serving.left()) > 8
    serving.send(signal.SIGKILL)
    serving.ended(20)
    deadline = time.monotonic() + 20
    while serving.left() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert serving.left() == []
    assert status(serving.deployment).phase == "failed"


def janitors_of(serving):
    listing = subprocess.run(["ps", "-ww", "-eo", "pid,args"], capture_output=True, text=True).stdout.splitlines()
    return [int(line.split()[0]) for line in listing if "janitor.py" in line and serving.state.run_id in line]


def test_a_killed_janitor_is_replaced(deploy, start):
    serving = start(deploy()).wait_ready()
    (janitor,) = janitors_of(serving)
    os.kill(janitor, signal.SIGKILL)
    serving.wait_for(lambda: janitors_of(serving) not in ([], [janitor]))
    serving.send(signal.SIGKILL)
    serving.ended(20)
    deadline = time.monotonic() + 20
    while (serving.left() or janitors_of(serving)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert serving.left() == [] == janitors_of(serving)


def test_the_next_serve_cleans_up_when_all_guards_were_killed(deploy, start):
    serving = start(deploy(pp=2)).wait_ready()
    serving.send(signal.SIGSTOP)  # it cannot replace the janitor now
    for janitor in janitors_of(serving):
        os.kill(janitor, signal.SIGKILL)
    serving.send(signal.SIGKILL)
    serving.ended(20)
    left, run = serving.left(), serving.state.run
    assert left
    again = start(serving.deployment).wait_ready()
    assert f"processes that an earlier run (process {serving.process.pid}) left behind" in again.stderr
    assert run.segments() == [] and not run.tmp.exists()


GIVES_UP = "terminate called after throwing an instance of 'boost::interprocess::lock_exception'"
"""What Triton says when it gives up a model on a busy machine."""


def break_rank(deployment, rank, says) -> list[Path]:
    """A rank that says this as it loads, and ends. The leader waits, as a real one does until its ranks are ready.

    Returns the two files that make them do so.
    """
    model = deployment.repository_dir / "tensorrt_llm"
    broken, waiting = model / f"broken{rank}", model / "sleep0"
    broken.write_text(says)
    waiting.touch()
    return [broken, waiting]


def test_a_rank_that_cannot_load_is_named(deploy, start):
    deployment = deploy(tp=2, pp=2)
    break_rank(deployment, 2, "rank2.engine has no tensor named transformer.ln_f.weight")
    serving = start(deployment)
    assert serving.ended(60) == 1
    assert "rank 2 exited with code 1; all 4 ranks were ended" in serving.stderr
    assert "rank2.engine has no tensor named" in serving.stderr
    assert serving.left() == []


def test_a_rank_that_triton_gave_up_on_a_busy_machine(deploy, start):
    deployment = deploy(tp=2, pp=1)
    break_rank(deployment, 1, GIVES_UP)
    serving = start(deployment)
    serving.wait_for(lambda: "Starting again in 20 s" in serving.stderr)
    serving.send(signal.SIGTERM)  # in the pause
    assert serving.ended(60) == 1
    again = [line for line in serving.stderr.splitlines() if "Starting again in" in line]
    assert all("On a busy machine Triton gives up a model" in line for line in again)
    assert [line.split()[-2] for line in again] == ["1", "5", "20"]
    assert serving.left() == []


def test_a_rank_that_triton_gave_up_once(deploy, start):
    """The Python process that was given up says where it was, in many lines."""
    deployment = deploy(tp=2, pp=1)
    files = break_rank(deployment, 1, "\n".join([GIVES_UP, *(f"in torch, line {number}" for number in range(20))]))
    serving = start(deployment)
    serving.wait_for(lambda: "starting 2 ranks" in serving.stderr)
    for file in files:
        file.unlink()  # the run has a copy of its own
    serving.wait_ready()
    assert "Starting again in 1 s" in serving.stderr


def test_a_group_that_never_gets_ready(deploy, start):
    deployment = deploy(startup_timeout_s=3)
    (deployment.repository_dir / "tensorrt_llm" / "sleep0").touch()
    serving = start(deployment)
    assert serving.ended(60) == 1
    assert "not ready after 3 s (serving.startup_timeout_s)" in serving.stderr
    assert serving.left() == []


def test_a_hung_group_is_ended(deploy, start):
    quick = "import toolkit.serve.health as h; h.CHECK_EVERY_S, h.CHECK_TIMEOUT_S = 0.3, 2.0; "
    quick += "import toolkit.serve.janitor as j; j.Member.suspended = False"  # it is found by what the group does
    serving = start(deploy(pp=2), quick).wait_ready()
    time.sleep(1.5)  # several checks
    assert serving.process.poll() is None, "a group that answers does not count as hung"
    os.kill(serving.member(0, "tensorrt_llm_bls").pid, signal.SIGSTOP)
    serving.wait_for(lambda: "(1 in a row)" in serving.stderr)
    serving.wait_for(lambda: serving.state.phase == "unresponsive")
    assert status(serving.deployment).ready is False
    assert serving.ended(60) == 1
    assert "a one-token request" in serving.stderr and "(2 in a row)" in serving.stderr
    assert "the group hangs: " in serving.stderr and "; all ranks were ended" in serving.stderr
    assert serving.left() == []


def test_a_suspended_process_is_named_and_the_group_ended(deploy, start):
    """At the real pace."""
    serving = start(deploy(pp=2)).wait_ready()
    victim = serving.member(1, "tensorrt_llm").pid
    os.kill(victim, signal.SIGSTOP)
    assert serving.ended(20) == 1
    assert f"the group hangs: its process {victim} (tensorrt_llm) is suspended (SIGSTOP)" in serving.stderr
    assert serving.left() == []


def test_a_group_that_was_hung_for_a_while(deploy, start):
    quick = "import toolkit.serve.health as h; h.CHECK_EVERY_S, h.CHECK_TIMEOUT_S, h.LOOK_TIMEOUT_S = 0.3, 0.5, 0.5; "
    quick += "h.CHECKS_FAILED = 1000; import toolkit.serve.janitor as j; j.Member.suspended = False"
    serving = start(deploy(), quick).wait_ready()
    victim = serving.member(0).pid  # Triton bears it that it is suspended itself, and not always that its models are
    os.kill(victim, signal.SIGSTOP)
    serving.wait_for(lambda: serving.state.phase == "unresponsive")
    os.kill(victim, signal.SIGCONT)
    serving.wait_for(lambda: serving.state.phase == "ready")
    assert "the group answers again" in serving.stderr
