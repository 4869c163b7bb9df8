import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.ports import free_ports
from toolkit import repository
from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.config.sections import PORTS
from toolkit.files import artifacts
from toolkit.serve.janitor import Member, members
from toolkit.serve.state import ServerState, read_state

MODELS = Path(__file__).parent / "models"


@pytest.fixture
def deploy(tmp_path: Path, tiny_llama: Path) -> Callable[..., Deployment]:
    """Makes a deployment of tp x pp ranks whose models need no engine (tests/serve/models)."""

    def make(tp: int = 1, pp: int = 1, replicas: int = 1, **serving: object) -> Deployment:
        ports = dict(zip(PORTS, free_ports(replicas=replicas), strict=True))
        file = tmp_path / "trial.yaml"
        content = {
            "engine": "rehearsal",
            "model": {"path": str(tiny_llama)},
            "parallel": {"tp": tp, "pp": pp, "replicas": replicas},
            "limits": {"max_sequences": 8, "max_num_tokens": 256, "max_seq_len": 256},
            "hardware": {"gpu": "none"},
            "serving": {**ports, "drain_timeout_s": 20, "startup_timeout_s": 60, **serving},
            "output": str(tmp_path / "out"),
        }
        file.write_text(yaml.safe_dump(content))
        deployment = load_deployment(file)
        write_engine_and_repository(deployment)
        return deployment

    return make


def write_engine_and_repository(deployment: Deployment) -> None:
    artifacts.write_stage(
        deployment.engine_dir,
        "engine",
        inputs={},
        settings={"engine": "rehearsal"},
        versions={},
        write=lambda folder: (folder / "config.json").write_text("{}") and None,
    )
    engine = artifacts.read_lock(deployment.engine_dir)
    assert engine

    def write_repository(folder: Path) -> None:
        shutil.copytree(MODELS, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "ensemble" / "1").mkdir()

    artifacts.write_stage(
        deployment.repository_dir,
        "repository",
        inputs={"engine": engine.digest},
        settings=repository.settings(deployment),
        versions={},
        write=write_repository,
    )


class Serving:
    """`toolkit serve` of a deployment in a process of its own, whose signals and exit code are real."""

    def __init__(self, deployment: Deployment, folder: Path, prelude: str = "", python: str = sys.executable) -> None:
        self.deployment = deployment
        self._folder = folder
        code = f"{prelude}\nimport sys; from toolkit.serve.__main__ import main; sys.exit(main(*sys.argv[1:]))"
        self.process = subprocess.Popen(
            [python, "-c", code, str(deployment.file), deployment.engine],
            stdout=(folder / "stdout").open("w"),
            stderr=(folder / "stderr").open("w"),
        )

    @property
    def stdout(self) -> str:
        return (self._folder / "stdout").read_text()

    @property
    def stderr(self) -> str:
        return (self._folder / "stderr").read_text()

    @property
    def state(self) -> ServerState:
        state = read_state(self.deployment)
        assert state
        return state

    def wait_ready(self, timeout_s: float = 60) -> "Serving":
        return self.wait_for(lambda: "ready: " in self.stdout, timeout_s)

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 30) -> "Serving":
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, self.stderr
            assert time.monotonic() < deadline, self.stderr
            time.sleep(0.05)
        return self

    def member(self, rank: int | None, model: str = "") -> Member:
        """The process of a rank, of one of its models, or of mpirun (None)."""
        return next(member for member in self.members() if (member.rank, member.model) == (rank, model))

    def members(self) -> list[Member]:
        return members(self.state.run)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ended(self, timeout_s: float) -> int:
        """The exit code; fails when it takes longer than `timeout_s`."""
        return self.process.wait(timeout_s)

    def left(self) -> list[object]:
        """What is left of the run: processes, shared-memory segments, temporary files."""
        run = self.state.run
        return [*members(run), *run.segments(), *([run.tmp] if run.tmp.exists() else [])]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Serving]]:
    started: list[Serving] = []

    def start_one(deployment: Deployment, prelude: str = "", python: str = sys.executable) -> Serving:
        folder = tmp_path / f"serving{len(started)}"
        folder.mkdir()
        started.append(Serving(deployment, folder, prelude, python))
        return started[-1]

    yield start_one
    for serving in started:
        serving.process.kill()
        serving.process.wait()
