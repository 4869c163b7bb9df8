"""Groups of real tritonserver and mpirun, from start to end. Their models are trivial (tests/serve/models)."""

import ipaddress
import os
import resource
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from tests.waiting import eventually
from toolkit.errors import ToolkitError
from toolkit.files.bounded import MOST_BYTES, older_of
from toolkit.serve import own_log, serve, status, stop
from toolkit.serve.health import Probe
from toolkit.serve.loopback import device_of, socket_of

from .stream import Stream

pytestmark = pytest.mark.slow


def test_one_rank_serves_and_stops(deploy, start):
    serving = start(deploy()).wait_ready()
    assert serving.stdout.count("\n") == 2
    port = serving.deployment.serving.http_port
    assert f"http://127.0.0.1:{port} " in serving.stdout
    assert f"next: toolkit ask {serving.deployment.file}" in serving.stdout
    serving.send(signal.SIGTERM)
    assert serving.ended(20) == 0
    assert serving.left() == []


def test_a_hard_limit_of_the_stack_is_told_and_kept_to(deploy, start):
    lower = "import resource; resource.setrlimit(resource.RLIMIT_STACK, (8 << 20, 16 << 20))"
    serving = start(deploy(tp=2), lower).wait_ready()
    assert "warning: stack: the hard limit is 16384 KiB, Triton needs 65536 KiB. With less, " in serving.stderr
    limits = [resource.prlimit(member.pid, resource.RLIMIT_STACK) for member in serving.members()]
    assert len(limits) > 2 and set(limits) == {(16 << 20, 16 << 20)}


def test_only_the_configured_address_is_bound(deploy, start):
    serving = start(deploy()).wait_ready()
    ports = serving.deployment.serving
    for port in (ports.http_port, ports.grpc_port, ports.metrics_port):
        with socket.socket() as probe:  # 127.0.0.2 is free where 0.0.0.0 is not listened on
            probe.bind(("127.0.0.2", port))


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_nothing_else_listens_to_other_machines(deploy, start, host):
    serving = start(deploy(pp=2, host=host)).wait_ready()
    assert "other machines can reach port" not in serving.stderr
    public, devices = {*serving.deployment.serving.ports().values()}, []
    for member in serving.members():
        for connection in psutil.Process(member.pid).net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and not is_loopback(connection.laddr.ip):
                with socket_of(member.pid, connection.fd) as listening:
                    devices.append((connection.laddr.port, device_of(listening)))
    assert {device for port, device in devices if port not in public} == {b"lo\0"}, "mpirun's, on this machine alone"
    assert {port for port, device in devices if not device} == ({*public} if host == "0.0.0.0" else set())


def is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.removeprefix("::ffff:")).is_loopback


def test_drain_lets_http_streams_end_and_refuses_new_ones(deploy, start):
    serving = start(deploy(pp=2)).wait_ready()
    stream = Stream(serving.deployment, tokens=15)
    serving.wait_for(lambda: len(stream.received) >= 2)
    serving.send(signal.SIGINT)
    serving.wait_for(lambda: serving.state.phase == "draining" and len(stream.received) >= 6)
    assert not status(serving.deployment).ready
    assert Probe(serving.deployment).one_token(timeout_s=2) is None
    assert serving.ended(20) == 0
    stream.join(30)
    assert stream.received == [f"{number} " for number in range(15)]
    assert "draining: 1 request running" in serving.stderr
    assert serving.left() == []


@pytest.mark.parametrize("model", ["tensorrt_llm_bls", "ensemble"])
def test_drain_lets_grpc_streams_end(deploy, start, model):
    import numpy as np
    import tritonclient.grpc as grpc

    serving = start(deploy(pp=2)).wait_ready()
    text, count = grpc.InferInput("text_input", [1], "BYTES"), grpc.InferInput("max_tokens", [1], "INT32")
    text.set_data_from_numpy(np.array([b"slow"], dtype=object))
    count.set_data_from_numpy(np.array([15], dtype=np.int32))
    received = []
    with grpc.InferenceServerClient(f"127.0.0.1:{serving.deployment.serving.grpc_port}") as client:
        client.start_stream(lambda result, error: received.append(error or result.as_numpy("text_output")[0]))
        client.async_stream_infer(model, [text, count])
        serving.wait_for(lambda: len(received) >= 2)
        serving.send(signal.SIGTERM)
        assert serving.ended(20) == 0
    assert received[:15] == [f"{number} ".encode() for number in range(15)]


def test_drain_ends_at_its_limit_and_says_what_it_cut(deploy, start):
    serving = start(deploy(drain_timeout_s=1)).wait_ready()
    stream = Stream(serving.deployment, tokens=500)
    serving.wait_for(lambda: len(stream.received) >= 1)
    serving.send(signal.SIGTERM)
    assert serving.ended(20) == 0
    assert "stopped: 1 request cut" in serving.stderr
    assert serving.left() == []


def test_second_ctrl_c_stops_at_once(deploy, start):
    serving = start(deploy(pp=2, drain_timeout_s=90)).wait_ready()
    stream = Stream(serving.deployment, tokens=500)
    serving.wait_for(lambda: len(stream.received) >= 1)
    serving.send(signal.SIGINT)
    serving.wait_for(lambda: serving.state.phase == "draining")
    serving.send(signal.SIGINT)
    assert serving.ended(40) == 0
    assert serving.left() == []


def test_a_closed_terminal_stops_it_unless_under_nohup(deploy, start):
    ignoring = start(deploy(), "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)").wait_ready()
    ignoring.send(signal.SIGHUP)
    time.sleep(0.5)  # a supervisor that heeded it would drain by now
    assert ignoring.state.phase == "ready"
    ignoring.send(signal.SIGTERM)
    assert ignoring.ended(20) == 0
    serving = start(ignoring.deployment).wait_ready()
    serving.send(signal.SIGHUP)
    assert serving.ended(20) == 0


def test_ctrl_c_while_loading(deploy, start):
    serving = start(deploy(tp=2, pp=2))
    serving.wait_for(lambda: "starting 4 ranks" in serving.stderr)
    serving.send(signal.SIGINT)
    assert serving.ended(20) == 0
    assert serving.state.phase == "stopped"
    assert serving.left() == []


def test_a_second_serve_is_refused(deploy, start):
    serving = start(deploy())
    serving.wait_for(lambda: "starting" in serving.stderr)
    with pytest.raises(ToolkitError, match=rf"already being served by process {serving.process.pid}\b"):
        serve(serving.deployment)
    with pytest.raises(ToolkitError, match=rf"already being served by process {serving.process.pid}\b"):
        serve(serving.deployment, detach=True)
    serving.wait_ready()


def test_a_taken_port_is_named_with_its_process(deploy, start):
    deployment = deploy()
    with socket.create_server(("127.0.0.1", deployment.serving.grpc_port)):
        serving = start(deployment)
        assert serving.ended(60) == 1
    port = deployment.serving.grpc_port
    assert f"serving.grpc_port: cannot listen on 127.0.0.1:{port}: taken by process {os.getpid()}" in serving.stderr
    assert serving.left() == []


def test_stop_wakes_a_suspended_supervisor(deploy, start, capsys):
    serving = start(deploy()).wait_ready()
    serving.send(signal.SIGSTOP)
    asked = time.monotonic()
    assert stop(serving.deployment).startswith(f"stopped process {serving.process.pid} in ")
    assert time.monotonic() - asked < 15
    assert (
        f"process {serving.process.pid} is suspended (SIGSTOP). It is woken (SIGCONT), so that it can drain"
        in capsys.readouterr().err
    )


def test_what_a_run_writes_is_for_its_user_alone(deploy, start):
    serving = start(deploy(pp=2)).wait_ready()
    run = serving.state.run
    paths = [*run.segments(), run.tmp, serving.deployment.run_dir, *serving.deployment.run_dir.glob("*.log")]
    assert len(paths) > 8
    assert [path for path in paths if path.stat().st_mode & 0o077] == []


def test_serving_goes_on_when_nothing_can_be_written(deploy, start):
    """Requests are answered, and the drain waits for them."""
    serving = start(deploy()).wait_ready()
    run_dir = serving.deployment.run_dir
    (run_dir / "state.json").unlink()
    for name in ("state.json", "state.partial"):
        (run_dir / name).mkdir()  # so that not even root can write it
    stream = Stream(serving.deployment, tokens=10)
    serving.wait_for(lambda: len(stream.received) >= 2)
    serving.send(signal.SIGTERM)
    assert serving.ended(20) == 0
    stream.join(30)
    assert len(stream.received) == 10
    assert f"{run_dir}: cannot be written, so toolkit status does not know that this run is draining" in serving.stderr
    assert "stopped: 1 request finished, none cut" in serving.stderr


def test_detach_status_and_stop(deploy, capfd):
    deployment = deploy(pp=2)
    assert status(deployment).phase == "stopped"
    assert stop(deployment) == "nothing was running"
    serve(deployment, detach=True)
    try:
        shown = capfd.readouterr()
        assert shown.out.startswith("ready: ") and "starting 2 ranks" in shown.err
        seen = status(deployment)
        assert (seen.phase, seen.ready, seen.ranks, seen.running) == ("ready", True, 2, 0)
        assert seen.pid not in (None, os.getpid())
        stream = Stream(deployment, tokens=10)
        deadline = time.monotonic() + 20
        while not stream.received and time.monotonic() < deadline:
            time.sleep(0.05)
        assert status(deployment).running == 1
    finally:
        outcome = stop(deployment)
    assert outcome.startswith(f"stopped process {seen.pid} in ") and "1 request finished, none cut" in outcome
    stream.join(30)
    assert len(stream.received) == 10
    seen = status(deployment)
    assert (seen.phase, seen.pid, seen.ready, seen.ranks) == ("stopped", None, False, 0)


def test_the_log_of_a_detached_server_stays_bounded(deploy):
    """It is made as large as it may get; nobody waits for a server to print so much."""
    deployment = deploy()
    log = deployment.run_dir / own_log.NAME
    serve(deployment, detach=True)
    try:
        os.truncate(log, MOST_BYTES)
        eventually(lambda: log.stat().st_size < MOST_BYTES, 60)
    finally:
        stop(deployment)
    assert older_of(log).stat().st_size == MOST_BYTES and older_of(log).read_bytes()[:1] != b"\0", "what it said before"
    assert "stopped: " in log.read_text() and "\0" not in log.read_text(), "it goes on at the new end"


ASKED = {signal.SIGINT: (130, "interrupted\n"), signal.SIGTERM: (1, "was asked to stop before it was ready\n")}


@pytest.mark.parametrize("number", ASKED)
def test_detach_that_is_asked_to_stop_leaves_nothing(deploy, number):
    deployment = deploy(pp=2)
    command = [sys.executable, "-m", "toolkit", "serve", "--detach", str(deployment.file)]
    serving = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while status(deployment).phase != "loading" and serving.poll() is None:
        time.sleep(0.05)
    serving.send_signal(number)
    errors = serving.communicate(timeout=30)[1]
    code, message = ASKED[number]
    assert serving.returncode == code and errors.endswith(message)
    assert (status(deployment).phase, status(deployment).pid) == ("stopped", None)


def test_detach_raises_what_went_wrong(deploy, capfd):
    deployment = deploy()
    with (
        socket.create_server(("127.0.0.1", deployment.serving.http_port)),
        pytest.raises(ToolkitError, match=r"serving\.http_port: cannot listen"),
    ):
        serve(deployment, detach=True)
    assert status(deployment).phase == "failed"
