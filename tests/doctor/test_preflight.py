"""What ends `toolkit serve` before anything starts on GPUs: the command, with doubles of NVML and docker."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest
import yaml

from tests.doctor.conftest import HOST
from tests.doctor.fake_nvml import GIB, FakeNvml, a100s_pcie, h100s
from toolkit import repository
from toolkit.cli.main import main
from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.files.artifacts import Lock, write_lock
from toolkit.machine import gpus
from toolkit.serve import tritonserver

PASSED = "serving.http_port: cannot listen on"
"""What serve itself says of `taken_port`."""
NO_GPU = FakeNvml([], fails={"nvmlInit": pynvml.NVML_ERROR_LIBRARY_NOT_FOUND})


@pytest.fixture
def taken_port() -> Iterator[int]:
    """Nobody else can listen on it, so no test goes on to a start."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def deploy(tmp_path, tiny_llama, taken_port):
    """deploy(**sections of the YAML) -> Deployment of PP2 x TP2 on H100, with engine and repository that say so."""

    def make(built_by: str = "1.2.1", sm: str = "9.0", tp_built: int = 2, **sections) -> Deployment:
        content = {
            "engine": "tensorrt",
            "model": {"path": str(tiny_llama)},
            "parallel": {"tp": 2, "pp": 2},
            "limits": {"max_seq_len": 512},
            "serving": {"http_port": taken_port},
            "output": str(tmp_path / "out"),
            **sections,
        }
        (tmp_path / "x.yaml").write_text(yaml.safe_dump(content))
        deployment = load_deployment(tmp_path / "x.yaml")
        deployment.engine_dir.mkdir(parents=True)
        config = {"version": built_by, "pretrained_config": {"mapping": {"tp_size": tp_built, "pp_size": 2}}}
        (deployment.engine_dir / "config.json").write_text(json.dumps(config))
        engine = Lock("engine", {}, {"engine": "tensorrt", "sm": sm}, {})
        write_lock(deployment.engine_dir, engine)
        made_from = {"engine": engine.digest}
        if deployment.engine == "pytorch":
            made_from = {"model": repository.model_digest(deployment)}
        deployment.repository_dir.mkdir()
        write_lock(deployment.repository_dir, Lock("repository", made_from, repository.settings(deployment), {}))
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
        passed = PASSED in lines[-1]
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
        f"toolkit build {deployment.file}; or serve it on GPUs like those that it was built on."
    )


def test_an_engine_of_another_release(deploy, serve, image):
    (line,) = serve(deploy(built_by="1.1.0"), NO_GPU)
    assert "was built by TensorRT-LLM 1.1.0, engine.version says 1.2.1. Run: toolkit build " in line


def test_an_engine_of_other_parallelism(deploy, serve, image):
    line = serve(deploy(tp_built=4), h100s())[-1]
    assert "engine: of TensorRT-LLM 1.2.1, for pp 2 x tp 4; needs 1.2.1, pp 2 x tp 2. Build it again: toolkit " in line


def test_what_is_not_made_yet_comes_before_what_the_machine_lacks(deploy, serve):
    deployment = deploy()
    (deployment.repository_dir / "lock.json").unlink()
    (line,) = serve(deployment, NO_GPU)
    assert line.endswith(f"/repository: there is no repository here. Run: toolkit repo {deployment.file}")
    (deployment.engine_dir / "lock.json").unlink()
    (line,) = serve(deployment, NO_GPU)
    assert line.endswith(f"/engine: there is no engine here. Run: toolkit build {deployment.file}")


def test_a_repository_of_engine_pytorch_comes_before_its_model(deploy, serve, tmp_path, tiny_llama):
    deployment = deploy(engine="pytorch")
    (deployment.repository_dir / "lock.json").unlink()
    (line,) = serve(deployment, NO_GPU)
    assert line.endswith(f"/repository: there is no repository here. Run: toolkit repo {deployment.file}")


def test_a_mode_that_is_not_rehearsed_comes_first(deploy, serve, taken_port):
    deployment = deploy(serving={"http_port": taken_port, "mode": "orchestrator"})
    (line,) = serve(deployment, NO_GPU, "--engine", "rehearsal")
    assert "serving.mode: orchestrator needs an engine on GPUs, and engine is rehearsal. Remove it" in line


@pytest.mark.parametrize(
    "value, says",
    [
        (
            "MIG-6a1f6e53",
            "CUDA_VISIBLE_DEVICES: 'MIG-6a1f6e53' is a part of a GPU (MIG). Give numbers or UUIDs of whole GPUs",
        ),
        (
            "GPU-52a3a852,GPU-6a1f6e53",
            "parallel: 4 ranks need 4 GPUs, CUDA_VISIBLE_DEVICES leaves 1 (no GPU has the UUID 'GPU-6a1f6e53'). Make",
        ),
        ("0,1,2", "parallel: 4 ranks need 4 GPUs, CUDA_VISIBLE_DEVICES leaves 3. Make more GPUs visible"),
    ],
)
def test_variables_that_serving_refuses(deploy, serve, monkeypatch, value, says):
    nvml = h100s()
    for card in nvml.cards:
        card.used = 79 * GIB
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    (line,) = serve(deploy(), nvml)
    assert line.startswith(f"error: visible GPUs: {says}")


def test_what_works_badly_is_told_and_does_not_end_it(deploy, serve, image, monkeypatch):
    monkeypatch.setenv("NCCL_P2P_DISABLE", "1")
    lines = serve(deploy(), h100s(driver="580.95.05"))
    assert "warning: driver: 580.95.05, for CUDA 13.1 and older; needs 590.44" in lines[0]
    assert any("setting: NCCL_P2P_DISABLE=1: the ranks exchange through host memory" in line for line in lines)
    assert PASSED in lines[-1]


def test_a_tritonserver_without_the_backend(deploy, serve, image):
    (image / "tensorrtllm").rmdir()
    assert "error: backends: python; needs tensorrtllm. Use the tritonserver of nvcr.io" in serve(deploy(), h100s())[-1]


def test_a_model_without_a_tokenizer(deploy, serve, image, tmp_path, tiny_llama):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_bytes((tiny_llama / "config.json").read_bytes())
    line = serve(deploy(model={"path": str(tmp_path / "model")}), h100s())[-1]
    assert line.endswith("model: no tokenizer.json. Copy it from the model's repository: it encodes the prompts.")


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
    assert PASSED in serve(deploy(runtime="docker"), h100s())[-1]


def test_a_missing_docker(deploy, serve, image, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    line = serve(deploy(runtime="docker"), h100s())[-1]
    assert line.startswith("error: runtime: there is no docker on PATH. Install Docker Engine")
