"""Three nodes in network namespaces: two with a real Triton, one only a door, and a real etcd between them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("dynamo.llm", reason="needs the extra gateway")
pytest.importorskip("envoy", reason="needs the extra gateway")

import numpy as np
import openai
import psutil
import tritonclient.grpc

from tests.gateway.test_envoy import ask
from tests.up.conftest import write_and_build
from tests.up.namespaces import (
    ETCD_PORT,
    HUB,
    TOOLKIT,
    Network,
    RealEtcd,
    address,
    kill_group,
    make_certificates,
    missing,
)
from tests.waiting import eventually as wait_for
from toolkit.config.load import load_deployment
from toolkit.gateway.door import PartState, read_door

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]
LIMIT_S = 240
"""For everything that is waited for: a machine of CI may stand still for seconds."""
ALL, WORKER, FRONT = 1, 2, 3
ROLES = {ALL: "all", WORKER: "worker", FRONT: "front"}
PROMPT = "Shall I compare thee to"
TOKENS = 250
URL = f"http://{address(FRONT)}:8080"


def eventually(condition: Callable[[], object]) -> None:
    wait_for(condition, LIMIT_S)


@dataclass
class Fleet:
    """The nodes, and clients in the network between them."""

    network: Network
    etcd: RealEtcd
    files: dict[int, Path]
    clients: ThreadPoolExecutor
    processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def up(self, number: int) -> None:
        log = self.files[number].parent / "up.log"
        self.processes[number] = self.network.start(number, [*TOOLKIT, "up", str(self.files[number])], log)

    def log(self, number: int) -> str:
        return (self.files[number].parent / "up.log").read_text()

    def phase(self, number: int) -> str:
        assert self.processes[number].poll() is None, self.log(number)
        state = read_door(load_deployment(self.files[number]))
        return state.phase if state else "not up"

    def parts(self, number: int) -> dict[str, PartState]:
        state = read_door(load_deployment(self.files[number]))
        return {part.name: part for part in state.parts} if state else {}

    def status(self, number: int) -> subprocess.CompletedProcess[str]:
        command = [*TOOLKIT, "status", str(self.files[number])]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def serves(self, number: int) -> bool:
        """Whether requests of Triton's protocol reach this node through the door of the other."""
        log = self.files[FRONT].parent / "front" / "run" / "access.jsonl"
        before = len(log.read_text().splitlines())
        answers = [self.clients.submit(ask, URL, "/v2/models/ensemble/generate", GENERATE) for _ in range(4)]
        assert {answer.result(LIMIT_S)[0] for answer in answers} == {200}
        eventually(lambda: len(log.read_text().splitlines()) >= before + 4)
        lines = [json.loads(line) for line in log.read_text().splitlines()[before:]]
        return any(line["upstream"].startswith(f"{address(number)}:") for line in lines)

    def whole(self) -> bool:
        """Every node is ready, and all replicas are known at the door."""
        known = self.parts(FRONT)
        ready = all(self.phase(number) == "ready" for number in ROLES)
        return ready and all(known[f"node {address(number)}"].message == "1 replica ready" for number in (ALL, WORKER))


GENERATE = {"text_input": PROMPT, "max_tokens": 4}


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("nodes")
    gateway = {
        "port": 8080,
        "model_name": "llama",
        "discovery": f"etcd://{HUB}:{ETCD_PORT}",
        "interface": "eth0",
        "node_tls": make_certificates(folder),
    }
    files: dict[int, Path] = {}
    made = write_and_build(folder, tiny_llama, "made", gateway={"port": 8080}, serving={"startup_timeout_s": 120})
    for number, role in ROLES.items():
        content = yaml.safe_load(made.read_text())
        content["gateway"] = {**gateway, "host": address(number), "role": role}
        content["recovery"] = {"canary_s": 30, "backoff_s": 0.2}
        content["output"] = role
        (folder / str(number)).mkdir()
        files[number] = folder / str(number) / "llama.yaml"
        files[number].write_text(yaml.safe_dump(content))
        if role != "front":
            shutil.copytree(folder / "made", files[number].parent / role)
    with Network(3) as network, pytest.MonkeyPatch.context() as patch:
        for name in ("no_proxy", "NO_PROXY"):
            patch.setenv(name, ",".join((os.environ.get(name, ""), HUB, *map(address, ROLES))))
        etcd = RealEtcd(lambda command: network.start("hub", command, folder / "etcd.log"), folder)
        fleet = Fleet(network, etcd, files, network.threads("hub", 16))
        try:
            etcd.start("--client-cert-auth")
            port = fleet.clients.submit(eventually, lambda: socket.create_connection((HUB, ETCD_PORT)).close() is None)
            port.result()
            for number in ROLES:
                fleet.up(number)
            yield fleet
        finally:
            for process in fleet.processes.values():
                process.send_signal(signal.SIGTERM)
            for process in fleet.processes.values():
                process.wait(LIMIT_S)
            etcd.kill()
            fleet.clients.shutdown()


@pytest.fixture
def fleet(started: Fleet) -> Iterator[Fleet]:
    """It is whole before and after each test."""
    eventually(started.whole)
    yield started
    eventually(started.whole)


def stream(tokens: int = TOKENS, begun: threading.Event | None = None) -> str:
    """The whole text of a stream through the door of the node without replicas. Raises for one that is cut.

    `begun` is set at its first piece.
    """
    with openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, timeout=LIMIT_S) as client:
        more = {"extra_body": {"ignore_eos": True}, "temperature": 0, "stream": True}
        pieces = client.completions.create(model="llama", prompt=PROMPT, max_tokens=tokens, **more)
        text = ""
        for piece in pieces:
            text += piece.choices[0].text if piece.choices else ""
            if begun and text:
                begun.set()
        return text


@pytest.fixture(scope="module")
def quiet(started: Fleet) -> str:
    """The text of a stream that nothing disturbs."""
    eventually(started.whole)
    return started.clients.submit(stream).result(LIMIT_S)


def streams_during(fleet: Fleet, fault: Any) -> Counter[str]:
    """The texts of eight streams, in whose middle this happens."""
    begun = [threading.Event() for _ in range(8)]
    running = [fleet.clients.submit(stream, TOKENS, event) for event in begun]
    for event in begun:
        assert event.wait(LIMIT_S)
    fault()
    return Counter(one.result(LIMIT_S) for one in running)


def test_a_door_serves_what_is_on_other_nodes(fleet, quiet):
    assert len(quiet) > TOKENS / 2
    eventually(lambda: fleet.serves(ALL))
    eventually(lambda: fleet.serves(WORKER))
    assert fleet.clients.submit(_ready_by_grpc).result(LIMIT_S)
    shown = fleet.status(FRONT)
    assert shown.returncode == 0 and "etcd: running" in shown.stdout
    assert f"node {address(WORKER)}: worker since" in shown.stdout and "1 replica ready" in shown.stdout


def _ready_by_grpc() -> bool:
    client = tritonclient.grpc.InferenceServerClient(URL.removeprefix("http://"))
    texts: list[str] = []
    client.start_stream(lambda result, error: texts.append(str(error) if error else ""))
    tensors = {
        "text_input": (np.array([[PROMPT]], object), "BYTES"),
        "max_tokens": (np.array([[4]], np.int32), "INT32"),
    }
    inputs = [tritonclient.grpc.InferInput(name, list(values.shape), kind) for name, (values, kind) in tensors.items()]
    for tensor, (values, _) in zip(inputs, tensors.values(), strict=True):
        tensor.set_data_from_numpy(values)
    client.async_stream_infer("ensemble", inputs)
    client.stop_stream()
    return client.is_server_ready() and not any(texts) and bool(texts)


def test_nobody_is_let_in_without_a_certificate(fleet):
    """Each port on the nodes' network but the door itself: Triton's, and those of Dynamo, which take free ones."""
    for number in (ALL, WORKER):
        listens = [where for where in listening(fleet.processes[number].pid) if not where[0].startswith("127.")]
        assert {host for host, _ in listens} == {address(number)}, "nothing is open on every address"
        ports = {port for _, port in listens} - {8080}
        assert {8000, 8001} < ports, "and the worker's"
        for port in ports:
            assert fleet.clients.submit(answer_without_certificate, address(number), port).result(LIMIT_S) == b""


def listening(pid: int) -> list[tuple[str, int]]:
    """Where processes in the namespace of this one listen, over IPv4 and IPv6; what is bound to the device lo is not
    reached from outside."""
    found = subprocess.run(
        ["nsenter", "--net", f"--target={pid}", "ss", "--listening", "--tcp", "--numeric", "--no-header"],
        capture_output=True,
        text=True,
        check=True,
    )
    places = [line.split()[3].rpartition(":") for line in found.stdout.splitlines()]
    outside = [(host.strip("[]").removeprefix("::ffff:"), int(port)) for host, _, port in places if "%lo" not in host]
    return outside


def answer_without_certificate(host: str, port: int) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection((host, port), timeout=10) as plain:
        try:
            with context.wrap_socket(plain) as connection:
                connection.sendall(b"GET /v2/health/ready HTTP/1.0\r\n\r\n")
                return connection.recv(64)
        except (ssl.SSLError, ConnectionError):
            return b""


def test_a_node_that_dies_costs_no_stream_and_one_that_joins_serves(fleet, quiet):
    assert streams_during(fleet, lambda: kill_group(fleet.processes[WORKER])) == {quiet: 8}
    eventually(lambda: fleet.network.empty(WORKER))
    fleet.up(WORKER)  # etcd may still believe that it is there
    assert fleet.clients.submit(stream).result(LIMIT_S) == quiet
    eventually(lambda: fleet.phase(WORKER) == "ready")
    eventually(lambda: fleet.serves(WORKER))


def test_a_node_that_falls_silent_costs_no_stream_and_comes_back(fleet, quiet):
    """Nor a request of Triton's that has no answer yet."""
    asked = []

    def silent() -> None:
        fleet.network.cut(WORKER)
        asked.extend(fleet.clients.submit(ask, URL, "/v2/models/ensemble/generate", GENERATE) for _ in range(8))

    assert streams_during(fleet, silent) == {quiet: 8}
    assert {one.result(LIMIT_S)[0] for one in asked} == {200}
    eventually(lambda: f"node {address(WORKER)}" not in fleet.parts(FRONT))
    assert fleet.clients.submit(stream).result(LIMIT_S) == quiet
    fleet.network.mend(WORKER)
    eventually(lambda: fleet.serves(WORKER))


def test_a_front_end_rests_again_after_nodes_have_died(fleet):
    """By itself Dynamo would keep a core busy for each of them, for 300 to 450 s."""
    front_end = psutil.Process(fleet.parts(FRONT)["front end"].pid)

    def rests() -> bool:
        before = sum(front_end.cpu_times()[:2])
        time.sleep(1)
        return sum(front_end.cpu_times()[:2]) - before < 0.3

    wait_for(rests, 90)


def test_while_etcd_is_away_everything_is_served(fleet, quiet):
    fleet.etcd.kill()
    eventually(lambda: fleet.parts(FRONT)["etcd"].phase == "away")
    end = time.monotonic() + AWAY_S
    while time.monotonic() < end:
        assert quiet.startswith(fleet.clients.submit(stream, 50).result(LIMIT_S)[:50])
        assert fleet.serves(ALL) or fleet.serves(WORKER)
    assert fleet.phase(FRONT) == "ready"
    fleet.etcd.start("--client-cert-auth")
    eventually(lambda: fleet.parts(FRONT)["etcd"].phase == "running")
    assert fleet.clients.submit(stream).result(LIMIT_S) == quiet


AWAY_S = 12
"""Longer than nodes stay in an etcd that does not hear of them."""


def test_a_node_that_leaves_finishes_its_requests(started, quiet):
    """The last test: it does not come back."""
    fleet = started
    leave = lambda: fleet.processes[WORKER].send_signal(signal.SIGTERM)  # noqa: E731
    assert streams_during(fleet, leave) == {quiet: 8}
    assert fleet.processes[WORKER].wait(LIMIT_S) == 0, fleet.log(WORKER)
