"""Where the ranks will run, what is said of the ways between their GPUs, and of CUDA_VISIBLE_DEVICES."""

from dataclasses import replace

import pynvml
import pytest

from tests.doctor.conftest import PLACES, checks_of, problems
from tests.doctor.fake_nvml import GIB, Card, FakeNvml, a100s_pcie, h100s
from tests.doctor.test_topology import recorded
from toolkit.config.deployment import Deployment, with_settings
from toolkit.doctor import run_checks
from toolkit.doctor.check import Check
from toolkit.doctor.machine import Machine
from toolkit.doctor.ranks import gpus_of_ranks
from toolkit.machine.environment import Setting
from toolkit.machine.topology import Topology
from toolkit.serve import share as serving


def visible(value: str) -> dict[str, Setting]:
    return {"CUDA_VISIBLE_DEVICES": Setting(value)}


def lines(machine: Machine, deployment: Deployment | None, name: str) -> list[Check]:
    return [check for checks in run_checks(machine, deployment).values() for check in checks if check.name == name]


@pytest.fixture
def bridges(node, flagship):
    """Eight H100 PCIe with bridges between GPUs g and g + 4, and a deployment that is planned for them."""
    cards = [Card("NVIDIA H100 PCIe") for _ in range(8)]
    nvml = FakeNvml(cards, nvlink=lambda a, b: b - a == 4, peer=lambda a, b: b - a == 4)

    def make(**parts):
        return node(nvml, topology=recorded("h100-pcie-bridges"), **parts)

    return make, with_settings(flagship, hardware={"gpu": "h100-pcie"})


def test_a_dgx(node, flagship):
    machine = node(h100s(), topology=recorded("dgx-h100"))
    found = checks_of(machine, flagship)
    assert problems(machine, flagship) == []
    assert [line.found for line in lines(machine, flagship, "placement")] == [
        "stage 0: GPUs 0, 1 (NV18): layers 0-19",
        "stage 1: GPUs 2, 3 (NV18): layers 20-39",
        "stage 2: GPUs 4, 5 (NV18): layers 40-59",
        "stage 3: GPUs 6, 7 (NV18): layers 60-79",
    ]
    assert found["NVLink"].found == "4 of 4 pairs"
    assert found["P2P"].found == "10 of the 10 pairs that exchange data", "4 inside of stages, 6 between them"


BRIDGED = ["GPUs 0, 4 (NV12)", "GPUs 1, 5 (NV12)", "GPUs 2, 6 (NV12)", "GPUs 3, 7 (NV12)"]


def stages(machine: Machine, deployment: Deployment) -> list[str]:
    return [line.found.split(": ")[-2] for line in lines(machine, deployment, "placement") if line.status == "ok"]


@pytest.mark.parametrize("settings", [{}, visible("0,1,2,3,4,5,6,7"), visible("7, 6,5,4,3,2,1,0")])
def test_bridges_are_used_whatever_the_order_of_the_variable(bridges, settings):
    make, deployment = bridges
    machine = make(settings=settings)
    assert problems(machine, deployment) == []
    assert stages(machine, deployment) == BRIDGED
    assert checks_of(machine, deployment)["NVLink"].found == "4 of 4 pairs"


def test_what_is_shown_is_what_serve_does(bridges, monkeypatch):
    """The same machine, variable and YAML through the function that `toolkit serve` asks."""
    make, deployment = bridges
    monkeypatch.setattr(serving, "read_topology", lambda: recorded("h100-pcie-bridges"))
    monkeypatch.setattr(serving, "given_cores", lambda: None)
    for value, parallel in (("0,1,2,5,6,7", {"tp": 2, "pp": 3}), ("7,3,1,0,2", {"tp": 2, "pp": 1, "replicas": 2})):
        placed = with_settings(deployment, parallel=parallel, hardware={"cores_per_gpu": 1})
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        monkeypatch.setattr(serving, "cores_near", lambda nodes, per_gpu: ((0,), (0,)))
        machine = make(settings=visible(value))
        shares = [serving.share_of(replica) for replica in placed.per_replica()]
        assert [gpu.index for gpu in gpus_of_ranks(machine, placed)] == [gpu for one in shares for gpu in one.gpus]
        told = [line.removeprefix("replica 0: ").removeprefix("replica 1: ") for line in found(machine, placed)]
        assert told == [line for one in shares for line in one.lines if line.startswith("stage")]


def found(machine: Machine, deployment: Deployment) -> list[str]:
    return [line.found for line in lines(machine, deployment, "placement")]


def test_a_variable_that_leaves_slower_links(bridges):
    """By hand: of GPUs 0, 1, 2 and 4 only 0-4 has a bridge, and 1-2 is on one socket. All eight have four bridges."""
    make, deployment = bridges
    small = with_settings(deployment, parallel={"tp": 2, "pp": 2})
    machine = make(settings=visible("2,4,1,0"))
    assert problems(machine, small) == [("warning", "NVLink"), ("warning", "visible GPUs"), ("warning", "P2P")]
    line = checks_of(machine, small)["visible GPUs"]
    assert line.found == "CUDA_VISIBLE_DEVICES=2,4,1,0: stage 1 is on GPUs 1, 2 (NODE)"
    assert line.needed == "NV12, which other GPUs of this machine have"
    assert line.fix == "Unset it, or let it leave GPUs 0, 1, 4, 5: then the ranks are placed on them."
    assert checks_of(machine, small)["NVLink"].fix.endswith("have faster links: see below.")
    replicas = with_settings(deployment, parallel={"tp": 2, "pp": 1, "replicas": 2})
    assert ": replica 1: stage 0 is on GPUs 1, 2 (NODE)" in checks_of(machine, replicas)["visible GPUs"].found
    assert problems(make(settings=visible("2,3,6,7")), small) == [], "as good as any"


def test_numa_nodes_alone_are_no_reason_to_warn(node, flagship):
    small = with_settings(flagship, parallel={"tp": 2, "pp": 1})
    machine = node(h100s(), topology=recorded("dgx-h100"), settings=visible("3,4"))
    assert problems(machine, small) == [] and stages(machine, small) == ["GPUs 3, 4 (NV18)"]


def test_without_the_table_gpus_are_taken_in_their_order(bridges):
    """As serving does: NVML's links are shown, and are not what ranks are placed by."""
    make, deployment = bridges
    machine = replace(make(), topology=Topology())
    assert stages(machine, deployment)[0] == "GPUs 0, 1 (PCIe)"
    line = checks_of(machine, deployment)["placement"]
    assert (line.status, line.needed) == ("warning", "NVLink, which other GPUs of this machine have")
    assert (
        line.found == "GPUs in their order, because nvidia-smi topo -m gives no table: stage 0 is on GPUs 0, 1 (PCIe)"
    )
    ordered = replace(machine, settings=visible("0,4,1,5,2,6,3,7"))
    assert "visible GPUs" not in checks_of(ordered, deployment) and stages(ordered, deployment)[1].startswith(
        "GPUs 1, 5"
    )


def test_only_direct_access_inside_of_stages_is_a_matter(bridges, node, flagship):
    make, deployment = bridges
    found = checks_of(make(), deployment)["P2P"]
    through = "GPUs 0-1, 4-5, 1-2, 5-6, 2-3, 6-7"
    assert (found.status, found.found) == (
        "ok",
        f"4 of the 10 pairs that exchange data; through host memory: {through}",
    )
    refused = node(h100s(peer=lambda a, b: (a, b) != (2, 3)))
    assert problems(refused, flagship) == [("warning", "P2P")]
    assert "ACS" in checks_of(refused, flagship)["P2P"].fix
    silent = node(h100s(fails={"nvmlDeviceGetP2PStatus": pynvml.NVML_ERROR_NOT_SUPPORTED}))
    assert "P2P" not in checks_of(silent, flagship), "only where it is told"


def test_pcie_only(node, flagship):
    deployment = with_settings(flagship, hardware={"gpu": "l40s", "gpu_memory_gib": 44.0})
    nvml = FakeNvml([Card("NVIDIA L40S", 45 * GIB) for _ in range(8)], nvlink=lambda a, b: False)
    machine = node(nvml, topology=recorded("l40s"))
    found = checks_of(machine, deployment)
    assert problems(machine, deployment) == [("warning", "NVLink")]
    assert found["NVLink"].found == "0 of 4 pairs; over PCIe: GPUs 0-1, 2-3, 4-5, 6-7"
    assert lines(machine, deployment, "placement")[0].found == "stage 0: GPUs 0, 1 (PIX): layers 0-19"


def test_too_few_gpus_are_told_of_as_they_are(node, flagship, rehearsal):
    machine = node(a100s_pcie(), topology=recorded("container"))
    assert not {"placement", "visible GPUs", "P2P"} & set(checks_of(machine, flagship))
    for deployment in (flagship, rehearsal):
        assert checks_of(machine, deployment)["NVLink"].found == "0 of 6 pairs of GPUs"
    one = node(FakeNvml([Card()]))
    assert "NVLink" not in checks_of(one, flagship) and "NVLink" not in checks_of(one, None)


def test_one_gpu_for_each_stage_needs_no_nvlink(node, flagship):
    deployment = with_settings(flagship, parallel={"tp": 1, "pp": 8})
    found = checks_of(node(h100s(nvlink=lambda a, b: False)), deployment)
    assert "NVLink" not in found and found["placement"].found == "stage 7: GPU 7: layers 70-79"
    assert found["P2P"].status == "ok"


def test_every_replica_has_its_stages(node, flagship):
    deployment = with_settings(flagship, parallel={"tp": 2, "pp": 2, "replicas": 2})
    machine = node(h100s(), topology=recorded("h100-pcie-bridges"))
    assert found(machine, deployment) == [
        "replica 0: stage 0: GPUs 0, 4 (NV12): layers 0-39",
        "replica 0: stage 1: GPUs 1, 5 (NV12): layers 40-79",
        "replica 1: stage 0: GPUs 2, 6 (NV12): layers 0-39",
        "replica 1: stage 1: GPUs 3, 7 (NV12): layers 40-79",
    ]
    small = node(h100s(4), topology=recorded("dgx-h100"))  # a table of other GPUs does not count
    assert found(small, deployment) == [], "serving refuses to start"


def test_memory_in_use_with_replicas(node, flagship):
    deployment = with_settings(flagship, parallel={"tp": 4, "pp": 1, "replicas": 2})
    nvml = h100s()
    nvml.cards[3].used = 70 * GIB
    assert checks_of(node(nvml), deployment)["in use"].status == "error"


@pytest.mark.parametrize("table", [recorded("dgx-h100"), Topology()])
@pytest.mark.parametrize(
    "value, left",
    [
        ("0,1,2", "3"),
        ("0,1,2,3,4,5,9,6", "6 (there is no GPU 9)"),
        ("0,0,1,2,3,4,5,6", "0 (GPU 0 is named twice, which hides all)"),
        ("17", "0 (there is no GPU 17)"),
        ("", "0 (it is empty)"),
        ("-1", "0 (-1 ends the list)"),
        ("all", "0 ('all' is not a number and ends the list)"),
        ("GPU-52a3a853,GPU-52a3a851", "2"),
        ("GPU-52a3a853,GPU-6a1f6e53", "1 (no GPU has the UUID 'GPU-6a1f6e53')"),
    ],
)
def test_variables_that_leave_too_few_gpus(node, flagship, value, left, table):
    machine = node(h100s(), settings=visible(value), topology=table)
    line = checks_of(machine, flagship)["visible GPUs"]
    assert (line.status, line.fix) == ("error", "Make more GPUs visible, or rehearse with --engine rehearsal.")
    assert line.found == f"parallel: 8 ranks need 8 GPUs, CUDA_VISIBLE_DEVICES leaves {left}"
    assert found(machine, flagship) == []


def test_parts_of_gpus(node, flagship, rehearsal):
    machine = node(h100s(), settings=visible("0,1,MIG-77"))
    line = checks_of(machine, flagship)["visible GPUs"]
    assert (line.status, line.found) == ("error", "CUDA_VISIBLE_DEVICES: 'MIG-77' is a part of a GPU (MIG)")
    assert line.fix == "Give numbers or UUIDs of whole GPUs, as nvidia-smi -L shows them, or unset it."
    assert problems(machine, flagship) == [("error", "visible GPUs")]
    assert "visible GPUs" not in checks_of(machine, rehearsal)


def test_uuids_where_nvml_tells_none(node, flagship):
    machine = node(
        h100s(fails={"nvmlDeviceGetUUID": pynvml.NVML_ERROR_NOT_SUPPORTED}), settings=visible("GPU-52a3a853")
    )
    line = checks_of(machine, flagship)["visible GPUs"]
    assert line.found == "CUDA_VISIBLE_DEVICES: 'GPU-52a3a853' is a UUID, but NVML shows no UUIDs here"


def test_uuids_are_the_gpus_that_they_name(node, flagship):
    deployment = with_settings(flagship, parallel={"tp": 2, "pp": 1})
    full = "GPU-52a3a856-0000-0000-0000-82c69ed360fc"
    machine = node(h100s(), topology=recorded("dgx-h100"), settings=visible(f"{full},GPU-52a3a852"))
    assert problems(machine, deployment) == []
    assert [line.found for line in lines(machine, deployment, "placement")] == [
        "stage 0: GPUs 2, 6 (NV18): layers 0-79"
    ]
    assert [gpu.index for gpu in gpus_of_ranks(machine, deployment)] == [2, 6]


def test_a_variable_that_says_more_than_cuda_takes(node, flagship):
    deployment = with_settings(flagship, parallel={"tp": 2, "pp": 1})
    machine = node(h100s(), topology=recorded("dgx-h100"), settings=visible("3,4,GPU-52a3a852,5"))
    assert problems(machine, deployment) == [("warning", "visible GPUs")]
    line = checks_of(machine, deployment)["visible GPUs"]
    assert line.found == (
        "CUDA_VISIBLE_DEVICES=3,4,GPU-52a3a852,5 leaves GPUs 3, 4: 'GPU-52a3a852' is not a number and ends the list"
    )


def test_only_the_gpus_that_the_variable_leaves_are_looked_at(node, flagship):
    deployment = with_settings(flagship, parallel={"tp": 2, "pp": 2})
    nvml = h100s()
    nvml.cards[0].used, nvml.cards[5].used = 70 * GIB, 5 * GIB
    found = checks_of(node(nvml, settings=visible("4,5,6,7")), deployment)["in use"]
    assert "GPU 5 by " in found.found and "up to 5.0 GiB" in found.found
    running = replace(PLACES, running=7)
    assert checks_of(node(nvml, settings=visible("4,5,6,7"), places=running), deployment)["in use"].status == "ok"
