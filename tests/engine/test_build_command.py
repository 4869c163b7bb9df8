"""`toolkit build` with engine: tensorrt as a person meets it, with a double of NVML for the GPUs."""

import os
import re
from collections import namedtuple

import pynvml
import pytest

from tests.doctor.fake_nvml import GIB, FakeNvml, a100s_pcie, h100s
from toolkit.checkpoint import convert
from toolkit.cli.main import main
from toolkit.engine import dry_run, plan_build
from toolkit.errors import ToolkitError
from toolkit.files.artifacts import read_lock
from toolkit.machine import gpus

USAGE = namedtuple("usage", "total used free")(10**10, 10**10 - 10**6, 10**6)


@pytest.fixture
def toolkit(monkeypatch, capsys):
    """toolkit(NVML, *arguments) -> (exit code, stderr)."""

    def run(nvml: FakeNvml, *arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(gpus, "load_library", lambda: nvml)
        monkeypatch.setattr("sys.argv", ["toolkit", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, capsys.readouterr().err

    return run


@pytest.fixture
def refused(toolkit, make):
    """refused(NVML, *options, **changes of the YAML) -> the one error line; nothing was made."""

    def run(nvml: FakeNvml, *options: object, **changes) -> str:
        deployment = make(converted=False, **changes)
        code, text = toolkit(nvml, "build", deployment.file, *options)
        lines = [line for line in text.splitlines() if not re.match(r"[a-z_]+  ", line)]  # the flags
        assert (code, len(lines)) == (1, 1), text
        assert lines[0].startswith("error: ") and not deployment.output.exists()
        return lines[0]

    return run


def test_it_builds_and_records_the_gpus_it_was_built_on(toolkit, make, program):
    deployment = make(converted=False)
    code, text = toolkit(h100s(driver="580.95.05"), "build", deployment.file)
    assert code == 0, text
    assert "warning: driver: 580.95.05, for CUDA 13.1 and older; needs 590.44 or newer" in text
    assert "\nconverted\nbuilt\n" in text
    assert read_lock(deployment.engine_dir).settings["sm"] == "9.0"
    in_use = h100s()
    for card in in_use.cards:
        card.used = 79 * GIB
    code, text = toolkit(in_use, "build", deployment.file)
    assert code == 0 and "already built from the same checkpoint; nothing to do" in text, "nothing is needed of GPUs"
    code, text = toolkit(NONE, "build", deployment.file)
    assert code == 0 and "already built" in text
    toolkit(a100s_pcie(), "plan", deployment.file)
    assert plan_build(deployment).built_from is None, "other GPUs are here now, for which another engine is to be built"


NONE = FakeNvml([], fails={"nvmlInit": pynvml.NVML_ERROR_LIBRARY_NOT_FOUND})


def test_without_a_gpu(refused, program):
    says = "error: GPUs: no GPU is visible: no NVIDIA driver (libnvidia-ml.so.1 is not here); needs one to build on."
    assert refused(NONE).startswith(says)
    assert refused(NONE, engine={"workers": None}).startswith(says)


def test_hidden_gpus(refused, program, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    says = "CUDA_VISIBLE_DEVICES hides every GPU: -1 ends the list; needs one to build on. Correct or unset it"
    assert says in refused(h100s())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-8a56")
    says = "CUDA_VISIBLE_DEVICES: 'MIG-8a56' is a part of a GPU (MIG); needs one to build on. Give numbers or UUIDs"
    assert says in refused(h100s())


def test_a_build_keeps_to_the_gpus_of_the_batch_system(make, monkeypatch):
    monkeypatch.setattr(gpus, "load_library", h100s)
    deployment = make(converted=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,2,7")
    assert "export CUDA_VISIBLE_DEVICES=5,2\n" in dry_run(deployment)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-52a3a855,GPU-52a3a852,GPU-52a3a857")
    assert "export CUDA_VISIBLE_DEVICES=5,2\n" in dry_run(deployment)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8a56")
    with pytest.raises(ToolkitError, match=r"hides every GPU: no GPU has the UUID 'GPU-8a56'\. Correct or"):
        dry_run(deployment)


def test_another_kind_of_gpu(refused, program):
    assert refused(a100s_pcie()).startswith("error: GPU kind: a100-pcie; needs h100-sxm. Set hardware.gpu")


def test_gpus_in_use_by_others(refused, program):
    nvml = h100s()
    for card in nvml.cards[1:]:
        card.used, card.pids = nvml.cards[0].total - (1 << 18), (999999999,)
    line = refused(nvml)  # with two workers, GPUs 0 and 1 are built on
    assert line.startswith("error: in use: GPU 1 by process 999999999, up to 79.6 GiB; needs 0 MiB free"), line
    assert line.endswith("Stop it (nvidia-smi shows what runs there), or choose other GPUs by CUDA_VISIBLE_DEVICES.")


def test_a_full_disk(refused, program, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: USAGE)
    assert refused(h100s()).startswith("error: disk: 1.0 MB free on the disk of ")


def test_a_model_that_is_not_there_is_no_error_with_a_checkpoint(toolkit, make, program, tmp_path, tiny_llama):
    other = make(parallel={"tp": 1, "pp": 2})
    convert(other)
    given = other.checkpoint_dir.rename(tmp_path / "given")
    deployment = make(converted=False)
    code, text = toolkit(h100s(), "build", deployment.file, "--checkpoint", given)
    assert code == 1 and f"error: {given}: has tp 1, {deployment.file} says 2. Convert it again" in text


def test_extra_flags_that_contradict(refused, program):
    assert "contradicts 4, which comes from: limits" in refused(h100s(), engine={"extra": {"max_batch_size": 64}})


def test_the_yaml_comes_before_what_the_machine_lacks(refused, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "contradicts 4, which comes from: limits" in refused(NONE, engine={"extra": {"max_batch_size": 64}})
    assert "kv_cache.dtype: fp8 can be planned, not converted" in refused(NONE, kv_cache={"dtype": "fp8"})


def test_a_missing_docker(refused, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "runtime.kind: there is no docker on PATH. Install Docker" in refused(h100s(), runtime="docker")


def test_an_image_without_the_program(toolkit, make, tmp_path, monkeypatch):
    (tmp_path / "docker").write_text(DOCKER)
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    code, text = toolkit(h100s(), "build", make(runtime="docker").file)
    assert code == 1 and text.splitlines()[-1].endswith(
        "build.log: trtllm-build: is not in the image. Use one of docs/reference/contracts.md that has engines, "
        "or correct runtime.image."
    )


DOCKER = """#!/bin/sh
case "$1" in
  info) echo '{"ServerVersion": "28.2", "Runtimes": {"nvidia": {}}}' ;;
  container) exit 1 ;;
  run) echo 'docker: Error response from daemon: failed to create task for container: exec: "trtllm-build":' \
    'executable file not found in $PATH: unknown.'; exit 127 ;;
esac
"""
