"""What is missing is told before anything starts, on one line with the fix; nothing is fetched."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from toolkit.errors import ToolkitError
from toolkit.runtime import Needs, require, require_runtime
from toolkit.runtime.images import fetch

GOOD = {"ServerVersion": "28.2.2", "Runtimes": {"runc": {}, "nvidia": {"path": "nvidia-container-runtime"}}}
NO_DAEMON = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"


def says(info: object, status: int = 0, err: str = "") -> tuple[int, str, str, float]:
    return (status, info if isinstance(info, str) else json.dumps(info), err, 0)


def refused(deployment, needs: Needs | None = None) -> str:
    with pytest.raises(ToolkitError) as caught:
        require_runtime(deployment, needs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_host_needs_nothing(deploy, programs):
    require_runtime(deploy("host"))
    assert programs.calls == []


def test_docker_is_asked_and_nothing_is_pulled(deploy, programs):
    programs.add("docker", info=says(GOOD), image=says("sha256:1"), container=says("", 1, "No such container"))
    require_runtime(deploy({"kind": "docker", "image": "me/mine:1"}))
    assert [call[:-1] for call in programs.calls] == [
        ["docker", "info", "--format", "{{json .}}"],
        ["docker", "image", "inspect", "--format", "{{.Id}}", "me/mine:1"],
        ["docker", "container", "inspect", "--format", "{{.State.Status}}", "toolkit-flagship"],
    ]


def test_gpus_by_cdi(deploy, programs):
    info = {**GOOD, "Runtimes": {"runc": {}}, "DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=0"}]}
    programs.add("docker", info=says(info), image=says("sha256:1"), container=says("", 1))
    require_runtime(deploy("docker"))


def test_docker_without_root(deploy, programs):
    info = {**GOOD, "SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless"]}
    programs.add("docker", info=says(info), image=says("sha256:1"), container=says("", 1))
    assert refused(deploy("docker")).endswith("Set runtime.options: [--user, '0:0'].")
    require_runtime(deploy({"kind": "docker", "options": ["--user", "0:0"]}))


def test_a_container_of_this_name_is_there(deploy, programs):
    programs.add("docker", info=says(GOOD), image=says("sha256:1"), container=says("running\n"))
    message = refused(deploy("docker"), Needs(name="mine"))
    assert message == "there is already a container mine, running. If nobody needs it, run: docker rm --force mine"


def test_no_docker(deploy, programs):
    assert "runtime.kind: there is no docker on PATH. Install Docker Engine" in refused(deploy("docker"))


@pytest.mark.parametrize(
    "answer",
    [
        says({"ServerVersion": "", "Runtimes": None}, 1, NO_DAEMON),
        says({"ServerErrors": [NO_DAEMON]}),
        says("", 1, NO_DAEMON),
        says("no JSON", 0, NO_DAEMON),
        says([], 0, NO_DAEMON),
    ],
)
def test_the_daemon_does_not_answer(deploy, programs, answer):
    programs.add("docker", info=answer)
    message = refused(deploy("docker"))
    assert f"docker's daemon does not answer: {NO_DAEMON[:40]}" in message
    assert message.endswith("Run: sudo systemctl start docker")


def test_the_daemon_may_not_be_asked(deploy, programs):
    programs.add("docker", info=says("", 1, "permission denied while trying to connect to the Docker daemon socket"))
    assert "this user may not ask docker. Run: sudo usermod -aG docker $USER" in refused(deploy("docker"))


def test_docker_hangs(deploy, programs, monkeypatch):
    monkeypatch.setattr(require, "TIMEOUT_S", 0.5)
    programs.add("docker", info=(0, "", "", 30))
    assert "docker info gave no answer in 0.5 s. Look at: systemctl status docker" in refused(deploy("docker"))


def test_docker_is_no_program(deploy, programs):
    (programs.folder / "docker").write_text("#!/nowhere/python\n")
    (programs.folder / "docker").chmod(0o755)
    assert "docker does not run: No such file or directory" in refused(deploy("docker"))


def test_no_nvidia_runtime(deploy, programs):
    programs.add("docker", info=says({**GOOD, "Runtimes": {"runc": {}}}))
    message = refused(deploy("docker"))
    assert "docker has no nvidia runtime" in message and "sudo nvidia-ctk runtime configure" in message


def test_more_cores_than_docker_has(deploy, programs):
    """docker run refuses --cpus above the machine's: "Range of CPUs is from 0.01 to 2.00"."""
    programs.add("docker", info=says({**GOOD, "NCPU": 24}), image=says("sha256:1"), container=says("", 1))
    needs = Needs(gpus=(0, 1))
    line = refused(deploy("docker"), needs)
    assert line.endswith(
        "hardware.cores_per_gpu: 16 for each of 2 GPUs are 32 cores, and docker's machine has 24. Set it to 12 or less."
    )
    require_runtime(deploy({"kind": "docker", "options": ["--cpus", "24"]}), needs)  # the later option wins
    require_runtime(deploy("docker", hardware={"cores_per_gpu": 12}), needs)


def test_a_rehearsal_needs_no_nvidia_runtime(deploy, programs):
    programs.add("docker", info=says({**GOOD, "Runtimes": {"runc": {}}}), image=says("", 1), container=says("", 1))
    message = "runtime.image: python:3.12-slim is not on this machine. Run: docker pull python:3.12-slim"
    assert refused(deploy("docker", engine="rehearsal")) == message


def test_the_image_is_not_pulled(deploy, programs):
    programs.add("docker", info=says(GOOD), image=says("", 1, "No such image"))
    name = "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"
    assert refused(deploy("docker")) == f"runtime.image: {name} is not on this machine. Run: docker pull {name}"


@pytest.mark.parametrize(
    ("kind", "helpers", "missing"),
    [
        ("enroot", [], "runtime.kind: there is no enroot on PATH. Install enroot"),
        ("enroot", ["enroot"], "runtime.kind: enroot: there is no squashfuse on PATH. Install enroot, squashfuse"),
        ("enroot", ["enroot", "squashfuse"], "there is no fuse-overlayfs on PATH"),
        ("apptainer", [], "runtime.kind: there is no apptainer on PATH. Install apptainer"),
    ],
)
def test_no_program(deploy, programs, kind, helpers, missing):
    for name in helpers:
        programs.add(name)
    assert missing in refused(deploy(kind))


@pytest.mark.parametrize(("kind", "suffix"), [("enroot", ".sqsh"), ("apptainer", ".sif")])
def test_the_image_file(deploy, programs, kind, suffix):
    for name in (kind, "squashfuse", "fuse-overlayfs"):
        programs.add(name)
    deployment = deploy(kind)
    file = deployment.output.parent / "images" / f"tritonserver-26.07-trtllm-python-py3{suffix}"
    assert refused(deployment) == f"{file}: there is no image here. Run: {fetch(deployment)}"
    file.parent.mkdir(parents=True)
    file.touch()
    require_runtime(deployment)
    assert programs.calls == [], "neither has anything to be asked"


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("nvcr.io/nvidia/tritonserver:26.07", "docker://nvcr.io#nvidia/tritonserver:26.07"),
        ("me/mine:1", "docker://me/mine:1"),
        ("ubuntu", "docker://ubuntu"),
        ("localhost:5000/a/b", "docker://localhost:5000#a/b"),
    ],
)
def test_the_commands_that_fetch_an_image(deploy, image, name):
    enroot, apptainer = (shlex.split(fetch(deploy({"kind": kind, "image": image}))) for kind in ("enroot", "apptainer"))
    assert enroot[:2] == apptainer[:2] == ["mkdir", "-p"] and enroot[3] == apptainer[3] == "&&"
    assert enroot[4:7] == ["enroot", "import", "--output"] and enroot[7].endswith(".sqsh") and enroot[8] == name
    assert apptainer[4:6] == ["apptainer", "build"] and apptainer[6].endswith(".sif")
    assert apptainer[7] == f"docker://{image}"


def test_what_a_command_needs(deploy, programs, tmp_path):
    assert re.search(
        "/gone: does not exist, and the command reads it", refused(deploy(), Needs(reads=(tmp_path / "gone",)))
    )
    assert "cores near the GPUs: there is no taskset" in refused(deploy(), Needs(cores=(0,)))
    assert "cores near the GPUs: there is no numactl" in refused(deploy(), Needs(cores=(0,), nodes=(0,)))
    programs.add("numactl")
    require_runtime(deploy(), Needs(cores=(0,), nodes=(0,)))
