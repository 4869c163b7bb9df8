"""What is said of the ways between the GPUs of the ranks, and of the order that the ranks get them in."""

from dataclasses import replace

import pynvml
import pytest

from tests.doctor.conftest import PLACES, checks_of, problems
from tests.doctor.fake_nvml import GIB, Card, FakeNvml, a100s_pcie, h100s
from tests.doctor.test_topology import recorded
from toolkit.config import Deployment, with_settings
from toolkit.doctor.check import Check
from toolkit.doctor.checks import run_checks
from toolkit.doctor.machine import Machine
from toolkit.doctor.settings import Setting

BRIDGED = "0,4,1,5,2,6,3,7"


def visible(value: str, order: str = "PCI_BUS_ID") -> dict[str, Setting]:
    return {"CUDA_VISIBLE_DEVICES": Setting(value), "CUDA_DEVICE_ORDER": Setting(order)}


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
    assert (found["NVLink"].found, found["rank order"].found) == ("4 of 4 pairs", "rank r on GPU r")
    assert found["P2P"].found == "10 of the 10 pairs that exchange data", "4 inside of stages, 6 between them"


def test_bridges_need_an_order_of_ranks(bridges):
    make, deployment = bridges
    found = checks_of(make(), deployment)
    assert problems(make(), deployment) == [("warning", "rank order")]
    assert (found["NVLink"].status, found["NVLink"].found) == ("ok", "4 of 4 pairs")
    order = found["rank order"]
    assert order.found == "rank r on GPU r: a stage on GPUs 0, 1 (NODE)"
    assert order.needed == "the placement above: GPUs 0, 4 (NV12)"
    assert order.fix == f"Start it after: export CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES={BRIDGED}"
    assert lines(make(), deployment, "placement")[3].found == "stage 3: GPUs 3, 7 (NV12): layers 60-79"


def test_the_order_of_the_variable_counts(bridges):
    make, deployment = bridges
    found = checks_of(make(settings=visible(BRIDGED)), deployment)["rank order"]
    assert (found.status, found.found) == ("ok", f"CUDA_VISIBLE_DEVICES={BRIDGED}")
    other = "3,7,2,6,1,5,0,4"
    assert problems(make(settings=visible(other)), deployment) == [], "as good inside of the stages"
    assert lines(make(settings=visible(other)), deployment, "placement")[0].found.startswith("stage 0: GPUs 3, 7")
    worse = checks_of(make(settings=visible("0,1,4,5,2,6,3,7")), deployment)["rank order"]
    assert (worse.status, "a stage on GPUs 0, 1 (NODE)" in worse.found) == ("warning", True)


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
    found = checks_of(machine, flagship)
    assert "placement" not in found and "rank order" not in found
    assert found["NVLink"].found == "0 of 2 pairs; over PCIe: GPUs 0-1, 2-3"
    assert checks_of(machine, rehearsal)["NVLink"].found == "0 of 6 pairs of GPUs"
    one = node(FakeNvml([Card()]))
    assert "NVLink" not in checks_of(one, flagship) and "NVLink" not in checks_of(one, None)


def test_one_gpu_for_each_stage_needs_no_nvlink(node, flagship):
    deployment = with_settings(flagship, parallel={"tp": 1, "pp": 8})
    found = checks_of(node(h100s(nvlink=lambda a, b: False)), deployment)
    assert "NVLink" not in found and found["placement"].found == "stage 7: GPU 7: layers 70-79"
    assert found["P2P"].status == "ok"


def test_replicas_get_an_order_each(node, flagship):
    deployment = with_settings(flagship, parallel={"tp": 2, "pp": 2, "replicas": 2})
    machine = node(h100s(), topology=recorded("h100-pcie-bridges"))
    order = lines(machine, deployment, "rank order")
    assert "CUDA_VISIBLE_DEVICES=0,4,1,5" in order[0].fix
    assert order[1].found == "CUDA_VISIBLE_DEVICES=2,6,3,7 for replica 1"
    assert len(lines(machine, deployment, "placement")) == 4
    small = node(h100s(4), topology=recorded("dgx-h100"))  # a table of other GPUs does not count
    assert len(lines(small, deployment, "placement")) == 2, "the one that there are GPUs for"


def test_memory_in_use_with_replicas(node, flagship):
    deployment = with_settings(flagship, parallel={"tp": 4, "pp": 1, "replicas": 2})
    nvml = h100s()
    nvml.cards[3].used = 70 * GIB
    assert checks_of(node(nvml), deployment)["in use"].status == "error"


@pytest.mark.parametrize("value", ["", "-1", "0,1,2", "0,1,2,3,4,5,9,6", "0,0,1,2,3,4,5,6"])
def test_variables_that_leave_too_few_gpus(node, flagship, value):
    machine = node(h100s(), settings=visible(value))
    order = checks_of(machine, flagship)["rank order"]
    assert (order.status, order.needed) == ("error", "8 GPUs, one for each rank")
    assert order.fix.endswith("CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7")


@pytest.mark.parametrize("value", ["GPU-6a1f6e53", "0,1,MIG-77", "all", "0x1", "99999999999999999999"])
def test_variables_that_name_gpus_otherwise(node, flagship, value):
    order = checks_of(node(h100s(), settings=visible(value)), flagship)["rank order"]
    assert (order.status, "cannot be compared" in order.found) == ("warning", True)


def test_only_the_gpus_that_the_variable_leaves_are_looked_at(node, flagship):
    deployment = with_settings(flagship, parallel={"tp": 2, "pp": 2})
    nvml = h100s()
    nvml.cards[0].used, nvml.cards[5].used = 70 * GIB, 5 * GIB
    found = checks_of(node(nvml, settings=visible("4,5,6,7")), deployment)["in use"]
    assert "GPU 5 by " in found.found and "up to 5.0 GiB" in found.found
    running = replace(PLACES, running=7)
    assert checks_of(node(nvml, settings=visible("4,5,6,7"), places=running), deployment)["in use"].status == "ok"
