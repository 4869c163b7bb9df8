"""`toolkit serve` with engine: tensorrt, from the YAML to the last process, around doubles of what needs GPUs.

mpirun is real. tritonserver, docker and nvidia-smi are the doubles; what is checked before a start has its own tests.
"""

import http.client
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.ports import free_ports
from tests.serve.conftest import Serving
from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.machine.limits import STACK_BYTES
from toolkit.serve import dry_run, status
from toolkit.serve.janitor import Member
from toolkit.serve.mpirun import Mpirun

HERE = Path(__file__).parent
RECORDED = HERE.parent / "doctor" / "recorded"
pytestmark = pytest.mark.slow
UNCHECKED = "import toolkit.serve.preflight as p; p.check = lambda deployment: None"


@pytest.fixture
def node(tmp_path, monkeypatch) -> Path:
    """A PATH with the doubles on it, before what is there. GPUs 0 and 4, 1 and 5 and so on are joined by NVLink."""
    folder = tmp_path / "bin"
    folder.mkdir()
    table = (RECORDED / "h100-pcie-bridges.txt").read_text()
    (folder / "topology.txt").write_text(re.sub(r"\t[01]\t\tN/A", "\tN/A\t\tN/A", table))
    image = folder / "image"
    image.mkdir()
    server = f"#!{sys.executable}\n" + (HERE / "tritonserver_double.py").read_text()
    for path, text in {
        folder / "nvidia-smi": f'#!/bin/sh\ntest "$*" = "topo -m" && cat {folder}/topology.txt\n',
        folder / "docker": f"#!{sys.executable}\n" + (HERE / "docker_double.py").read_text(),
        folder / "tritonserver": server,
        image / "tritonserver": server,
        folder / "trtllmExecutorWorker": server,
        image / "trtllmExecutorWorker": server,
    }.items():
        path.write_text(text)
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return folder


@pytest.fixture
def make(tmp_path, tiny_llama, node) -> Callable[..., Deployment]:
    """make(runtime, **serving) -> Deployment of PP2 x TP2, with what the double reads of repository and engine."""

    def load(runtime: object = "host", **serving: object) -> Deployment:
        ports = dict(zip(("http_port", "grpc_port", "metrics_port"), free_ports(), strict=True))
        content = {
            "engine": "tensorrt",
            "model": {"path": str(tiny_llama)},
            "parallel": {"tp": 2, "pp": 2},
            "limits": {"max_sequences": 8, "max_num_tokens": 256, "max_seq_len": 256},
            "runtime": runtime,
            "serving": {**ports, "drain_timeout_s": 20, **serving},
            "output": str(tmp_path / "out"),
        }
        (tmp_path / "trial.yaml").write_text(yaml.safe_dump(content))
        deployment = load_deployment(tmp_path / "trial.yaml")
        shutil.rmtree(deployment.output, ignore_errors=True)
        deployment.engine_dir.mkdir(parents=True)
        config = {"version": "1.2.1", "pretrained_config": {"mapping": {"world_size": 4}}}
        (deployment.engine_dir / "config.json").write_text(json.dumps(config))
        (deployment.engine_dir / "rank0.engine").write_bytes(b"x" * 2000)
        (deployment.repository_dir / "tensorrt_llm").mkdir(parents=True)
        pbtxt = f'parameters {{ key: "gpt_model_path" value {{ string_value: "{deployment.engine_dir}" }} }}\n'
        (deployment.repository_dir / "tensorrt_llm" / "config.pbtxt").write_text(pbtxt)
        return deployment

    return load


def gpus_told(serving: Serving) -> list[str]:
    """What each rank said of its GPU, in the order of the ranks."""
    logs = [(serving.deployment.run_dir / f"rank{rank}.log").read_text() for rank in range(4)]
    return [re.search(r"on GPU number .*", log)[0] for log in logs]


def stack_of(member: Member) -> int:
    return resource.prlimit(member.pid, resource.RLIMIT_STACK)[0]


def generate(deployment: Deployment, tokens: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", deployment.serving.http_port, timeout=20)
    body = json.dumps({"text_input": "slow", "max_tokens": tokens})
    connection.request("POST", "/v2/models/tensorrt_llm_bls/generate", body)
    return json.loads(connection.getresponse().read())["text_output"]


def test_ranks_sit_on_gpus_that_are_near_and_a_drain_ends_them(make, start):
    serving = start(make(), UNCHECKED).wait_ready()
    assert "stage 0: GPUs 0, 4 (NV12): layers 0-" in serving.stderr
    assert "stage 1: GPUs 1, 5 (NV12): layers " in serving.stderr
    assert "startup budget: 120 s = 0.0 GB at 0.2 GB/s (assumed) x 2 + 120 s" in serving.stderr
    order = "0,4,1,5 in PCI_BUS_ID, given all"
    assert gpus_told(serving) == [f"on GPU number {rank} of {order}" for rank in range(4)]
    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.append(generate(serving.deployment, 30)))  # 3 s
    asking.start()
    serving.wait_for(lambda: status(serving.deployment).running == 1)
    serving.send(signal.SIGTERM)
    assert serving.ended(30) == 0
    asking.join(20)
    assert answers == ["x" * 30] and "stopped: 1 request finished, none cut" in serving.stderr
    assert serving.left() == []


def test_the_death_of_a_rank_ends_them_all(make, start):
    serving = start(make(), UNCHECKED).wait_ready()
    os.kill(serving.member(3).pid, signal.SIGKILL)
    assert serving.ended(60) == 1
    assert "rank 3 was killed by SIGKILL; all 4 ranks were ended" in serving.stderr.splitlines()[-1]
    assert serving.left() == []


def test_in_a_container(make, start, node):
    serving = start(make("docker"), UNCHECKED).wait_ready()
    assert {stack_of(serving.member(rank)) for rank in range(4)} == {STACK_BYTES}
    # Inside GPUs 0, 1, 4, 5 are 0 to 3, and ranks 1 and 2 are on 4 and 1.
    order = "0,2,1,3 in PCI_BUS_ID, given 0,4,1,5"
    assert gpus_told(serving) == [f"on GPU number {rank} of {order}" for rank in range(4)]
    os.kill(serving.member(2).pid, signal.SIGKILL)
    assert serving.ended(60) == 1
    assert "rank 2 was killed by SIGKILL" in serving.stderr.splitlines()[-1]
    assert serving.left() == []
    # Killed above on a slow machine, where docker's client had not ended by itself yet.
    (node / "forced").unlink(missing_ok=True)
    # Its name is free again; stopped while mpirun runs, the container is ended by docker too.
    again = start(serving.deployment, UNCHECKED).wait_ready()
    again.send(signal.SIGINT)
    assert again.ended(30) == 0 and "stopped: 0 requests finished" in again.stderr
    assert again.left() == [] and not list((node / "containers").iterdir())
    assert (node / "forced").read_text() == "toolkit-trial-serve\n"


def test_a_killed_supervisor_leaves_no_container(make, start, node):
    serving = start(make("docker"), UNCHECKED)
    serving.wait_for(lambda: (node / "containers" / "toolkit-trial-serve").exists())
    serving.send(signal.SIGKILL)
    serving.ended(30)
    deadline = time.monotonic() + 20
    while (serving.left() or not (node / "forced").exists()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert serving.left() == [] and not list((node / "containers").iterdir())


def test_a_container_of_that_name_is_left_alone(make, start, node):
    (node / "containers").mkdir()
    (node / "containers" / "toolkit-trial-serve").write_text("0")
    serving = start(make("docker"), UNCHECKED)
    assert serving.ended(60) == 1
    last_line = serving.stderr.splitlines()[-1]
    assert "there is already a container toolkit-trial-serve, running. If nobody needs it, run: docker rm" in last_line
    assert (node / "containers" / "toolkit-trial-serve").exists() and not (node / "forced").exists()


def test_what_docker_could_not_start_is_explained(make, start):
    serving = start(make({"kind": "docker", "image": "me/empty"}), UNCHECKED)
    assert serving.ended(60) == 1
    assert "mpirun exited with code 127" in serving.stderr and "the image has no such program" in serving.stderr
    serving = start(make({"kind": "docker", "options": ["--nonsense"]}), UNCHECKED)
    assert serving.ended(60) == 1
    assert "docker: unknown flag: --nonsense" in serving.stderr
    assert "docker did not start the container" in serving.stderr.splitlines()[-1]


def test_the_death_of_an_orchestrator_s_worker_ends_them_all(make, start):
    serving = start(make(mode="orchestrator"), UNCHECKED).wait_ready()
    workers = [
        member for member in serving.members() if not member.server and member.rank is not None and not member.model
    ]
    assert sorted(member.rank for member in workers) == [0, 1, 2, 3]
    assert {stack_of(member) for member in serving.members()} == {STACK_BYTES}
    os.kill(next(member.pid for member in workers if member.rank == 3), signal.SIGKILL)
    assert serving.ended(60) == 1
    assert "rank 3 was killed by SIGKILL; all 4 ranks were ended" in serving.stderr.splitlines()[-1]
    assert serving.left() == []


def test_the_death_of_the_orchestrator_is_told(make, start):
    # mpirun goes on with the workers, and says nothing.
    impatient = f"{UNCHECKED}; import toolkit.serve.group as g; g.MPIRUN_REPORT_S = 0.3"
    serving = start(make(mode="orchestrator"), impatient).wait_ready()
    os.kill(
        next(m.pid for m in serving.members() if m.rank == 0 and m.server),
        signal.SIGKILL,
    )
    assert serving.ended(60) == 1
    assert "orchestrator (process " in serving.stderr.splitlines()[-1]
    assert serving.left() == []


def test_one_that_is_never_ready_is_told_its_budget(make, start):
    deployment = make()
    (deployment.repository_dir / "hang").touch()
    serving = start(deployment, f"{UNCHECKED}; import toolkit.serve.budget as b; b.SHORTEST_S = b.GPU_FIXED_S = 1")
    assert serving.ended(60) == 1
    last_line = serving.stderr.splitlines()[-1]
    assert "not ready after 1 s (0.0 GB at 0.2 GB/s (assumed) x 2 + 1 s), 4 of 4 ranks running" in last_line
    assert "set serving.startup_timeout_s" in last_line


@pytest.mark.parametrize(
    ("runtime", "visible"),
    [("host", "CUDA_VISIBLE_DEVICES=0,4,1,5"), ("docker", "CUDA_VISIBLE_DEVICES=0,2,1,3")],
)
def test_the_dry_run_is_a_script_that_runs(make, runtime, visible, node, tmp_path, monkeypatch):
    """Up to mpirun, which here only says what it is given."""
    for program in (node / "mpirun", node / "image" / "mpirun"):
        program.write_text('#!/bin/sh\nenv\nprintf "%s\\n" "$@"\n')
        program.chmod(0o755)
    monkeypatch.setattr("toolkit.serve.launch.find_mpirun", lambda: Mpirun(node / "mpirun", (4, 1)))
    deployment = make(runtime)
    text = dry_run(deployment)
    assert "#   stage 1: GPUs 1, 5 (NV12): layers " in text
    (tmp_path / "serve.sh").write_text(text)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    ran = subprocess.run(["bash", str(tmp_path / "serve.sh")], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    printed = ran.stdout.splitlines()
    assert visible in printed and "TOOLKIT_RUN_ID=dry-run" in printed
    (folder,) = tmp_path.glob("toolkit-run-*")
    assert printed.count(f"--model-repository={folder}/models") == 4 and printed.count(":") == 3
    assert folder.stat().st_mode & 0o077 == 0 and (folder / "models" / "tensorrt_llm" / "config.pbtxt").is_file()


def test_orchestrator_mode_is_not_rehearsed(make):
    deployment = load_deployment(make(mode="orchestrator").file, "rehearsal")
    with pytest.raises(ToolkitError, match=r"serving\.mode: orchestrator needs an engine on GPUs, and engine is"):
        dry_run(deployment)
