"""Real groups of tritonserver and mpirun, whose models are trivial (tests/serve/models)."""

import http.client
import ipaddress
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest

from toolkit.errors import ToolkitError
from toolkit.serve import serve, status, stop
from toolkit.serve.health import Probe
from toolkit.serve.loopback import device_of, socket_of

pytestmark = pytest.mark.slow


class Stream(threading.Thread):
    """Reads one answer of 0.2 s a token over HTTP, and says how much of it arrived."""

    def __init__(self, deployment, tokens):
        super().__init__(daemon=True)
        self._port, self._tokens = deployment.serving.http_port, tokens
        self.received = []
        self.start()

    def run(self):
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        body = json.dumps({"text_input": "slow", "max_tokens": self._tokens})
        connection.request("POST", "/v2/models/tensorrt_llm_bls/generate_stream", body)
        try:
            for line in connection.getresponse():
                if line.startswith(b"data: "):
                    self.received.append(json.loads(line[6:])["text_output"])
        except (OSError, http.client.HTTPException):
            pass


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


def test_a_rank_that_cannot_load_is_named(deploy, start):
    deployment = deploy(tp=2, pp=2)
    broken = deployment.repository_dir / "tensorrt_llm" / "broken2"
    broken.write_text("rank2.engine has no tensor named transformer.ln_f.weight")
    (broken.parent / "sleep0").touch()  # as a real leader, which is not ready before its ranks are
    serving = start(deployment)
    assert serving.ended(60) == 1
    assert "rank 2 exited with code 1; all 4 ranks were ended" in serving.stderr
    assert "rank2.engine has no tensor named" in serving.stderr
    assert serving.left() == []


def test_a_rank_that_triton_gave_up_on_a_busy_machine(deploy, start):
    deployment = deploy(tp=2, pp=1)
    broken = deployment.repository_dir / "tensorrt_llm" / "broken1"
    broken.write_text("terminate called after throwing an instance of 'boost::interprocess::lock_exception'")
    (broken.parent / "sleep0").touch()
    serving = start(deployment)
    serving.wait_for(lambda: "Starting again in 20 s" in serving.stderr)
    serving.send(signal.SIGTERM)  # in the pause
    assert serving.ended(60) == 1
    again = [line for line in serving.stderr.splitlines() if "Starting again in" in line]
    assert all("On a busy machine Triton gives up a model" in line for line in again)
    assert [line.split()[-2] for line in again] == ["1", "5", "20"]
    assert serving.left() == []


def test_a_rank_that_triton_gave_up_once(deploy, start):
    deployment = deploy(tp=2, pp=1)
    broken = deployment.repository_dir / "tensorrt_llm" / "broken1"
    broken.write_text("terminate called after throwing an instance of 'boost::interprocess::lock_exception'")
    (broken.parent / "sleep0").touch()
    serving = start(deployment)
    serving.wait_for(lambda: "starting 2 ranks" in serving.stderr)
    broken.unlink()  # the run has a copy of its own
    (broken.parent / "sleep0").unlink()
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
