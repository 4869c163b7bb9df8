"""Two nodes move to another kind of engine in turn, behind the doors of both, and one command takes both back.

Nodes are network namespaces with a real etcd between them. As in test_migrate_apply.py, rehearsed engines move to
engine: pytorch with a stand-in for the LLM API.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("dynamo.llm", reason="needs the extra gateway")
pytest.importorskip("envoy", reason="needs the extra gateway")

import openai

from tests import commands
from tests.llm_api import make_repository, put_tritonserver_on_path
from tests.monitor.test_real import pace
from tests.up.conftest import write_and_build
from tests.up.namespaces import (
    ETCD_PORT,
    HUB,
    TOOLKIT,
    Network,
    RealEtcd,
    address,
    make_certificates,
    missing,
)
from tests.up.test_apply import MODEL, TOKENS
from tests.waiting import eventually
from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.gateway.door import read_door
from toolkit.up.candidate import make

LONG = "LONG_TESTS"
MISSING = missing() or ("" if os.environ.get(LONG) else f"takes 2.5 minutes of processor time: set {LONG}=1")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=MISSING)]
NODES = (1, 2)


@dataclass
class Fleet:
    """The nodes, each with two replicas."""

    network: Network
    files: dict[int, Path]
    clients: ThreadPoolExecutor
    processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def ready(self, number: int) -> bool:
        assert self.processes[number].poll() is None, self.log(number)
        state = read_door(load_deployment(self.files[number]))
        return state is not None and state.phase == "ready"

    def log(self, number: int) -> str:
        return (self.files[number].parent / "up.log").read_text()

    def engine(self, number: int) -> str:
        state = read_door(load_deployment(self.files[number]))
        assert state
        return state.engine

    def migrate(self, number: int, *options: str) -> subprocess.CompletedProcess[str]:
        return commands.toolkit("migrate", self.files[number], *options)


@pytest.fixture
def fleet(tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    made = write_and_build(
        tmp_path,
        tiny_llama,
        "made",
        parallel={"replicas": 2},
        limits={"max_sequences": 16, "max_num_tokens": 256, "max_seq_len": 96, "max_queue_size": 64},
        hardware={},
    )
    pace(load_deployment(made).repository_dir / MODEL)
    tls, files = make_certificates(tmp_path), {}
    for number in NODES:
        content = yaml.safe_load(made.read_text())
        door = {"host": address(number), "port": 8080, "model_name": "llama", "interface": "eth0", "node_tls": tls}
        content["gateway"] = {**door, "discovery": f"etcd://{HUB}:{ETCD_PORT}"}
        content["monitoring"] |= {"traffic": "kept.jsonl"}
        content["recovery"] = {"canary_s": 20, "backoff_s": 0.2}
        content["output"] = "made"
        (tmp_path / str(number)).mkdir()
        files[number] = tmp_path / str(number) / "llama.yaml"
        files[number].write_text(yaml.safe_dump(content))
        files[number].with_name("twin.yaml").write_text(yaml.safe_dump({**content, "engine": "pytorch"}))
        shutil.copytree(tmp_path / "made", files[number].parent / "made")

    def made_with_the_stand_in(*arguments: Any) -> Deployment:
        candidate = make(*arguments)
        make_repository(candidate)
        return candidate

    monkeypatch.setattr("toolkit.up.control.make", made_with_the_stand_in)
    put_tritonserver_on_path(tmp_path, monkeypatch)
    monkeypatch.setenv("LLM_DOUBLE_STEP_S", "0.05")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, ",".join((os.environ.get(name, ""), HUB, *map(address, NODES))))
    with Network(len(NODES)) as network:
        etcd = RealEtcd(lambda command: network.start("hub", command, tmp_path / "etcd.log"), tmp_path)
        found = Fleet(network, files, network.threads("hub", 8))
        try:
            etcd.start("--client-cert-auth")
            answers = lambda: socket.create_connection((HUB, ETCD_PORT)).close() is None  # noqa: E731
            found.clients.submit(eventually, answers).result()
            for number in NODES:
                log = files[number].parent / "up.log"
                found.processes[number] = network.start(number, [*TOOLKIT, "up", str(files[number])], log)
            eventually(lambda: all(found.ready(number) for number in NODES), 240)
            yield found
        finally:
            for process in found.processes.values():
                process.send_signal(signal.SIGTERM)
            for process in found.processes.values():
                process.wait(120)
            etcd.kill()
            found.clients.shutdown()


def ask(number: int, over: threading.Event, answers: Counter[str]) -> None:
    """A client of the door of a node."""
    url = f"http://{address(number)}:8080/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120) as client:
        while not over.is_set():
            more: dict[str, Any] = {"max_tokens": TOKENS, "temperature": 0, "stream": True}
            try:
                pieces = client.completions.create(model="llama", prompt="Shall I", **more)
                answers["".join(piece.choices[0].text for piece in pieces if piece.choices)] += 1
            except openai.APIError as error:
                answers[f"error: {error}"] += 1


def test_nodes_move_in_turn_and_one_command_takes_them_back(fleet):
    answers, over = Counter[str](), threading.Event()
    running = [fleet.clients.submit(ask, number, over, answers) for number in (*NODES, *NODES)]
    try:
        eventually(lambda: sum(answers.values()) > 8, 120)
        for number, expected in ((1, "1 of 2 nodes moved\nnext: the same command on 10.77.0.2"), (2, "2 of 2 nodes")):
            twin = fleet.files[number].with_name("twin.yaml")
            moved = fleet.migrate(number, "--apply", "--with", str(twin))
            assert moved.returncode == 0, moved.stdout + moved.stderr
            assert expected in moved.stderr and moved.stdout.startswith("moved: "), moved.stdout + moved.stderr
        assert [fleet.engine(number) for number in NODES] == ["pytorch", "pytorch"]
        status = commands.toolkit("status", fleet.files[1]).stdout
        assert "node 10.77.0.2: all since" in status and "moved to another kind of engine" in status
        back = fleet.migrate(2, "--rollback")
        assert back.returncode == 0 and "10.77.0.1 goes back" in back.stderr, back.stdout + back.stderr
        assert [fleet.engine(number) for number in NODES] == ["rehearsal", "rehearsal"]
    finally:
        over.set()
        for client in running:
            client.result()
    assert len(answers) == 1, answers
