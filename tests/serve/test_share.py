from functools import partial
from pathlib import Path

import pynvml
import pytest

import toolkit
from tests.doctor.fake_nvml import FakeNvml, h100s
from toolkit.config.deployment import Deployment, with_settings
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.machine import gpus
from toolkit.machine.topology import parse_topology
from toolkit.runtime import cores_near
from toolkit.serve.share import share_of

ROOT = Path(toolkit.__file__).parents[1]
RECORDED = ROOT / "tests" / "doctor" / "recorded"


@pytest.fixture
def node(monkeypatch, tmp_path):
    """node(table, cores of each NUMA node): this machine has the GPUs of a recorded table."""

    def make(name: str, *cores: str) -> None:
        table = parse_topology((RECORDED / f"{name}.txt").read_text())
        monkeypatch.setattr("toolkit.serve.share.read_topology", lambda: table)
        monkeypatch.setattr("toolkit.serve.share.cores_near", partial(cores_near, folder=tmp_path))
        monkeypatch.setattr("toolkit.serve.share.given_cores", lambda: None)
        monkeypatch.setattr(gpus, "load_library", lambda: h100s(len(table.gpus)))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        for number, listed in enumerate(cores):
            (tmp_path / f"node{number}").mkdir()
            (tmp_path / f"node{number}" / "cpulist").write_text(listed)

    return make


def flagship(tp: int = 2, pp: int = 4, replicas: int = 1, cores: int = 16) -> tuple[Deployment, ...]:
    deployment = load_deployment(ROOT / "build_configs" / "llama3-70b-h100-pp4tp2-fp16.yaml")
    parallel = {"tp": tp, "pp": pp, "replicas": replicas}
    return with_settings(deployment, parallel=parallel, hardware={"cores_per_gpu": cores}).per_replica()


def test_replicas_share_no_gpu_and_no_core(node):
    node("dgx-h100", "0-55,112-167", "56-111,168-223")
    shares = [share_of(replica) for replica in flagship(tp=2, pp=1, replicas=4, cores=8)]
    assert [share.gpus for share in shares] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert [share.nodes for share in shares] == [(0,), (0,), (1,), (1,)]
    assert [share.cores for share in shares] == [tuple(range(i, i + 16)) for i in (0, 16, 56, 72)]
    assert shares[3].lines[0] == "stage 0: GPUs 6, 7 (NV18): layers 0-79"


def test_pairs_are_joined_by_nvlink(node):
    node("h100-pcie-bridges", "0-31,64-95", "32-63,96-127")
    (deployment,) = flagship()
    assert share_of(deployment).gpus == (0, 4, 1, 5, 2, 6, 3, 7)


def test_only_the_gpus_that_a_batch_system_leaves(node, monkeypatch):
    node("dgx-h100", "0-55,112-167", "56-111,168-223")
    (deployment,) = flagship(pp=2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,6, 3,2")
    share = share_of(deployment)
    assert share.gpus == (2, 3, 6, 7) and share.nodes == (0, 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2,3")
    with pytest.raises(ToolkitError, match="parallel: 4 ranks need 4 GPUs, CUDA_VISIBLE_DEVICES leaves 3"):
        share_of(deployment)
    uuids = [f"GPU-52a3a85{number}" for number in (7, 6, 3, 2)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(uuids))
    assert share_of(deployment) == share
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8932f937")
    says = "CUDA_VISIBLE_DEVICES leaves 0 .no GPU has the UUID 'GPU-8932f937'.. Make more GPUs visible"
    with pytest.raises(ToolkitError, match=says):
        share_of(deployment)
    monkeypatch.setattr(gpus, "load_library", lambda: FakeNvml([], fails={"nvmlInit": pynvml.NVML_ERROR_UNKNOWN}))
    with pytest.raises(ToolkitError, match="CUDA_VISIBLE_DEVICES: 'GPU-8932f937' is a UUID, but NVML shows no UUIDs"):
        share_of(deployment)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,6,3,8,2")
    with pytest.raises(ToolkitError, match="4 ranks need 4 GPUs, CUDA_VISIBLE_DEVICES leaves 3"):
        share_of(deployment)


def test_gpus_near_two_nodes_get_cores_and_memory_of_both(node, monkeypatch):
    node("numa-range", "0-7,32-39", "8-15,40-47", "16-23,48-55", "24-31,56-63")
    (deployment,) = flagship(tp=2, pp=2, cores=8)
    share = share_of(deployment)
    assert (share.gpus, share.nodes) == ((0, 1, 2, 3), (0, 1, 2, 3))
    assert share.lines[-1] == "cores 0-31, 8 for each GPU, and the memory of NUMA nodes 0-3"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    (pair,) = flagship(tp=2, pp=1, cores=10)
    share = share_of(pair)
    assert share.lines[-1] == "cores 16-31,48-51, 10 for each GPU, and the memory of NUMA nodes 2-3"


def test_the_cores_of_a_job_are_kept_to(node, monkeypatch):
    """numactl refuses cores that a batch system's control group has not."""
    node("dgx-h100", "0-55,112-167", "56-111,168-223")
    monkeypatch.setattr("toolkit.serve.share.given_cores", lambda: (96, 97, 98, 99))
    (deployment,) = flagship()
    share = share_of(deployment)
    assert (share.cores, share.nodes) == ((96, 97, 98, 99), ())
    assert share.lines[-1] == "cores 96-99, to which this process is limited"


def test_without_nvidia_smi_the_gpus_are_in_their_order(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (deployment,) = flagship()
    share = share_of(deployment)
    assert (share.gpus, share.cores, share.nodes) == (tuple(range(8)), (), ())
    assert share.lines[0].startswith(
        "the GPUs are taken in their order, because their links are unknown: nvidia-smi topo -m: does not"
    )
    shares = [share_of(replica) for replica in flagship(tp=2, pp=2, replicas=2)]
    assert [share.gpus for share in shares] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(ToolkitError, match="8 ranks need 8 GPUs, CUDA_VISIBLE_DEVICES leaves 2"):
        share_of(deployment)
    with pytest.raises(ToolkitError, match="8 ranks need 8 GPUs, CUDA_VISIBLE_DEVICES leaves 2"):
        share_of(flagship(tp=2, pp=2, replicas=2)[1])


def test_too_few_cores_are_told(node):
    node("dgx-h100", "0-55", "56-111")
    (deployment,) = flagship()
    with pytest.raises(ToolkitError, match="NUMA node 0 has 56 cores, 4 GPUs x 16 need 64"):
        share_of(deployment)
