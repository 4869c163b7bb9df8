"""GPUs through NVML, the library, which is a double here: what is seen, and what is judged of it."""

import re
from dataclasses import replace
from pathlib import Path

import pynvml
import pytest

from tests.doctor.conftest import PLACES, checks_of, problems
from tests.doctor.fake_nvml import GIB, H100, Card, FakeNvml, a100s_pcie, h100s
from toolkit.config.deployment import with_settings
from toolkit.config.load import load_deployment
from toolkit.doctor.check_gpus import kind
from toolkit.machine import gpus as gpus_module
from toolkit.machine.gpus import Gpu, Gpus, look_at_gpus
from toolkit.sizing.gpus import GPUS


def test_every_function_that_is_asked_is_one_of_nvidia_ml_py():
    """What the double cannot show: a misspelt name would be an AttributeError on a GPU node only."""
    source = Path(gpus_module.__file__).read_text()
    names = set(re.findall(r"\bnvml\.(\w+)", source)) | set(gpus_module.REASONS)
    assert len(names) > 12
    assert [name for name in names if not hasattr(pynvml, name)] == []


def test_this_machine_is_seen_or_it_says_why_not():
    found = look_at_gpus()
    assert bool(found.seen) != bool(found.problem)
    if not Path("/proc/driver/nvidia").exists():
        assert found.problem


def test_eight_h100(seen):
    nvml = h100s()
    found = seen(nvml)
    assert (found.driver, found.cuda, found.problem) == ("590.44.01", "13.1", "")
    facts = {
        "bus": "00000000:8B:00.0",
        "ecc_errors": 0,
        "sm": "9.0",
        "uuid": "GPU-52a3a857-0000-0000-0000-82c69ed360fc",
    }
    assert found.seen[7] == Gpu(7, H100, int(79.65 * GIB), 3 << 20, **facts)
    assert len(found.links) == 28 and {link.way for link in found.links} == {"NVLink"}
    assert nvml.open == 0, "NVML is closed again"


def test_the_flagship_fits_a_node_of_eight_h100(node, flagship):
    machine = node(h100s())
    found = checks_of(machine, flagship)
    assert problems(machine, flagship) == []
    assert found["GPUs"].found == "8 x NVIDIA H100 80GB HBM3"
    assert found["NVLink"].found == "4 of 4 pairs", "those inside the tensor parallel groups"
    assert found["driver"].found == "590.44.01, for CUDA 13.1 and older"
    assert found["in use"].found == "by nobody"


def test_four_a100_on_pcie_are_too_few_of_another_kind_without_nvlink(node, flagship):
    machine = node(a100s_pcie())
    found = checks_of(machine, flagship)
    assert problems(machine, flagship) == [("error", "GPUs"), ("error", "GPU kind")]
    assert (found["GPUs"].found, found["GPUs"].needed) == ("4 x NVIDIA A100 80GB PCIe", "8, one for each rank")
    assert (found["GPU kind"].found, found["GPU kind"].needed) == ("a100-pcie", "h100-sxm")
    assert found["NVLink"].found == "0 of 6 pairs of GPUs"


def test_pcie_where_pcie_is_planned_is_slow_and_no_error(node, flagship):
    hardware = flagship.hardware.model_copy(update={"gpu": "a100-pcie"})
    planned = flagship.model_copy(update={"hardware": hardware})
    found = checks_of(node(a100s_pcie(8)), planned)
    assert (found["NVLink"].status, found["GPU kind"].status) == ("warning", "ok")
    assert "It works, but slowly" in found["NVLink"].fix


def test_nvlink_matters_only_inside_the_groups(node, flagship):
    bridged = FakeNvml([Card() for _ in range(8)], nvlink=lambda a, b: a // 2 == b // 2)
    assert problems(node(bridged), flagship) == []
    shifted = FakeNvml([Card() for _ in range(8)], nvlink=lambda a, b: (a + 1) // 2 == (b + 1) // 2)
    assert problems(node(shifted), flagship) == [("warning", "NVLink"), ("warning", "placement")]
    down = FakeNvml([Card() for _ in range(8)], nvlink=lambda a, b: False)
    assert problems(node(down), flagship) == [("error", "NVLink")]
    assert "nvidia-fabricmanager" in checks_of(node(down), flagship)["NVLink"].fix, "SXM has NVLink, so it is down"


@pytest.mark.parametrize(
    "driver, status", [("590.44.01", "ok"), ("595.10", "ok"), ("590.43", "error"), ("580.95.05", "error")]
)
def test_drivers(node, flagship, driver, status):
    found = checks_of(node(h100s(driver=driver)), flagship)["driver"]
    assert (found.status, found.needed) == (status, "590.44 or newer for tritonserver:26.07-trtllm-python-py3")


@pytest.mark.parametrize(
    "version, needed",
    [
        ("1.0.0", "575.57 or newer for tritonserver:25.10-trtllm-python-py3"),
        ("1.0.1", "580.95 or newer for tritonserver:25.11-trtllm-python-py3"),
    ],
)
def test_the_driver_that_the_image_of_the_release_wants(node, flagship, version, needed):
    older = with_settings(flagship, engine_options={"version": version})
    found = checks_of(node(h100s(driver="580.95.05")), older)["driver"]
    assert (found.status, found.needed) == ("ok", needed)


def test_memory_in_use_by_others(node, flagship):
    nvml = h100s()
    nvml.cards[2].used, nvml.cards[2].pids = 60 * GIB, (999_999_998, 999_999_999)
    found = checks_of(node(nvml), flagship)["in use"]
    assert found.found == "GPU 2 by process 999999998, process 999999999, up to 60.0 GiB"
    assert (found.status, found.needed) == (
        "error",
        "42.1 GiB free on the fullest GPU",
    )  # 17.9 weights, 20 KV, 4.2 workspace
    nvml.cards[2].used = 5 * GIB
    assert checks_of(node(nvml), flagship)["in use"].status == "warning", "what is planned fits beside it"


def test_memory_in_use_by_the_deployment_itself(node, flagship):
    nvml = h100s()
    for card in nvml.cards:
        card.used = 75 * GIB
    found = checks_of(node(nvml, places=replace(PLACES, running=4711)), flagship)["in use"]
    assert (found.status, found.found) == ("ok", "by this deployment, which is running (process 4711)")


def test_gpus_of_no_rank_do_not_matter(node, flagship):
    small = flagship.model_copy(update={"parallel": flagship.parallel.model_copy(update={"pp": 2})})
    nvml = h100s()
    nvml.cards[4].used, nvml.cards[7].mig = 70 * GIB, True
    assert problems(node(nvml), small) == []


def test_too_little_memory(node, flagship):
    found = checks_of(node(FakeNvml([Card(total=40 * GIB) for _ in range(8)])), flagship)["GPU memory"]
    assert (found.status, found.found) == ("error", "40.0 GiB each")
    assert found.needed == "79.6 GiB (hardware.gpu_memory_gib)"


def test_mig(node, flagship):
    nvml = h100s()
    nvml.cards[1].mig = nvml.cards[3].mig = True
    found = checks_of(node(nvml), flagship)["MIG"]
    assert (found.status, found.found, found.fix) == (
        "error",
        "on: GPUs 1, 3",
        "Turn it off: nvidia-smi -i 1,3 -mig 0",
    )


def test_a_gpu_that_fell_off_the_bus(node, flagship):
    machine = node(h100s(lost=3))
    found = checks_of(machine, flagship)["broken"]
    assert (found.status, found.found) == ("error", "GPU 3: NVML cannot open it")
    assert "Xid" in found.fix
    assert checks_of(machine, flagship)["NVLink"].found == "3 of 4 pairs, 1 unknown"


def test_fields_that_nvml_does_not_tell(node, seen, flagship):
    """Unified memory (GB10) tells no memory, some containers no topology and no processes."""
    silent = ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetP2PStatus", "nvmlDeviceGetComputeRunningProcesses")
    silent += ("nvmlDeviceGetUUID",)
    cards = [Card("NVIDIA GH200 480GB", mig=None) for _ in range(8)]
    nvml = FakeNvml(cards, fails=dict.fromkeys(silent, pynvml.NVML_ERROR_NOT_SUPPORTED))
    found = seen(nvml)
    assert found.seen[0] == Gpu(0, "NVIDIA GH200 480GB", bus="00000000:1B:00.0", ecc_errors=0, sm="9.0")
    assert {link.way for link in found.links} == {"unknown"}
    expected = [("error", "GPU kind"), ("warning", "GPU memory"), ("warning", "NVLink")]
    assert problems(node(nvml), flagship) == expected
    assert "unknown" in checks_of(node(nvml), flagship)["GPU memory"].found


def test_old_drivers_have_only_the_first_form_of_memory(seen):
    found = seen(h100s(fails={"nvmlDeviceGetMemoryInfo_v2": pynvml.NVML_ERROR_FUNCTION_NOT_FOUND}))
    assert found.seen[0].memory_bytes == int(79.65 * GIB)


@pytest.mark.parametrize(
    "code, problem, fix",
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "no NVIDIA driver", ""),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "is installed and not loaded", "modprobe nvidia"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "was updated", "Reboot"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "may not use", "/dev/nvidia"),
        (pynvml.NVML_ERROR_UNKNOWN, "NVML says: Unknown Error", "dmesg"),
    ],
)
def test_no_nvml(seen, code, problem, fix):
    for function in ("nvmlInit", "nvmlDeviceGetCount"):
        found = seen(h100s(fails={function: code}))
        assert found.seen == () and problem in found.problem and fix in found.fix


def test_without_the_package(monkeypatch):
    def missing():
        raise ModuleNotFoundError("No module named 'pynvml'")

    monkeypatch.setattr(gpus_module, "load_library", missing)
    assert look_at_gpus() == Gpus(problem="nvidia-ml-py is not installed", fix="Run: pip install nvidia-ml-py")


def test_no_gpu_is_one_error_for_a_deployment_and_none_for_a_rehearsal(node, flagship, rehearsal):
    machine = node(FakeNvml([], fails={"nvmlInit": pynvml.NVML_ERROR_LIBRARY_NOT_FOUND}))
    assert problems(machine, flagship) == [("error", "GPUs")]
    assert "rehearse with --engine rehearsal" in checks_of(machine, flagship)["GPUs"].fix
    for deployment in (rehearsal, None):
        assert checks_of(machine, deployment)["GPUs"].status == "ok"


def test_a_driver_without_gpus(node, flagship):
    found = checks_of(node(FakeNvml([])), flagship)["GPUs"]
    assert (found.status, found.found) == ("error", "none: the NVIDIA driver sees no GPU")


def test_the_yaml_of_a_rehearsal_on_gpus(node):
    config = Path(__file__).parents[2] / "build_configs/tiny-llama-rehearsal.yaml"
    found = checks_of(node(h100s()), load_deployment(config, "tensorrt"))["GPU kind"]
    assert (found.status, found.found) == ("warning", "h100-sxm")


NAMES = {
    "NVIDIA H100 80GB HBM3": "h100-sxm",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H100 NVL": "h100-nvl",
    "NVIDIA H200": "h200-sxm",
    "NVIDIA A100-SXM4-80GB": "a100-sxm",
    "NVIDIA A100 80GB PCIe": "a100-pcie",
    "Tesla V100-SXM2-16GB": "v100-sxm",
    "Tesla T4": "t4",
    "NVIDIA GH200 480GB": "gh200",
    "NVIDIA B200": "b200-sxm",
    "NVIDIA L40S": "l40s",
    "NVIDIA GeForce RTX 4090": "rtx-4090",
    "Graphics Device": "graphics device",
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_gpus(name):
    assert kind(name) == NAMES[name]


def test_every_gpu_that_the_planner_knows_can_be_told():
    assert set(GPUS) <= set(NAMES.values())


def test_only_processes_that_have_a_gpu_open_are_named(seen, monkeypatch, tmp_path):
    """A container sees the host's pids, which are those of other processes inside of it, or of none."""
    for pid, device in ((7, "/dev/nvidia0"), (8, "/dev/null")):
        (tmp_path / str(pid) / "fd").mkdir(parents=True)
        (tmp_path / str(pid) / "fd" / "3").symlink_to(device)
        (tmp_path / str(pid) / "comm").write_text("python3\n")
    monkeypatch.setattr(gpus_module, "PROC", tmp_path)
    found = seen(FakeNvml([Card(pids=(7, 8, 9))])).seen[0].processes
    assert list(map(str, found)) == ["process 7 (python3)", "process 8", "process 9"]


def test_every_replica_needs_its_gpus(node, flagship):
    deployment = with_settings(flagship, parallel={"tp": 4, "pp": 1, "replicas": 2})
    count = checks_of(node(h100s(6)), deployment)["GPUs"]
    assert (count.status, count.needed) == ("error", "8, one for each rank")
    nvml = h100s()
    nvml.cards[7].used = 70 * GIB
    in_use = checks_of(node(nvml), deployment)["in use"]
    assert in_use.status == "error", "by the last rank of the second replica"
