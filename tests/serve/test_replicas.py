"""Several replicas under supervisors that are doubles (supervisor_double.py): who is told what, and what is left."""

import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from toolkit.config.deployment import with_settings
from toolkit.errors import ToolkitError
from toolkit.serve import Overview, overview, own_log, replicas, serve, stop
from toolkit.serve.state import Phase, ServerState, exclusive, served_otherwise, write_state

DOUBLE = Path(__file__).with_name("supervisor_double.py")


@pytest.fixture
def two(deploy, monkeypatch):
    """two("1 fail") -> a deployment of two replicas, whose supervisors follow these lines."""

    def make(*steps: str):
        deployment = deploy(replicas=2)
        deployment.file.with_name("steps").write_text("\n".join(steps))
        return deployment

    monkeypatch.setattr(replicas, "SUPERVISOR", (sys.executable, "-S", str(DOUBLE)))
    return make


@pytest.fixture
def ask_to_stop(capfd):
    """ask_to_stop(text, times) sends SIGTERM once all of `text` was printed, and a moment later again."""
    printed: list[str] = []

    def ask(text: str, times: int) -> None:
        deadline = time.monotonic() + 120
        while text not in "".join(printed) and time.monotonic() < deadline:
            time.sleep(0.05)
            printed.extend(capfd.readouterr())
        for _ in range(times):
            if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:  # once serve() has returned it would end pytest
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.4)  # signals that come together are one

    def begin(text: str = "next: ", times: int = 1) -> list[str]:
        threads.append(threading.Thread(target=ask, args=(text, times)))
        threads[-1].start()
        return printed

    threads: list[threading.Thread] = []
    yield begin
    for thread in threads:
        thread.join()


def state(phase: Phase, message: str = "") -> ServerState:
    return ServerState(phase, os.getpid(), "00000000", "/nowhere/toolkit-run-00000000-x", message=message)


def log_of(deployment, replica: int) -> list[str]:
    return deployment.file.with_name(f"{replica}.log").read_text().split("\n")


def is_alive(deployment, replica: int) -> bool:
    try:
        return Path(f"/proc/{log_of(deployment, replica)[0]}").exists()
    except FileNotFoundError:  # it was ended before it could write its log
        return False


def test_all_get_ready_and_drain(two, ask_to_stop, capfd):
    deployment = two()
    printed = ask_to_stop()
    serve(deployment)
    text = "".join([*printed, *capfd.readouterr()])
    for replica in (0, 1):
        assert text.count(f"replica {replica} | ready: http://{replica}\n") == 1
        assert f"replica {replica} | stopped: none cut" in text
        assert "asked 1" in log_of(deployment, replica)
    assert text.count("next: toolkit ask") == 1


def test_lines_in_a_log_that_was_emptied_are_printed(two, ask_to_stop, capfd):
    """A supervisor empties its log when it is large. What it says later begins at the start of the file."""
    deployment = two()
    printed = ask_to_stop("emptied")

    def empty() -> None:
        while "next: " not in "".join(printed):
            time.sleep(0.05)
        for replica in deployment.per_replica():
            os.truncate(replica.run_dir / own_log.NAME, 0)
        print("emptied", flush=True)

    emptying = threading.Thread(target=empty, daemon=True)
    emptying.start()
    serve(deployment)
    text = "".join([*printed, *capfd.readouterr()])
    for replica in (0, 1):
        assert text.count(f"replica {replica} | stopped: none cut") == 1


def test_asked_twice_they_end_at_once(two, ask_to_stop):
    deployment = two("0 stubborn", "1 stubborn")
    ask_to_stop(times=2)
    serve(deployment)
    assert "asked 2" in log_of(deployment, 0) and "asked 2" in log_of(deployment, 1)


@pytest.mark.parametrize("detach", [False, True])
def test_one_that_cannot_load_ends_all(two, detach):
    deployment = two("1 fail")
    with pytest.raises(ToolkitError) as error:
        serve(deployment, detach=detach)
    assert str(error.value) == "replica 1 failed: rank 0 has no memory. Buy some."
    assert not is_alive(deployment, 0) and not is_alive(deployment, 1)


def test_one_whose_log_is_full_is_ready_when_its_state_says_so(two, capfd):
    deployment = two("1 mute")
    serve(deployment, detach=True)
    for replica in (0, 1):
        os.kill(int(log_of(deployment, replica)[0]), signal.SIGTERM)
    assert "replica1/serve.log: cannot be written, but the state file says ready\n" in capfd.readouterr().err


def test_one_that_says_nothing_is_named_with_its_log(two):
    deployment = two("0 traceback")
    with pytest.raises(ToolkitError, match=r"replica 0 failed: its supervisor ended without saying why: .*serve.log"):
        serve(deployment)


@pytest.mark.parametrize(
    ("step", "why"), [("fail-later", "rank 0 was killed by SIGKILL"), ("die", "its supervisor was killed")]
)
def test_one_that_breaks_is_told_and_the_other_goes_on(two, ask_to_stop, step, why):
    deployment = two(f"1 {step}")
    printed = ask_to_stop("still serving: replica 0")
    with pytest.raises(ToolkitError, match=f"^replica 1 failed: {why}$"):
        serve(deployment)
    assert f"replica 1 failed: {why}\nstill serving: replica 0\n" in "".join(printed)
    assert "asked 1" in log_of(deployment, 0)


def test_when_all_have_broken_it_ends(two):
    deployment = two("0 fail-later", "1 die")
    with pytest.raises(ToolkitError, match=r"replica 0 failed: rank 0 .*; replica 1 failed: its supervisor was"):
        serve(deployment)


def test_detached_they_go_on_alone(two):
    deployment = two()
    serve(deployment, detach=True)
    try:
        assert is_alive(deployment, 0) and is_alive(deployment, 1)
        log = deployment.per_replica()[1].run_dir / "serve.log"
        assert log.read_text().startswith("starting 1 rank\nready: http://1\n")
    finally:
        for replica in (0, 1):
            os.kill(int(log_of(deployment, replica)[0]), signal.SIGTERM)


def test_what_is_served_is_left_alone(two, capfd):
    deployment = two("0 fail")
    first, second = deployment.per_replica()
    with exclusive(first):
        serve(deployment, detach=True)
        os.kill(int(log_of(deployment, 1)[0]), signal.SIGTERM)
        assert f"replica 0 is already being served by process {os.getpid()}" in capfd.readouterr().err
        assert not deployment.file.with_name("0.log").exists()
        with exclusive(second), pytest.raises(ToolkitError, match="is already being served"):
            serve(deployment)


def test_a_supervisor_that_has_failed_and_is_about_to_end_is_waited_for(two):
    """On a busy machine that takes it seconds."""
    deployment = two()
    first, second = deployment.per_replica()
    with exclusive(first), contextlib.ExitStack() as ending:
        ending.enter_context(exclusive(second))
        write_state(second, state("failed", "rank 0 has ended"))
        threading.Timer(1, ending.close).start()
        serve(deployment, detach=True)
        os.kill(int(log_of(deployment, 1)[0]), signal.SIGTERM)


def test_what_another_number_of_replicas_left_running_is_found(two):
    deployment = two()
    single = with_settings(deployment, parallel={"replicas": 1})
    with exclusive(single), pytest.raises(ToolkitError, match=f"is already being served by process {os.getpid()}"):
        serve(deployment)
    with exclusive(deployment.per_replica()[1]):
        with pytest.raises(ToolkitError, match=f"is already being served by process {os.getpid()}"):
            serve(single)
        assert [replica.replica for replica in served_otherwise(single)] == [1]
        assert served_otherwise(deployment) == []
    assert stop(single) == "nothing was running"


def test_the_ports_of_all_are_checked_before_the_first_starts(two):
    import socket

    deployment = two()
    port = deployment.serving.grpc_port + 10
    with socket.create_server(("127.0.0.1", port)), pytest.raises(ToolkitError) as error:
        serve(deployment)
    assert f"serving.grpc_port: replica 1 cannot listen on 127.0.0.1:{port}: taken by" in str(error.value)
    assert not deployment.run_dir.exists()


def test_the_overview_says_how_many_are_ready_and_why_not(two, monkeypatch):
    deployment = two()
    first, second = deployment.per_replica()
    assert overview(deployment).data()["ready_replicas"] == 0
    monkeypatch.setattr("toolkit.serve.health.Probe.ready", lambda self: True)
    with exclusive(first), exclusive(second):
        write_state(first, state("ready"))
        write_state(second, state("failed", "rank 0 was killed by SIGKILL"))
        seen: Overview = overview(deployment)
    assert (seen.ready, seen.exit_code) == (1, 1)
    lines = str(seen).splitlines()
    assert lines[0] == "ready: 1 of 2 replicas"
    assert any(line.startswith("replica 1: failed") for line in lines)
    assert "  rank 0 was killed by SIGKILL" in lines
    assert f":{deployment.serving.http_port + 10} " in str(seen)
    data = seen.data()
    assert (data["ready"], data["ready_replicas"], [replica["replica"] for replica in data["replicas"]]) == (
        False,
        1,
        [0, 1],
    )


@pytest.mark.parametrize(
    ("phases", "code"),
    [
        (("ready", "ready"), 0),
        (("ready", "loading"), 1),
        (("ready", "failed"), 1),
        (("unresponsive", "stopped"), 1),
        (("loading", "failed"), 2),
        (("draining", "stopped"), 3),
        (("stopped", "failed"), 3),
    ],
)
def test_what_the_exit_code_of_status_says(two, monkeypatch, phases, code):
    deployment = two()
    monkeypatch.setattr("toolkit.serve.health.Probe.ready", lambda self: True)
    with contextlib.ExitStack() as stack:
        for replica, phase in zip(deployment.per_replica(), phases, strict=True):
            stack.enter_context(exclusive(replica))
            write_state(replica, state(phase))
        assert overview(deployment).exit_code == code


def test_nothing_to_stop(two):
    assert stop(two()) == "nothing was running"
