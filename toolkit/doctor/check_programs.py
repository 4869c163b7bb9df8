"""Checks that the programs and packages are there, in versions that fit each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from toolkit.config.engine_kind import REHEARSAL, EngineKind
from toolkit.doctor.check import Check, needs_gpus, place, verdict
from toolkit.doctor.machine import Machine
from toolkit.doctor.programs import Program
from toolkit.files.distribution import install
from toolkit.runtime.images import advised

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

IN_THE_IMAGE = "Run it in the image: docker run --gpus all --net host --shm-size=2g --ulimit memlock=-1 "
IN_THE_IMAGE += "--ulimit stack=67108864 --ulimit nofile=65536 -it {}"


def _in_the_image(machine: Machine, deployment: Deployment | None) -> bool:
    """Whether tritonserver and mpirun are those of an image. In a container a rehearsal's are this machine's."""
    return machine.programs.container is not None and needs_gpus(deployment)


def container(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """The container. With one, tritonserver, mpirun and tensorrt-llm are those of the image, unless it is rehearsed."""
    found = machine.programs.container
    if found is not None and deployment is not None:
        problem = found.problem.removeprefix(f"{deployment.file}: ").removeprefix("runtime.kind: ")
        yield verdict("runtime", not found.problem, problem or f"{_shown(found)}, and the image", "", found.fix)


def tritonserver(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """Check that tritonserver, or docker for its image, is here."""
    programs = machine.programs
    if _in_the_image(machine, deployment):
        return
    server, needs_image = programs.tritonserver, needs_gpus(deployment)
    if server.path is not None:
        yield Check("tritonserver", "ok", _shown(server), "that of the NGC image" if needs_image else "")
    elif deployment is not None and needs_image and programs.docker is not None:
        fix = IN_THE_IMAGE.format(advised(deployment))
        yield Check("tritonserver", "warning", "not here, but docker is", "the one in the NGC image", fix)
    else:
        yield Check("tritonserver", "error", server.problem, "", server.fix)


def backends(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """Check that tritonserver has the backend of this engine kind."""
    programs = machine.programs
    if programs.tritonserver.path is None or _in_the_image(machine, deployment):
        return
    needed, fix = _kind(deployment).triton_backend, "Install it again: nvidia-pytriton"
    if deployment is not None and needs_gpus(deployment):
        fix = f"Use the tritonserver of {advised(deployment)}"
    yield verdict("backends", needed in programs.backends, ", ".join(programs.backends) or "none", needed, fix)


def mpirun(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """Check that mpirun, or docker for the image with it, is here."""
    programs = machine.programs
    if _in_the_image(machine, deployment):
        return
    if programs.mpirun.path is not None:
        yield Check("mpirun", "ok", _shown(programs.mpirun))
    elif deployment is None or not needs_gpus(deployment) or programs.tritonserver.path or not programs.docker:
        yield Check("mpirun", "error", programs.mpirun.problem, "", programs.mpirun.fix)
    else:
        fix = IN_THE_IMAGE.format(advised(deployment))
        yield Check("mpirun", "warning", "not here, but the NGC image has it", "", fix)


def tensorrt_llm(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """Check that an installed TensorRT-LLM has the deployment's version."""
    found = machine.programs.packages.get("tensorrt-llm")
    if machine.programs.container is None and found is not None and deployment is not None and needs_gpus(deployment):
        needed = deployment.engine_options.version
        fix = f"Use {advised(deployment)}, or set engine.version to {found.partition('+')[0]}."
        yield verdict("tensorrt-llm", found.partition("+")[0] == needed, found, needed, fix)


def _kind(deployment: Deployment | None) -> EngineKind:
    return deployment.kind if deployment else REHEARSAL


def packages(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """Show the versions of the Python packages, and name a missing PyTorch."""
    programs = machine.programs
    versions = [f"Python {programs.python}", *(f"{name} {version}" for name, version in programs.packages.items())]
    found, kind = ", ".join(versions), _kind(deployment)
    if not kind.engine_files or "torch" in programs.packages:
        yield Check("packages", "ok", found)
    elif not kind.on_gpus:
        yield Check("packages", "error", found, "torch", f"Run: {install('rehearsal')}")
    else:
        yield Check("packages", "warning", found, "torch, to convert", f"Run: {install('convert')}")


def tools(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """Show whether docker and nvidia-smi are here."""
    programs = machine.programs
    there = {"docker": programs.docker, "nvidia-smi": programs.nvidia_smi}
    found = ", ".join(f"{name}: {place(path) if path else 'no'}" for name, path in there.items())
    yield Check("tools", "ok", found, "" if needs_gpus(deployment) else "none of them")


RULES = (container, tritonserver, backends, mpirun, tensorrt_llm, packages, tools)


def _shown(program: Program) -> str:
    assert program.path
    return f"{program.version} at {place(program.path)}" if program.version else place(program.path)
