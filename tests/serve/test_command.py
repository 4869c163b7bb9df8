import os
import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import toolkit
from toolkit.config.deployment import Deployment, with_settings
from toolkit.config.load import load_deployment
from toolkit.machine.limits import STACK_BYTES, most_stack
from toolkit.machine.topology import parse_topology
from toolkit.runtime import Part, cores_near
from toolkit.serve import dry_run
from toolkit.serve.command import STACK, command_line
from toolkit.serve.janitor import ServerRun
from toolkit.serve.launch import shell_text
from toolkit.serve.mpirun import Mpirun
from toolkit.serve.tritonserver import NGC_BINARY, TritonServer

ROOT = Path(toolkit.__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"
RUN = ServerRun("1a2b3c4d", Path("/tmp/toolkit-run-x"))


def flagship() -> Deployment:
    return load_deployment(ROOT / "build_configs" / "llama3-70b-h100-pp4tp2-fp16.yaml")


@pytest.mark.parametrize(
    ("runtime", "mode", "golden"),
    [
        ({"kind": "host"}, "leader", "flagship.sh"),
        ({"kind": "docker"}, "orchestrator", "flagship-docker-orchestrator.sh"),
        ({"kind": "enroot", "image_file": Path("/images/trtllm.sqsh")}, "leader", "flagship-enroot.sh"),
        ({"kind": "apptainer", "image_file": Path("/images/trtllm.sif")}, "orchestrator", "flagship-apptainer.sh"),
    ],
)
def test_the_flagship_s_dry_run(monkeypatch, tmp_path, runtime, mode, golden):
    table = ROOT / "tests" / "doctor" / "recorded" / "dgx-h100.txt"
    monkeypatch.setattr("toolkit.serve.share.read_topology", lambda: parse_topology(table.read_text()))
    for node, cores in ((0, "0-55,112-167"), (1, "56-111,168-223")):
        (tmp_path / f"node{node}").mkdir()
        (tmp_path / f"node{node}" / "cpulist").write_text(cores)
    monkeypatch.setattr("toolkit.serve.share.cores_near", partial(cores_near, folder=tmp_path))
    monkeypatch.setattr("toolkit.serve.share.given_cores", lambda: None)
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    monkeypatch.setattr(os, "getgid", lambda: 1000)
    monkeypatch.setattr("toolkit.serve.tritonserver.NGC_BINARY", Path("/nowhere/tritonserver"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    deployment = with_settings(flagship(), serving={"mode": mode}, runtime=runtime)
    shown = dry_run(deployment).replace(str(deployment.output), "/OUTPUT").replace(str(deployment.file), "FILE") + "\n"
    assert shown == (GOLDEN / golden).read_text()


def test_a_dry_run_can_be_pasted_into_a_shell(deploy):
    deployment = deploy(tp=2, pp=2)
    shebang, set_, *making, command = dry_run(deployment).replace("\\\n", "").splitlines()
    assert (shebang, set_) == ("#!/usr/bin/env bash", "set -euo pipefail")
    assert making[0].startswith("run=$(mktemp -d ") and making[1].startswith("cp -r -- ")
    assert all(line.startswith("ln -s -- ") for line in making[2:])
    words = shlex.split(command)
    assert words[0] == "env"
    start = words.index("sh")
    assert all("=" in word for word in words[1:start])
    assert words[start + 4].endswith("mpirun"), "after the shell that sets the stack limit"
    assert words.count(":") == 3 and words[-1] != ":"


def test_a_rehearsal_in_a_container_sees_this_python_and_needs_no_gpu(deploy):
    deployment = with_settings(deploy(tp=2), runtime={"kind": "docker"})
    text = dry_run(deployment)
    (words,) = (shlex.split(block, comments=True) for block in re.findall(r"command=\((.*?)\n\)", text, re.DOTALL))
    assert words[:2] == ["docker", "run"] and "python:3.12-slim" in words
    assert not {"--gpus", "memlock=-1"} & set(words)
    mounts = [dict(field.partition("=")[::2] for field in word.split(",")) for word in words if "type=bind" in word]
    seen = [Path(mount["target"]) for mount in mounts]
    programs = ("mpirun", "tritonserver")
    for path in (*(word for word in words if Path(word).name in programs), sys.executable, os.__file__, np.__file__):
        assert any(Path(path).resolve().is_relative_to(folder.resolve()) for folder in seen), path
    assert Path("/usr") not in seen and [mount["target"] for mount in mounts if "readonly" not in mount] == ["$run"]


def test_a_rehearsal_of_a_yaml_for_gpus_needs_no_container(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text((ROOT / "build_configs" / "llama3-70b-h100-pp4tp2-fp16.yaml").read_text() + "\nruntime: docker\n")
    assert load_deployment(file).runtime.kind == load_deployment(file, "tensorrt").runtime.kind == "docker"
    assert load_deployment(file, "rehearsal").runtime.kind == "host"
    file.write_text(file.read_text().replace("engine: tensorrt", "engine: rehearsal"))
    assert load_deployment(file).runtime.kind == load_deployment(file, "rehearsal").runtime.kind == "docker"


def flat(parts: list[Part]) -> list[str]:
    return [argument for part in parts for argument in part.arguments]


def blocks(arguments: list[Part]) -> list[list[str]]:
    text = " ".join(flat(arguments))
    return [block.split() for block in text.partition(" -n ")[2].split(" : -n ")]


@pytest.mark.parametrize("tp, pp", [(1, 1), (2, 1), (2, 2), (2, 4)])
def test_one_block_a_rank(deploy, tp, pp):
    deployment = deploy(tp=tp, pp=pp, host="10.1.2.3")
    server = TritonServer(Path("/opt/t"), Path("/opt/backends"))
    rank_blocks = blocks(command_line(deployment, server, Mpirun(Path("mpirun"), (5, 0)), RUN))
    assert len(rank_blocks) == tp * pp
    prefixes = {next(word for word in block if "shm-region-prefix-name=" in word) for block in rank_blocks}
    assert len(prefixes) == len(rank_blocks) and all("1a2b3c4d" in prefix for prefix in prefixes)
    for rank, block in enumerate(rank_blocks):
        assert block[:2] == ["1", "/opt/t"]
        assert ("--load-model=tensorrt_llm" in block) == ("--model-control-mode=explicit" in block) == (rank > 0)
        for protocol in ("http", "grpc", "metrics"):
            assert f"--{protocol}-address=10.1.2.3" in block
            assert f"--{protocol}-port={getattr(deployment.serving, f'{protocol}_port')}" in block
        assert "--backend-directory=/opt/backends" in block


@pytest.mark.parametrize(
    "version, binary, options",
    [
        (
            (5, 0),
            "/usr/bin/mpirun",
            "--allow-run-as-root --bind-to none --prtemca plm ^slurm --prtemca ras ^slurm "
            "--map-by :OVERSUBSCRIBE --output tag",
        ),
        (
            (4, 1),
            "/usr/bin/mpirun",
            "--allow-run-as-root --bind-to none --noprefix --mca plm ^slurm --mca ras ^slurm "
            "--oversubscribe --tag-output",
        ),
        (
            (4, 1),
            "mpirun",
            "--allow-run-as-root --bind-to none --mca plm ^slurm --mca ras ^slurm --oversubscribe --tag-output",
        ),
    ],
)
def test_what_each_open_mpi_is_told(version, binary, options):
    arguments = flat(command_line(flagship(), TritonServer(NGC_BINARY), Mpirun(Path(binary), version), RUN))
    start = arguments.index(binary)
    assert " ".join(arguments[start + 1 : arguments.index("-n")]) == options


def test_paths_with_spaces_stay_one_argument(deploy):
    deployment = deploy()
    server = TritonServer(Path("/opt/my server"))
    arguments = command_line(deployment, server, Mpirun(Path("mpirun"), (5, 0)), RUN)
    assert "/opt/my server" in flat(arguments)
    assert "'/opt/my server'" in shell_text({}, arguments)


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize(
    "before, after", [("-S -s 8192", "65536"), ("-s 8192", "8192"), ("-S -s $(ulimit -H -s)", "65536")]
)
@pytest.mark.skipif((most_stack() or STACK_BYTES) < STACK_BYTES, reason="the hard limit of the stack is lower here")
def test_the_stack_limit_is_64_mib_or_the_most_that_is_allowed(shell, before, after):
    """Also where it was unlimited: threads of glibc get 2 MiB then."""
    limited = [shell, "-c", f'ulimit {before} && exec "$@"', shell, *STACK.arguments, "sh", "-c", "ulimit -s"]
    done = subprocess.run(limited, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{after}\n", "")
