"""Two replicas of a small model behind a door, by `toolkit up` in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import commands
from tests.ports import free_port, free_ports
from tests.waiting import eventually
from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.config.sections import PORTS
from toolkit.gateway.door import PartState, read_door, up_pid
from toolkit.serve.janitor import Member, members, of_ranks
from toolkit.serve.state import read_state


class Up:
    """A deployment, and the `toolkit up` that runs it: `arguments` are those of the Python that does."""

    def __init__(self, file: Path, arguments: Sequence[str] = ("-m", "toolkit", "up")) -> None:
        self.file, self._arguments = file, arguments
        self.process: subprocess.Popen[str] | None = None

    @property
    def deployment(self) -> Deployment:
        return load_deployment(self.file)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.deployment.gateway.port}"

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        log = (self.file.parent / "up.log").open("w")
        self.process = subprocess.Popen(
            [sys.executable, *self._arguments, str(self.file)], stdout=log, stderr=log, text=True
        )
        self.wait_ready()

    def wait_ready(self) -> None:
        eventually(lambda: self.phase == "ready" or self._ended(), 120)

    def _ended(self) -> bool:
        assert self.process is None or self.process.poll() is None, (self.file.parent / "up.log").read_text()
        return False

    @property
    def phase(self) -> str:
        state = read_door(self.deployment)
        return state.phase if state else "not up"

    def part(self, name: str) -> PartState:
        state = read_door(self.deployment)
        assert state
        return next(part for part in state.parts if part.name == name)

    def ranks(self, replica: int) -> list[Member]:
        """Its ranks' servers."""
        state = read_state(self.deployment.per_replica()[replica])
        assert state
        return sorted(of_ranks(members(state.run)), key=lambda member: member.rank or 0)

    def events(self) -> list[dict[str, Any]]:
        lines = (self.deployment.output / "run" / "events.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def end(self) -> None:
        if pid := up_pid(self.deployment):
            os.kill(pid, signal.SIGTERM)
            eventually(lambda: up_pid(self.deployment) is None, 90)


def write_and_build(folder: Path, model: Path, name: str, **changes: Any) -> Path:
    """The YAML of a deployment that is built."""
    replicas = changes.get("parallel", {}).get("replicas", 1)
    content = {
        "engine": "rehearsal",
        "model": {"path": str(model)},
        "limits": {"max_sequences": 16, "max_num_tokens": 256, "max_seq_len": 512, "max_queue_size": 16},
        "hardware": {"gpu": "none"},
        "serving": {**dict(zip(PORTS, free_ports(replicas=replicas), strict=True)), "startup_timeout_s": 120},
        "gateway": {"port": free_port(), "model_name": "llama"},
        "recovery": {"canary_s": 3, "backoff_s": 0.2},
        "monitoring": {"exporter": False, "prometheus": "off"},
        "output": str(folder / name),
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({**content, **changes}))
    for command in ("build", "repo"):
        done = commands.toolkit(command, file)
        assert done.returncode == 0, done.stderr
    return file


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    return write_and_build(tmp_path_factory.mktemp("up"), tiny_llama, "pair", parallel={"replicas": 2})


@pytest.fixture(scope="module")
def started(made: Path) -> Iterator[Up]:
    running = Up(made)
    running.start()
    yield running
    running.end()


@pytest.fixture
def up(started: Up) -> Iterator[Up]:
    """It must be well before and after each test."""
    started.wait_ready()
    yield started
    started.wait_ready()
