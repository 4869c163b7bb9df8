"""What ends `toolkit serve` before anything starts on GPUs: the command, with doubles of NVML and docker."""

import json
import os
from pathlib import Path

import pynvml
import pytest
import yaml

from tests.doctor.conftest import HOST
from tests.doctor.fake_nvml import GIB, FakeNvml, a100s_pcie, h100s
from toolkit.artifacts import Lock, write_lock
from toolkit.cli.main import main
from toolkit.config import Deployment
from toolkit.doctor import gpus
from toolkit.serve import tritonserver

NO_GPU = FakeNvml([], fails={"nvmlInit": pynvml.NVML_ERROR_LIBRARY_NOT_FOUND})


@pytest.fixture
def deploy(tmp_path, tiny_llama):
    """deploy(**sections of the YAML) -> Deployment of PP2 x TP2 on H100, with an engine that says so."""

    def make(built_by: str = "1.2.1", sm: str = "9.0", **sections) -> Deployment:
        content = {
            "engine": "tensorrt",
            "model": {"path": str(tiny_llama)},
            "parallel": {"tp": 2, "pp": 2},
            "limits": {"max_seq_len": 512},
            "output": str(tmp_path / "out"),
            **sections,
        }
        (tmp_path / "x.yaml").write_text(yaml.safe_dump(content))
        deployment = Deployment.load(tmp_path / "x.yaml")
        deployment.engine_dir.mkdir(parents=True)
        config = {"version": built_by, "pretrained_config": {"mapping": {"tp_size": 2, "pp_size": 2}}}
        (deployment.engine_dir / "config.json").write_text(json.dumps(config))
        write_lock(deployment.engine_dir, Lock("engine", {}, {"engine": "tensorrt", "sm": sm}, {}))
        return deployment

    return make


@pytest.fixture
def image(tmp_path, monkeypatch) -> Path:
    """This machine as if it were NVIDIA's image: its folder of backends."""
    folder = tmp_path / "tritonserver"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/tritonserver").touch()
    (folder / "backends/tensorrtllm").mkdir(parents=True)
    (folder / "backends/python").mkdir()
    monkeypatch.setattr(tritonserver, "NGC_BINARY", folder / "bin/tritonserver")
    monkeypatch.setattr("toolkit.doctor.machine.look_at_host", lambda: HOST)
    return folder / "backends"


@pytest.fixture
def serve(monkeypatch, capsys):
    """serve(deployment, NVML) -> the lines on stderr; the last is why it was refused."""

    def run(deployment: Deployment, nvml: FakeNvml, *options: str) -> list[str]:
        monkeypatch.setattr(gpus, "load_library", lambda: nvml)
        monkeypatch.setattr("sys.argv", ["toolkit", "serve", str(deployment.file), *options])
        with pytest.raises(SystemExit) as ended:
            main()
        lines = capsys.readouterr().err.splitlines()
        passed = lines[-1].endswith(f"there is no repository here. Run: toolkit repo {deployment.file}")
        assert ended.value.code == 1 and deployment.run_dir.exists() == passed, "only serve itself makes that folder"
        assert lines[-1].startswith("error: ") and all(line.startswith("warning: ") for line in lines[:-1])
        return lines

    return run


@pytest.mark.parametrize("engine", ["tensorrt", "pytorch"])
def test_without_gpus(deploy, serve, engine):
    (line,) = serve(deploy(engine=engine), NO_GPU, "--detach")
    assert line.startswith("error: GPUs: none: no NVIDIA driver (libnvidia-ml.so.1 is not here); needs 4, one for each")


def test_gpus_in_use_by_others(deploy, serve):
    nvml = h100s()
    for card in nvml.cards[2:4]:
        card.used, card.pids = 79 * GIB, (999999999,)
    (line,) = serve(deploy(), nvml)
    assert line.startswith("error: in use: GPUs 2, 3 by process 999999999, up to 79.0 GiB; needs ")
    assert line.endswith("Stop it (nvidia-smi shows what runs there), or choose other GPUs by CUDA_VISIBLE_DEVICES.")


def test_another_kind_of_gpu(deploy, serve):
    assert "GPU kind: a100-pcie; needs h100-sxm" in serve(deploy(), a100s_pcie())[-1]


def test_an_engine_of_another_sm(deploy, serve, image):
    deployment = deploy(sm="8.0")
    assert serve(deployment, h100s())[-1] == (
        "error: engine SM: built on SM 8.0; needs SM 9.0, of the GPUs here. Build it on these: "
        f"toolkit build {deployment.file}; or serve it on GPUs as it was built on."
    )


def test_an_engine_of_another_release(deploy, serve, image):
    line = serve(deploy(built_by="1.1.0"), h100s())[-1]
    assert "engine: of TensorRT-LLM 1.1.0, for pp 2 x tp 2; needs 1.2.1, pp 2 x tp 2. Build it again: toolkit " in line


def test_what_works_badly_is_told_and_does_not_end_it(deploy, serve, image, monkeypatch):
    monkeypatch.setenv("NCCL_P2P_DISABLE", "1")
    lines = serve(deploy(), h100s(driver="580.95.05"))
    assert "warning: driver: 580.95.05, for CUDA 13.1 and older; needs 590.44" in lines[0]
    assert any("setting: NCCL_P2P_DISABLE=1: the ranks exchange through host memory" in line for line in lines)
    assert "there is no repository here" in lines[-1], "which serve itself looks for"


def test_a_tritonserver_without_the_backend(deploy, serve, image):
    (image / "tensorrtllm").rmdir()
    assert "error: backends: python; needs tensorrtllm. Use the tritonserver of nvcr.io" in serve(deploy(), h100s())[-1]


def test_a_model_without_a_tokenizer(deploy, serve, image, tmp_path, tiny_llama):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_bytes((tiny_llama / "config.json").read_bytes())
    line = serve(deploy(model={"path": str(tmp_path / "model")}), h100s())[-1]
    assert line.endswith("model: no tokenizer.json. Copy it from the model's repository; prompts are encoded by it.")


@pytest.fixture
def docker(tmp_path, monkeypatch):
    """docker(backends of its image): a docker that answers as one with GPUs and the image does."""

    def install(*backends: str) -> None:
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin/docker").write_text(DOCKER.format(backends=" ".join(backends)))
        (tmp_path / "bin/docker").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    return install


DOCKER = """#!/bin/sh
case "$1" in
  info) echo '{{"ServerVersion": "28.2", "Runtimes": {{"nvidia": {{}}}}}}' ;;
  container) exit 1 ;;
  run) printf '%s\\n' {backends} ;;
esac
"""


def test_an_image_without_the_backend(deploy, serve, image, docker):
    docker("onnxruntime", "python")
    line = serve(deploy(runtime={"kind": "docker", "image": "mine:1"}), h100s())[-1]
    assert "runtime.image: mine:1 has no backend tensorrtllm in /opt/tritonserver/backends: it has onnx" in line
    assert line.endswith("Use nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3.")


def test_an_image_with_the_backend(deploy, serve, image, docker):
    docker("python", "tensorrtllm")
    assert "there is no repository here" in serve(deploy(runtime="docker"), h100s())[-1]


def test_a_missing_docker(deploy, serve, image, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    line = serve(deploy(runtime="docker"), h100s())[-1]
    assert line.startswith("error: runtime: there is no docker on PATH. Install Docker Engine")
