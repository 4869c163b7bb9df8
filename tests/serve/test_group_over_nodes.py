"""A pipeline of two stages over two nodes, with a real mpirun, Triton and rehearsal.

A node is a network namespace with an address, processes, a host name, a /dev/shm and a folder for temporary files of
its own. Only the disk with model and engine is shared. An agent in place of ssh enters it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import psutil
import pytest
import yaml

from tests.up.conftest import write_and_build
from tests.up.namespaces import TOOLKIT, Network, address, kill_group, missing
from tests.waiting import eventually
from toolkit.config.load import load_deployment

pytest.importorskip("pytriton", reason="needs the extra rehearsal")
MISSING = missing((("nsenter", "util-linux"), ("unshare", "util-linux"), ("ps", "procps")))
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=MISSING)]
FIRST, SECOND = 1, 2
GENERATE = {"text_input": "Shall I compare thee to", "max_tokens": 24}
AGENT = """#!{python}
# In place of ssh: AGENT HOST COMMAND. The test enters the node; what the command prints comes here.
import socket, sys
with socket.socket(socket.AF_UNIX) as test:
    test.connect("{door}")
    socket.send_fds(test, [" ".join(sys.argv[1:]).encode()], [0, 1, 2])
    sys.exit(int(test.recv(8) or b"255"))
"""
UNSHARE = ("unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--uts")
BOOT = "hostname node{number} && mount -t tmpfs shm /dev/shm && mount -t tmpfs tmp {temporary} && exec sleep infinity"
OF_A_LOOK = {"sleep", "ps", "sh", "env"}


class Nodes:
    """Nodes, and what runs on them."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network, self.folder = network, folder
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        self.agent, self.first = folder / "agent", dict[str, psutil.Process]()
        self.processes: list[subprocess.Popen[bytes]] = []
        self._door = socket.socket(socket.AF_UNIX)
        self._door.bind(str(folder / "door"))
        self._door.listen()
        self.agent.write_text(AGENT.format(python=sys.executable, door=folder / "door"))
        self.agent.chmod(0o755)
        threading.Thread(target=self._accept, daemon=True).start()

    def boot(self, number: int) -> psutil.Process:
        """Start a node. With its first process, which this returns, all of its processes end."""
        boot = BOOT.format(number=number, temporary=self.temporary)
        node = self.network.start(number, [*UNSHARE, "sh", "-c", boot], self.folder / f"node{number}.log")
        self.processes.append(node)
        eventually(lambda: first_process(node).name() == "sleep")
        self.first[address(number)] = first_process(node)
        return first_process(node)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                caller, _ = self._door.accept()
                threading.Thread(target=self._enter, args=(caller,), daemon=True).start()

    def _enter(self, caller: socket.socket) -> None:
        """Run what an agent asks for, with its stdin, stdout and stderr."""
        with caller:
            text, descriptors, *_ = socket.recv_fds(caller, 1 << 16, 3)
            host, _, command = text.decode().partition(" ")
            stdin, stdout, stderr = descriptors
            process = subprocess.Popen(self.inside(host, command), stdin=stdin, stdout=stdout, stderr=stderr)
            for descriptor in descriptors:
                os.close(descriptor)
            with contextlib.suppress(OSError):  # the agent may be gone
                caller.send(str(process.wait() % 256).encode())

    def inside(self, host: str, command: str) -> list[str]:
        """A command on a node, with nothing of our environment, as a log-in has it."""
        enter = ["nsenter", "--target", str(self.first[host].pid), "--pid", "--mount", "--net", "--uts", "--"]
        kept = [f"{name}={os.environ[name]}" for name in ("PATH", "HOME")]
        return [*enter, "env", "-i", *kept, f"TMPDIR={self.temporary}", "sh", "-c", command]

    def run(self, number: int, *command: str, log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as output:
            full = self.inside(address(number), shlex.join(command))
            process = subprocess.Popen(full, stdout=output, stderr=output, start_new_session=True)
        self.processes.append(process)
        return process

    def running(self, number: int) -> list[str]:
        """The names of what runs on a node, without what looks."""
        command = self.inside(address(number), "ps -e -o stat=,comm=")
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
        return [name for state, name in lines if not state.startswith("Z") and name not in OF_A_LOOK]

    def off(self) -> None:
        for process in self.processes:
            kill_group(process)
        self._door.close()


def first_process(node: subprocess.Popen[bytes]) -> psutil.Process:
    """The process 1 of a node: the child of `unshare`."""
    return psutil.Process(node.pid).children(recursive=True)[-1]


class Group:
    """`toolkit serve` on the first node."""

    def __init__(self, nodes: Nodes, file: Path, number: int = FIRST) -> None:
        self.nodes, self.number = nodes, number
        self.port = load_deployment(file).serving.http_port
        self._log = nodes.folder / f"serve{len(nodes.processes)}.log"
        self.process = nodes.run(number, *TOOLKIT, "serve", str(file), log=self._log)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def answer(self) -> str:
        """The text of a greedy request, once the group is ready."""
        while "ready: http" not in self.log:
            assert self.process.poll() is None, self.log
            time.sleep(0.1)
        with self.nodes.network.threads(self.number, 1) as there:
            return there.submit(generate, self.port).result()


def generate(port: int) -> str:
    body = json.dumps(GENERATE).encode()
    with urlopen(Request(f"http://127.0.0.1:{port}/v2/models/ensemble/generate", body), timeout=120) as reply:
        return str(json.load(reply)["text_output"])


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    with Network(2) as network:
        made = Nodes(network, tmp_path)
        try:
            yield made
        finally:
            made.off()


@pytest.fixture
def file(tmp_path: Path, tiny_llama: Path) -> Path:
    """Two stages on one node, built."""
    return write_and_build(tmp_path, tiny_llama, "made", parallel={"tp": 1, "pp": 2})


def over_two_nodes(nodes: Nodes, file: Path) -> Path:
    """The same engine over both nodes."""
    content = yaml.safe_load(file.read_text())
    content["parallel"]["nodes"] = 2
    content["cluster"] = {"hosts": [address(FIRST), address(SECOND)], "launch_agent": str(nodes.agent)}
    content["output"] = str(file.parent / "over")
    content["recovery"] = {"canary_s": 60}  # so that the silence of a node is what ends the group
    shutil.copytree(file.parent / "made", file.parent / "over")
    over = file.parent / "over.yaml"
    over.write_text(yaml.safe_dump(content))
    return over


def test_a_group_over_two_nodes(nodes: Nodes, file: Path) -> None:
    """It answers as on one node. A node whose cable is out, or that is killed, ends it: said, and with nothing left."""
    over = over_two_nodes(nodes, file)
    nodes.boot(FIRST)
    second = nodes.boot(SECOND)
    alone = Group(nodes, file)
    text = alone.answer()
    assert len(text) > len(GENERATE["text_input"]) + 20
    assert nodes.run(FIRST, *TOOLKIT, "stop", str(file), log=file.parent / "stop.log").wait() == 0
    assert alone.process.wait() == 0

    group = Group(nodes, over)
    assert group.answer() == text
    assert "tritonserver" in nodes.running(SECOND)
    nodes.network.cut(SECOND)
    assert group.process.wait() == 1
    assert f"node {address(SECOND)} gave no sign of life for 10 s; all 2 ranks were ended" in group.log
    eventually(lambda: not nodes.running(FIRST), 120)
    eventually(lambda: not nodes.running(SECOND), 120)
    nodes.network.mend(SECOND)

    group = Group(nodes, over)
    assert group.answer() == text
    second.kill()
    assert group.process.wait() == 1
    assert f"node {address(SECOND)} ended; all 2 ranks were ended" in group.log
    eventually(lambda: not nodes.running(FIRST), 120)
