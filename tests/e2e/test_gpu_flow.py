"""The flagship's whole way on GPUs, command by command, around doubles of what needs them.

Real are the toolkit, mpirun and the files; doubles are NVML, nvidia-smi, trtllm-build and tritonserver. The model is
small.
"""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from tests.commands import toolkit
from tests.doctor.fake_nvml import h100s
from tests.ports import free_ports
from toolkit.config.sections import PORTS
from toolkit.machine import gpus

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
pytestmark = pytest.mark.slow


@pytest.fixture
def node(tmp_path, monkeypatch) -> Path:
    """A node of 8 H100 whose doubles are first on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (tmp_path / "backends" / "tensorrtllm").mkdir(parents=True)
    (tmp_path / "backends" / "python").mkdir()
    python = f"#!{sys.executable}\nimport sys; sys.path.insert(0, {str(ROOT)!r})\n"
    build = "from tests.engine.trtllm_build_double import main\nsys.exit(main())\n"
    topology = TESTS / "doctor" / "recorded" / "dgx-h100.txt"
    # Without the NUMA nodes of that machine, whose cores are not here.
    told = topology.read_text().replace("\t0-55,112-167\t0\t", "\t\t\t").replace("\t56-111,168-223\t1\t", "\t\t\t")
    (folder / "topology.txt").write_text(told)
    programs = {
        "trtllm-build": python + build,
        "tritonserver": f"#!{sys.executable}\n" + (TESTS / "serve" / "tritonserver_double.py").read_text(),
        "nvidia-smi": f'#!/bin/sh\ntest "$*" = "topo -m" && cat {folder}/topology.txt\n',
    }
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "load_library", h100s)
    return folder


@pytest.fixture
def config(tmp_path, tiny_llama) -> Path:
    """The flagship with a small model, and limits to it."""
    content = yaml.safe_load((ROOT / "build_configs" / "llama3-70b-h100-pp4tp2-fp16.yaml").read_text())
    content["model"] = {"path": str(tiny_llama), "dtype": "float16"}
    content["limits"] = {"max_sequences": 64, "max_num_tokens": 256, "max_seq_len": 256, "max_queue_size": 8}
    content["hardware"] |= {"host_memory_gb": 16, "cores_per_gpu": 1}
    content["serving"] = dict(zip(PORTS, free_ports(), strict=True))
    content["workload"] = {"rate": 8, "prompt_tokens": 64, "output_tokens": 16, "requests": 100}
    content["output"] = str(tmp_path / "out")
    file = tmp_path / "flagship.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    answer = toolkit(*arguments)
    assert answer.returncode == 0, f"toolkit {' '.join(map(str, arguments))}: {answer.stdout}{answer.stderr}"
    return answer


def test_from_the_checkpoint_to_a_drained_server(node, config, tmp_path):
    output = tmp_path / "out"
    assert "pp 4 x tp 2" in run("plan", config).stdout
    for command in ("build", "serve"):
        script = run(command, config, "--dry-run").stdout
        assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    assert not output.exists(), "a dry run makes nothing"
    run("convert", config, "--verify")
    built = run("build", config)
    assert "max_batch_size" in built.stderr and "limits.max_sequences 64 / (pp 4)" in built.stderr
    assert len(list((output / "engine").glob("rank*.engine"))) == 8
    lock = json.loads((output / "engine" / "lock.json").read_text())
    assert (lock["settings"]["sm"], lock["versions"]["engine"]) == ("9.0", "1.2.1")
    run("repo", config)
    assert run("lint", output / "repository", "--engine", output / "engine").stdout.strip() in (
        "",
        "0 errors, 0 warnings",
    )
    served = run("serve", config, "--detach")
    try:
        assert "stage 3: GPUs 6, 7 (NV18): layers 3-3" in served.stderr
        assert "startup budget: " in served.stderr and served.stdout.startswith("ready: ")
        assert "8 of 8 ranks running" in run("status", config).stdout
        bundle = tmp_path / "bundle.tar.gz"
        toolkit("doctor", config, "--bundle", bundle)
        with tarfile.open(bundle) as packed:
            names = {Path(name).name for name in packed.getnames()}
        assert {"MANIFEST.json", "doctor.json", "build.log", "rank0.log", "lock.json"} <= names
    finally:
        stopped = run("stop", config)
    assert "stopped process" in stopped.stdout
    again = run("build", config)
    assert "already built from the same checkpoint; nothing to do" in again.stderr
