import importlib.metadata
import json
import os
import shutil
import socket
from collections import namedtuple
from pathlib import Path

import pytest

from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.serve import preflight

GIB = 1 << 30


def test_a_good_deployment_passes(deploy):
    preflight.check(deploy())


@pytest.mark.parametrize("name", ["http_port", "grpc_port", "metrics_port"])
def test_each_taken_port_is_named(deploy, name):
    deployment = deploy()
    port = getattr(deployment.serving, name)
    with socket.create_server(("127.0.0.1", port)), pytest.raises(ToolkitError) as error:
        preflight.check_ports(deployment)
    assert str(error.value) == (
        f"{deployment.file}: serving.{name}: cannot listen on 127.0.0.1:{port}: taken by process {os.getpid()} "
        f"({Path('/proc/self/comm').read_text().strip()}). Stop that process or change the port."
    )


def test_a_port_just_closed_is_free(deploy):
    deployment = deploy()
    with socket.create_server(("127.0.0.1", deployment.serving.http_port)) as server:
        client = socket.create_connection(server.getsockname())
        server.accept()[0].close()  # the side that closes first keeps the port in TIME_WAIT
        client.close()
    preflight.check_ports(deployment)


def test_an_address_of_another_machine(deploy):
    with pytest.raises(ToolkitError, match=r"cannot listen on 192\.0\.2\.1:\d+: cannot assign requested address"):
        preflight.check_ports(deploy(host="192.0.2.1"))


@pytest.fixture
def of_gpus(deploy):
    """of_gpus(version of the engine) -> a deployment with engine tensorrt, of which only config.json is there."""

    def make(built_by: str) -> Deployment:
        deployment = deploy().model_copy(update={"engine": "tensorrt"})
        (deployment.engine_dir / "config.json").write_text(json.dumps({"version": built_by}))
        return deployment

    return make


def test_an_engine_of_the_release_that_runs_it(of_gpus):
    preflight.check_version(of_gpus("1.2.1"))


def test_an_engine_of_another_release_is_refused(of_gpus):
    says = (
        r"was built by TensorRT-LLM 1.1.0, engine.version says 1.2.1. Run: toolkit build .*; or correct engine.version"
    )
    with pytest.raises(ToolkitError, match=says):
        preflight.check_version(of_gpus("1.1.0"))


def test_an_engine_that_what_is_installed_cannot_run_is_refused(of_gpus, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: {"tensorrt-llm": "1.2.0"}[name])
    with pytest.raises(
        ToolkitError, match=r"was built by TensorRT-LLM 1.2.1, but 1.2.0 is installed here and cannot run it"
    ):
        preflight.check_version(of_gpus("1.2.1"))


def test_no_repository(deploy):
    deployment = deploy()
    shutil.rmtree(deployment.repository_dir)
    with pytest.raises(ToolkitError, match=f"there is no repository here. Run: toolkit repo {deployment.file}"):
        preflight.check_repository(deployment)


def test_a_damaged_repository(deploy):
    deployment = deploy()
    (deployment.repository_dir / "tensorrt_llm" / "config.pbtxt").unlink()
    with pytest.raises(ToolkitError, match=r"tensorrt_llm/config.pbtxt is missing. Run: toolkit repo"):
        preflight.check_repository(deployment)


def test_a_repository_of_another_engine(deploy):
    from toolkit.files import artifacts

    deployment = deploy()
    artifacts.write_stage(
        deployment.engine_dir,
        "engine",
        inputs={"checkpoint": "another"},
        settings={"engine": "rehearsal"},
        versions={},
        write=lambda folder: None,
    )
    with pytest.raises(ToolkitError, match=r"was made from another engine .* Run: toolkit repo"):
        preflight.check_repository(deployment)


def test_a_repository_made_before_the_yaml_changed(deploy):
    deployment = deploy()
    changed = deployment.file.read_text().replace("max_sequences: 8", "max_sequences: 4")
    deployment.file.write_text(changed)
    with pytest.raises(
        ToolkitError, match=r"made with limits.max_sequences 8, the deployment says 4. Run: toolkit repo"
    ):
        preflight.check_repository(load_deployment(deployment.file))


def test_too_little_shared_memory(deploy, monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(64 << 20, 40 << 20, 24 << 20))
    with pytest.raises(ToolkitError, match=r"24 MiB are free, 8 ranks need 40 MiB. .*--shm-size=2g"):
        preflight.check_shared_memory(deploy(tp=2, pp=4), tmp_path)


def test_every_instance_of_a_python_model_is_a_process(deploy):
    deployment = deploy()
    assert preflight.model_processes(deployment) == 2
    config = deployment.repository_dir / "tensorrt_llm_bls" / "config.pbtxt"
    config.write_text(config.read_text().replace("count: 1", "count: 16"))
    assert preflight.model_processes(deployment) == 17


def test_too_little_memory(deploy):
    deployment = deploy(tp=2, pp=2)
    with (deployment.engine_dir / "rank0.engine").open("wb") as file:
        file.truncate(2 * GIB)  # sparse; 4 GiB when widened
    preflight.check_memory(deployment, available=int(5.2 * GIB))
    with pytest.raises(ToolkitError, match=r"4 ranks need about 5\.\d GiB of memory, 4\.5 GiB are available"):
        preflight.check_memory(deployment, available=int(4.5 * GIB))


def test_all_replicas_count(deploy):
    """Twice what one needs; one of them alone needs half."""
    deployment = deploy(tp=2, replicas=2)
    first, _ = deployment.per_replica()
    assert preflight.shared_memory_needed(deployment) == 2 * preflight.shared_memory_needed(first)
    with (deployment.engine_dir / "rank0.engine").open("wb") as file:
        file.truncate(GIB)  # sparse; 2 GiB when widened, and 0.5 GiB for two ranks
    preflight.check_memory(first, available=3 * GIB)
    preflight.check_memory(deployment, available=6 * GIB)
    with pytest.raises(ToolkitError, match=r"4 ranks need about 5\.\d GiB of memory, 4\.5 GiB are available"):
        preflight.check_memory(deployment, available=int(4.5 * GIB))
