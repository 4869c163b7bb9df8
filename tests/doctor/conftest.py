from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.doctor.fake_nvml import FakeNvml
from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.doctor import run_checks
from toolkit.doctor.check import Check
from toolkit.doctor.machine import Machine
from toolkit.doctor.paths import Disk, Model, Places, Port
from toolkit.doctor.programs import Program, Programs
from toolkit.machine import gpus
from toolkit.machine.gpus import Gpus, look_at_gpus
from toolkit.machine.host import Host

ROOT = Path(__file__).parents[2]
GIB = 2**30


@pytest.fixture
def seen(monkeypatch) -> Callable[[Any], Gpus]:
    """What the toolkit sees through a given NVML."""

    def see(nvml: Any) -> Gpus:
        monkeypatch.setattr(gpus, "load_library", lambda: nvml)
        return look_at_gpus()

    return see


@pytest.fixture
def flagship() -> Deployment:
    return load_deployment(ROOT / "build_configs/llama3-70b-h100-pp4tp2-fp16.yaml")


@pytest.fixture
def rehearsal() -> Deployment:
    return load_deployment(ROOT / "build_configs/tiny-llama-rehearsal.yaml")


HOST = Host(224, 224.0, 2000 * GIB, None, 1900 * GIB, 1000 * GIB, 999 * GIB)
PROGRAMS = Programs(
    python="3.12.3",
    mpirun=Program(Path("/opt/hpcx/ompi/bin/mpirun"), "Open MPI 4.1"),
    tritonserver=Program(Path("/opt/tritonserver/bin/tritonserver"), "2.59.0"),
    backends=("python", "tensorrtllm"),
    docker=None,
    nvidia_smi=Path("/usr/bin/nvidia-smi"),
    packages={"tensorrt-llm": "1.2.1", "torch": "2.9.0"},
)
PLACES = Places(
    model=Model(Path("/models/x"), weights=30, weight_bytes=141_107_412_992),
    disks=(Disk(Path("/data"), True, 1_000_000_000_000, {"checkpoint": 143_200_000_000}),),
    made=("engine",),
    ports=(Port("http_port", "127.0.0.1:8000"),),
    shared_memory_bytes=GIB,
    running=None,
)


@pytest.fixture
def node(seen) -> Callable[..., Machine]:
    """A node of 8 H100 inside NVIDIA's image, on which the flagship can run; parts can be replaced."""

    def make(nvml: FakeNvml, **parts: Any) -> Machine:
        return Machine(**{"gpus": seen(nvml), "host": HOST, "programs": PROGRAMS, "places": PLACES, **parts})

    return make


def checks_of(machine: Machine, deployment: Deployment | None) -> dict[str, Check]:
    """By name; a test that looks at a name which has several lines looks at the last."""
    return {check.name: check for checks in run_checks(machine, deployment).values() for check in checks}


def problems(machine: Machine, deployment: Deployment | None) -> list[tuple[str, str]]:
    """(status, name) of everything that is not ok."""
    found = checks_of(machine, deployment).values()
    return [(check.status, check.name) for check in found if check.status != "ok"]
