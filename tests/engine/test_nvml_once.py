"""NVML is opened once for a command: on a node with a broken GPU each opening can take seconds."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.commands import toolkit
from tests.doctor.fake_nvml import FakeNvml, h100s
from toolkit.machine import gpus

ROOT = Path(__file__).parents[2]
FLAGSHIP = ROOT / "build_configs/llama3-70b-h100-pp4tp2-fp16.yaml"


@pytest.fixture
def nvml(monkeypatch) -> FakeNvml:
    library = h100s()
    monkeypatch.setattr(gpus, "load_library", lambda: library)
    return library


@pytest.fixture
def opened(nvml) -> Callable[..., int]:
    """opened(*arguments of toolkit) -> how often it opened NVML. It also closed it."""

    def run(*arguments: object) -> int:
        before = nvml.opened
        toolkit(*arguments)
        assert nvml.open == 0
        return nvml.opened - before

    return run


@pytest.mark.parametrize("visible", [None, "0,1,2,3,4,5,6,7"])
def test_build(opened, make, program, monkeypatch, visible):
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("toolkit.engine.tensorrt.plan.available_memory", lambda: 200 * 2**30)
    deployment = make({"workers": None}, converted=False)
    assert opened("build", deployment.file) == 1
    assert (deployment.engine_dir / "rank3.engine").is_file()
    assert opened("build", deployment.file) == 1, "what is built is found by looking once, too"
    assert opened("build", deployment.file, "--dry-run") == 1


def test_doctor(opened, tmp_path):
    assert opened("doctor", FLAGSHIP) == opened("doctor") == 1
    assert opened("doctor", FLAGSHIP, "--bundle", tmp_path / "bundle.tar.gz") == 1


@pytest.mark.parametrize("visible, times", [(None, 0), ("0,1,2,3,4,5,6,7", 1)])
def test_a_dry_run_of_serve_needs_it_for_the_variable_only(opened, tmp_path, monkeypatch, visible, times):
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    content = yaml.safe_load(FLAGSHIP.read_text())
    content |= {"parallel": {"tp": 2, "pp": 2, "replicas": 2}, "output": str(tmp_path / "out")}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(content))
    assert opened("serve", FLAGSHIP, "--dry-run") == times
    assert opened("serve", tmp_path / "x.yaml", "--dry-run") == times, "once for all replicas"


def test_plan_does_not_need_it(opened, tmp_path):
    content = yaml.safe_load(FLAGSHIP.read_text())
    content["workload"] |= {"rate": 3, "requests": 40, "output_tokens": 16}
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(content))
    assert opened("plan", tmp_path / "few.yaml") == 0
