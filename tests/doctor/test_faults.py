"""Memory errors and Xid lines; limits, settings and engines that would spoil a start."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.doctor.conftest import HOST, PLACES, checks_of, problems
from tests.doctor.fake_nvml import Card, FakeNvml, h100s
from tests.doctor.test_links import lines
from toolkit.config.deployment import with_settings
from toolkit.doctor.paths import Built, look_at_places
from toolkit.engine.rehearsal.build import VERSION
from toolkit.machine import environment as settings
from toolkit.machine import host
from toolkit.machine import kernel_log as kernel
from toolkit.machine.environment import Setting, look_at_settings
from toolkit.machine.kernel_log import Kernel, Xid, bus_of, look_at_kernel, parse_xids

RECORDED = Path(__file__).parent / "recorded"
LOG = Kernel(True, tuple(parse_xids((RECORDED / "dmesg-xid.txt").read_text())))


def test_memory_errors(node, flagship, rehearsal):
    nvml = h100s()
    assert checks_of(node(nvml), flagship)["ECC"].found == "no uncorrected error"
    nvml.cards[2].ecc, nvml.cards[6].ecc = 1, 3
    found = checks_of(node(nvml), flagship)["ECC"]
    assert (found.status, found.found) == ("error", "4 uncorrected errors, on GPUs 2, 6")
    assert "nvidia-smi -i 2,6 -r" in found.fix
    assert checks_of(node(nvml), rehearsal)["ECC"].status == "warning"


def test_gpus_without_ecc(node, flagship, rehearsal):
    machine = node(FakeNvml([Card(ecc=None) for _ in range(8)]))
    assert checks_of(machine, flagship)["ECC"].found.startswith("unknown: the driver does not say")
    assert "ECC" not in checks_of(machine, rehearsal)


def test_xid_lines_of_a_log():
    assert [(line.bus, line.code) for line in LOG.xids] == [
        ("0:3b:0", 31),
        ("0:4b:0", 74),
        ("0:4b:0", 74),
        ("0:8b:0", 79),
    ]
    assert LOG.xids[3].text == "pid=91833, name=tritonserver, GPU has fallen off the bus."
    older = "kernel: NVRM: Xid (0000:03:00): 14, Channel 00000001\nNVRM: Xid (PCI:0001:0A:00.0): 48\nNVRM: Xid (x): 1"
    assert parse_xids(older) == [Xid("0:3:0", 14, "Channel 00000001"), Xid("1:a:0", 48, "")]
    assert bus_of("00000000:4B:00.0") == "0:4b:0" and bus_of("") == ""


def test_xid_lines_of_the_gpus_of_ranks(node, flagship):
    """The cards are at 1b, 2b, 3b ...: 4b is GPU 3 and 8b GPU 7."""
    found = checks_of(node(h100s(), kernel=LOG), flagship)["Xid"]
    assert found.status == "warning" and found.fix.startswith(
        "Stop what runs there and reset it (nvidia-smi -i 3,7 -r)"
    )
    assert found.found == "1 x 31, 2 x 74 (NVLink error), 1 x 79 (the GPU has fallen off the bus) on GPUs 3, 7"
    small = with_settings(flagship, parallel={"pp": 1})
    assert checks_of(node(h100s(), kernel=LOG), small)["Xid"].found == "none", "not of GPUs 0 and 1"
    programs = replace(LOG, xids=LOG.xids[:1])
    assert checks_of(node(h100s(), kernel=programs), flagship)["Xid"].found == "1 x 31: faults of programs"


def test_every_xid_counts_where_nvml_tells_no_address(node, flagship):
    import pynvml

    nvml = h100s(fails={"nvmlDeviceGetPciInfo": pynvml.NVML_ERROR_NOT_SUPPORTED})
    found = checks_of(node(nvml, kernel=LOG), flagship)["Xid"]
    assert (found.status, found.found.endswith("fallen off the bus)")) == ("warning", True)


def test_a_log_that_nobody_may_read_is_not_told(node, flagship, rehearsal, monkeypatch):
    machine = node(h100s())
    assert checks_of(machine, flagship)["Xid"].found.startswith("unknown")
    assert "Xid" not in checks_of(machine, rehearsal)
    for logs in ((("/nowhere/dmesg",), ("false",)), (("true",),), ()):
        monkeypatch.setattr(kernel, "LOGS", logs)
        assert look_at_kernel() == Kernel(False), "also where it is empty, as in some containers"


def test_the_log_is_read_by_the_first_program_that_may(monkeypatch):
    monkeypatch.setattr(kernel, "LOGS", (("false",), ("cat", str(RECORDED / "dmesg-xid.txt"))))
    assert look_at_kernel() == LOG
    monkeypatch.setattr(kernel, "LOGS", (("sleep", "5"),))
    monkeypatch.setattr(kernel, "TIMEOUT_S", 0.1)
    assert not look_at_kernel().told


def test_a_libcuda_that_is_older_than_the_driver(node, flagship):
    found = checks_of(node(h100s(cuda=12080)), flagship)["CUDA"]
    assert (found.status, found.found, found.needed) == ("error", "12.8", "13.1 or newer, as this driver can")
    assert "CUDA" not in checks_of(node(h100s(driver="570.10", cuda=12080)), flagship), "the driver's line says it"
    assert "CUDA" not in checks_of(node(h100s(cuda=0)), flagship), "not told"


@pytest.mark.parametrize(
    "limits, status",
    [
        ({}, "ok"),
        ({"stack_bytes": 64 << 20, "open_files": 1344}, "ok"),
        ({"locked_bytes": 8 << 20}, "warning"),
        ({"stack_bytes": 8 << 20}, "warning"),
        ({"open_files": 1343}, "warning"),
    ],
)
def test_limits(node, flagship, limits, status):
    deployment = with_settings(flagship, limits={"max_sequences": 64, "max_queue_size": 256})
    found = checks_of(node(h100s(), host=replace(HOST, **limits)), deployment)["limits"]
    assert (found.status, found.needed) == (status, "unlimited, 64 MiB, 1344")
    assert status == "ok" or "--ulimit memlock=-1" in found.fix


def test_limits_of_a_rehearsal_are_told(node, rehearsal):
    small = replace(HOST, locked_bytes=8 << 20, open_files=1024)
    found = checks_of(node(h100s(), host=small), rehearsal)["limits"]
    assert (found.status, found.found) == ("ok", "8 MiB locked memory, unlimited stack, 1024 open files")
    assert host.look_at_host().open_files != 0


@pytest.mark.parametrize("kind", ["rehearsal", "none"])
def test_triton_needs_its_stack_in_a_rehearsal_too(node, rehearsal, kind):
    found = checks_of(
        node(h100s(), host=replace(HOST, stack_bytes=8 << 20)), rehearsal if kind == "rehearsal" else None
    )
    line = found["limits"]
    assert (line.status, line.needed) == ("warning", "64 MiB stack")
    assert line.fix == "Raise the hard limit, as root: ulimit -H -s unlimited"


def test_the_stack_that_counts_is_the_hard_limit():
    code = "import resource as r; r.setrlimit(r.RLIMIT_STACK, (1 << 20, 32 << 20))\n"
    code += "from toolkit.machine.host import look_at_host; print(look_at_host().stack_bytes >> 20)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "32\n", done.stderr


def test_nothing_needs_to_be_set(node, flagship, rehearsal):
    found = checks_of(node(h100s()), flagship)["settings"]
    assert (found.status, found.found) == ("ok", "none: NCCL's defaults are right on one NVLink node")
    assert found.fix == "Worth setting: NCCL_DEBUG=WARN says why, where a start fails"
    told = {"NCCL_DEBUG": Setting("WARN"), "NCCL_IB_DISABLE": Setting("1", "/etc/nccl.conf")}
    found = checks_of(node(h100s(), settings=told), flagship)["settings"]
    assert (found.found, found.fix) == ("NCCL_DEBUG=WARN, NCCL_IB_DISABLE=1 (/etc/nccl.conf)", "")
    assert "settings" not in checks_of(node(h100s(), settings=told), rehearsal)


@pytest.mark.parametrize(
    "name, value, harms",
    [
        ("NCCL_P2P_DISABLE", "1", "through host memory instead of NVLink"),
        ("NCCL_P2P_DISABLE", "0", ""),
        ("NCCL_P2P_LEVEL", "LOC", "through host memory instead of NVLink"),
        ("NCCL_P2P_LEVEL", "NVL", ""),
        ("NCCL_SHM_DISABLE", "1", "over the network, on the same node"),
        ("NCCL_NVLS_ENABLE", "0", ""),
        ("NCCL_ALGO", "Ring", "chooses for each size itself"),
        ("NCCL_MAX_NCHANNELS", "2", "cannot fill NVLink"),
        ("NCCL_DEBUG", "trace", "a line for every operation"),
        ("NCCL_DEBUG", "INFO", ""),
        ("CUDA_LAUNCH_BLOCKING", "1", "waits for every kernel"),
        ("CUDA_LAUNCH_BLOCKING", "", ""),
    ],
)
def test_settings_that_harm(node, flagship, name, value, harms):
    found = lines(node(h100s(), settings={name: Setting(value)}), flagship, "setting")
    assert [(check.status, harms in check.found, check.fix) for check in found] == (
        [("warning", True, f"Run: unset {name}")] if harms else []
    )
    in_a_file = lines(node(h100s(), settings={name: Setting(value, "/etc/nccl.conf")}), flagship, "setting")
    assert [check.fix for check in in_a_file] == (["Take it out of /etc/nccl.conf"] if harms else [])


def test_numbers_of_gpus_are_those_of_nvidia_smi(node, flagship):
    """Serving gives its ranks CUDA_DEVICE_ORDER=PCI_BUS_ID itself."""
    machine = node(h100s(), settings={"CUDA_VISIBLE_DEVICES": Setting("0,1,2,3,4,5,6,7")})
    assert problems(machine, flagship) == []


def test_settings_are_of_variables_and_of_files(tmp_path, monkeypatch):
    system, own = tmp_path / "nccl.conf", tmp_path / ".nccl.conf"
    system.write_text("# of the node\nNCCL_DEBUG=INFO\nNCCL_ALGO = Ring\nNCCL_IB_HCA\nOTHER=1\n")
    own.write_bytes(b"NCCL_DEBUG=TRACE\n\xff\n")
    monkeypatch.setattr(settings, "NCCL_FILES", (system, own, tmp_path / "none", tmp_path))
    variables = {"NCCL_ALGO": "Tree", "CUDA_LAUNCH_BLOCKING": "1", "SECRET": "x", "CUDA_HOME": "/usr"}
    assert look_at_settings(variables) == {
        "CUDA_LAUNCH_BLOCKING": Setting("1"),
        "NCCL_ALGO": Setting("Tree"),
        "NCCL_DEBUG": Setting("TRACE", str(own)),
    }
    monkeypatch.setattr(settings, "NCCL_FILES", (Path("~nobody-of-this-name/.nccl.conf"),))
    assert look_at_settings({}) == {}


ENGINE = Built(Path("/data/engine/config.json"), "1.2.1", tp=2, pp=4)


@pytest.mark.parametrize(
    "change, status",
    [
        ({}, "ok"),
        ({"version": "1.2.0"}, "error"),
        ({"version": VERSION}, "error"),
        ({"tp": 4, "pp": 2}, "error"),
        ({"problem": "is not valid JSON"}, "error"),
    ],
)
def test_the_engine_that_is_there(node, flagship, change, status):
    machine = node(h100s(), places=replace(PLACES, built=replace(ENGINE, **change)))
    found = checks_of(machine, flagship)["engine"]
    assert (found.status, found.fix) == (
        status,
        "" if status == "ok" else f"Build it again: toolkit build {flagship.file}",
    )
    if not change:
        assert found.found == "of TensorRT-LLM 1.2.1, for pp 4 x tp 2"


def test_a_rehearsals_engine(node, rehearsal):
    parallel = rehearsal.parallel
    good = replace(ENGINE, version=VERSION, tp=parallel.tp, pp=parallel.pp)
    for built, status in ((good, "ok"), (replace(good, tp=16), "warning")):
        assert checks_of(node(h100s(), places=replace(PLACES, built=built)), rehearsal)["engine"].status == status


def test_no_engine_no_line(node, flagship):
    assert "engine" not in checks_of(node(h100s()), flagship)
    pytorch = flagship.model_copy(update={"engine": "pytorch"})
    assert "engine" not in checks_of(node(h100s(), places=replace(PLACES, built=ENGINE)), pytorch)


MAPPING = {"mapping": {"tp_size": 2, "pp_size": 4}}


@pytest.mark.parametrize(
    "content, problem",
    [
        (json.dumps({"version": "1.2.1", "pretrained_config": MAPPING}), ""),
        ("{", "is not valid JSON"),
        ("[]", "holds a JSON list"),
        (json.dumps({"version": 1, "pretrained_config": MAPPING}), "has no version"),
        (json.dumps({"version": "1.2.1", "pretrained_config": {"mapping": [2, 4]}}), "no mapping"),
        (json.dumps({"version": "0.5", "builder_config": {}}), "no mapping"),
    ],
)
def test_engines_are_read(flagship, tmp_path, content, problem):
    deployment = flagship.model_copy(update={"output": tmp_path})
    assert look_at_places(deployment).built is None
    deployment.engine_dir.mkdir()
    (deployment.engine_dir / "config.json").write_text(content)
    built = look_at_places(deployment).built
    assert built and problem in built.problem and bool(built.problem) == bool(problem)
    assert problem or (built.version, built.tp, built.pp) == ("1.2.1", 2, 4)


def test_an_engine_that_cannot_be_opened(flagship, tmp_path):
    deployment = flagship.model_copy(update={"output": tmp_path})
    (deployment.engine_dir / "config.json").mkdir(parents=True)
    built = look_at_places(deployment).built
    assert built and built.problem
    assert [path.name for path in tmp_path.iterdir()] == ["engine"], "it changes nothing"
