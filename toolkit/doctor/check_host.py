"""Checks cores, memory, shared memory and limits, and how much of them this process can use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from toolkit.doctor.check import Check, gib, needs_gpus, verdict
from toolkit.doctor.machine import Machine
from toolkit.machine.host import Host
from toolkit.machine.limits import STACK_BYTES
from toolkit.serve.preflight import REHEARSAL_SEGMENT_BYTES
from toolkit.sizing.memory import REHEARSAL_PROCESS_BYTES, plan_memory

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

FILES_OF_A_SERVER = 1024
"""Files that a tritonserver without clients has open: libraries, devices, pipes (rounded up generously)."""
TYPICAL_RANKS = 8
"""Ranks of a rehearsal without a deployment: as many as the flagship has."""


def cores(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """Compare the cores that this process may use with the ranks."""
    host = machine.host
    found = f"{host.usable_cores:g}"
    if host.usable_cores < host.cores:
        found += f" of the machine's {host.cores} (affinity, or a container's limit)"
    if deployment is None:
        yield Check("cores", "ok", found)
    elif not deployment.kind.on_gpus:
        ranks = deployment.ranks_here
        fix = "It works, but slowly: the ranks share the cores. Fewer ranks are faster: parallel: {tp: 1, pp: 1}"
        yield verdict("cores", host.usable_cores >= ranks, found, f"{ranks}, one for each rank", fix, "warning")
    else:
        ranks, each = deployment.ranks_here, deployment.hardware.cores_per_gpu
        fix = "It works, but the GPUs may wait for the cores. Give the container or the job more cores."
        needed = f"{ranks * each} = {ranks} GPUs x {each} (hardware.cores_per_gpu)"
        yield verdict("cores", host.usable_cores >= ranks * each, found, needed, fix, "warning")


def memory(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """Compare the available memory with what the group needs."""
    host = machine.host
    found = f"{gib(host.available_bytes)} available of {gib(host.memory_bytes)}"
    if host.memory_limit_bytes is not None:
        found = f"{gib(host.available_bytes)} available of {gib(host.memory_limit_bytes)}"
        found += f", a container's or service's limit; the machine has {gib(host.memory_bytes)}"
    if machine.places is not None and machine.places.running:
        yield Check("memory", "ok", f"{found}; this deployment is running")
    elif deployment is None:
        size = TYPICAL_RANKS * REHEARSAL_PROCESS_BYTES
        fix = "Stop other programs, or rehearse with fewer ranks."
        needed = f"{gib(size)} for {TYPICAL_RANKS} ranks, and 4 bytes for each parameter"
        yield verdict("memory", host.available_bytes >= size, found, needed, fix, "warning")
    elif needs_gpus(deployment):
        yield _memory_of_the_node(host, deployment, found)
    else:
        size = plan_memory(deployment).all_bytes * deployment.parallel.replicas
        fix = "Stop other programs, rehearse with fewer ranks, or with a smaller model."
        needed = f"{gib(size)} for {deployment.ranks_here} ranks"
        yield verdict("memory", host.available_bytes >= size, found, needed, fix)


def _memory_of_the_node(host: Host, deployment: Deployment, found: str) -> Check:
    planned = deployment.hardware.host_memory_gb
    needed = f"{gib(planned * 1e9)} (hardware.host_memory_gb: {planned:g})"
    fix = "Use a machine with more, or raise the container's limit."
    return verdict("memory", host.usable_memory_bytes >= planned * 1e9, found, needed, fix)


def shared_memory(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """Compare the free space in /dev/shm with what the group needs."""
    size = machine.places.shared_memory_bytes if machine.places else TYPICAL_RANKS * REHEARSAL_SEGMENT_BYTES
    host = machine.host
    found = f"{gib(host.shm_free_bytes)} free of {gib(host.shm_bytes)}" if host.shm_bytes else "is not mounted"
    fix = "Remove old files there, or make it larger (docker run --shm-size=2g)."
    running = machine.places is not None and machine.places.running is not None
    yield verdict("/dev/shm", running or host.shm_free_bytes >= size, found, gib(size), fix)


def limits(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """Limits of locked memory, stack and open files. Every request that runs or waits holds a connection, an open file.

    NVIDIA starts its containers with --ulimit memlock=-1 --ulimit stack=67108864.
    """
    host = machine.host
    found = f"{_size(host.locked_bytes)} locked memory, {_size(host.stack_bytes)} stack, "
    found += f"{'unlimited' if host.open_files is None else host.open_files} open files"
    enough_stack = host.stack_bytes is None or host.stack_bytes >= STACK_BYTES
    if deployment is None or not needs_gpus(deployment):
        fix = "Raise the hard limit, as root: ulimit -H -s unlimited"
        yield verdict("limits", enough_stack, found, f"{gib(STACK_BYTES)} stack", fix, "warning")
        return
    if deployment.runtime.kind == "docker":  # it sets its own
        yield Check("limits", "ok", found)
        return
    files = FILES_OF_A_SERVER + deployment.limits.max_sequences + deployment.limits.max_queue_size
    good = host.locked_bytes is None and enough_stack
    good &= host.open_files is None or host.open_files >= files
    needed = f"unlimited, {gib(STACK_BYTES)}, {files}"
    fix = "Before serving, as root: ulimit -l unlimited -s 65536 -n 65536; "
    fix += "in a container: docker run --ulimit memlock=-1 --ulimit stack=67108864 --ulimit nofile=65536"
    yield verdict("limits", good, found, needed, fix, "warning")


def _size(limit: int | None) -> str:
    return "unlimited" if limit is None else gib(limit)


RULES = (cores, memory, shared_memory, limits)
