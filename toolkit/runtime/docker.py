"""A command in a container of docker. Options: docs.docker.com, `docker run`.

The limits of locked memory and of the stack are from NVIDIA's instructions for its images.
"""

from __future__ import annotations

import os

from toolkit.config.deployment import Deployment
from toolkit.machine.cores import ranges
from toolkit.machine.limits import STACK_BYTES
from toolkit.runtime.images import image
from toolkit.runtime.mounts import Mount, as_csv, mounts
from toolkit.runtime.needs import Needs, Part, Wrapped, container_name, cuda_order, further_options

HOME = "/tmp"
"""The one folder of the image that any user can write to. trtllm-build leaves its timing cache in the current one."""
NOT_STARTED = {
    125: "docker did not start the container",
    126: "the program in the image could not be run",
    127: "the image has no such program",
}
"""Exit codes of docker itself, not of the command in the container."""


def in_docker(deployment: Deployment, needs: Needs) -> Wrapped:
    """Wrap a command so that it runs in docker."""
    parts = [
        Part(("docker", "run"), "runtime.kind: docker"),
        Part(
            ("--rm", "--name", container_name(deployment, needs)),
            "removed when it ends; its name, for docker ps and docker stop",
        ),
        Part(("--init",), "a first process that hands on signals and takes in orphans, as mpirun's ranks may become"),
        Part(("--pull=never",), "an image of 14 GB is fetched when asked for, not at a start"),
        *_gpus(needs),
        *_machine(needs),
        *_user(),
        *_limits(deployment, needs),
        *(Part(("--mount", _mount(mount)), mount.why) for mount in mounts(needs)),
        *(Part(("--env", f"{name}={value}"), "for the command") for name, value in needs.environment.items()),
        *(Part(("--env", name), "a secret: by name, docker takes its value from here") for name in needs.secrets),
        *further_options(deployment),
        Part((image(deployment),), "runtime.image" if deployment.runtime.image else "NVIDIA's, with engine.version"),
    ]
    return Wrapped(tuple(parts), secrets={name: name for name in needs.secrets})


def _gpus(needs: Needs) -> list[Part]:
    if not needs.gpus:
        return []
    # docker reads the value as CSV, so several numbers take quotes of their own.
    value = as_csv("device=" + ",".join(map(str, needs.gpus)))
    parts = [Part(("--gpus", value), "these GPUs and no others; inside they count from 0")]
    for name, value in cuda_order(needs.gpus).items():
        parts.append(Part(("--env", f"{name}={value}"), "the order of the ranks, as they count inside"))
    return parts


def _machine(needs: Needs) -> list[Part]:
    """What the container shares with this machine, and how long it may take to stop."""
    ipc = "ranks share /dev/shm (64 MB in docker otherwise); the machine's own, where the toolkit sees and clears it"
    parts = [Part(("--ipc=host",), ipc)]
    if needs.gpus:  # not every daemon may lift it: one without root may not
        parts.append(Part(("--ulimit", "memlock=-1"), "pinned host memory, for copies to the GPUs: no limit"))
    parts.append(Part(("--ulimit", f"stack={STACK_BYTES}"), "64 MiB of stack a thread, as NVIDIA's images want"))
    if needs.ports:
        ports = ", ".join(map(str, needs.ports))
        why = f"ports {ports} at the address in the YAML: 127.0.0.1 of another network would not be this machine's"
        parts.append(Part(("--network", "host"), why))
    if needs.stop_s is not None:
        why = "docker stop kills after so many seconds; the default of 10 would cut a drain off"
        parts.append(Part(("--stop-timeout", str(needs.stop_s)), why))
    return parts


def _user() -> list[Part]:
    return [
        Part(("--user", f"{os.getuid()}:{os.getgid()}"), "files that it writes belong to who started it, not to root"),
        Part(
            ("--env", f"HOME={HOME}", "--workdir", HOME), "a home that this user may write in: caches, compiled kernels"
        ),
        Part(("--env", "USER=toolkit"), "this user has no name in the image, and PyTorch asks for one"),
    ]


def _limits(deployment: Deployment, needs: Needs) -> list[Part]:
    hardware = deployment.hardware
    memory = str(round((needs.memory_gb or hardware.host_memory_gb) * 1e9))
    parts = [
        Part(("--memory", memory), "hardware.host_memory_gb; over it the kernel kills"),
        Part(("--memory-swap", memory), "memory and swap together, so no swap: one rank that swaps stalls all"),
    ]
    if needs.cores:
        why = "hardware.cores_per_gpu for each GPU, on its own NUMA node"
        parts.append(Part(("--cpuset-cpus", ranges(needs.cores)), why))
    elif needs.gpus:
        cores = hardware.cores_per_gpu * len(needs.gpus)
        parts.append(
            Part(("--cpus", str(cores)), f"hardware.cores_per_gpu {hardware.cores_per_gpu} x {len(needs.gpus)}")
        )
    if needs.nodes:
        parts.append(Part(("--cpuset-mems", ranges(needs.nodes)), "memory of the same NUMA nodes"))
    return parts


def _mount(mount: Mount) -> str:
    """--mount, because -v splits at colons, and makes a folder that belongs to root where a path is missing."""
    fields = ["type=bind", f"source={mount.path}", f"target={mount.path}"]
    return as_csv(*fields, *([] if mount.write else ["readonly"]))
