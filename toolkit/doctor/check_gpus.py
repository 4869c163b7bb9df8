"""Checks the GPUs for a deployment: one for each rank."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from toolkit.doctor.check import Check, Status, gib, listed, needs_gpus, verdict
from toolkit.doctor.machine import Machine
from toolkit.doctor.ranks import gpus_of_ranks, placement_of
from toolkit.errors import ToolkitError
from toolkit.machine.gpus import Gpu
from toolkit.machine.visible import VISIBLE, visible_devices, visible_to_cuda
from toolkit.releases.release import LATEST
from toolkit.sizing.memory import GIB, plan_memory

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

VISIBLE_GPUS = "visible GPUs"
MEMORY_TOLERANCE = 0.99
"""Drivers differ in how much of a GPU's memory they show."""
IDLE_BYTES = GIB // 2
"""Memory in use on an idle GPU: persistence, a monitor."""
OTHERS = "Stop it (nvidia-smi shows what runs there), or choose other GPUs by CUDA_VISIBLE_DEVICES."
ON_THE_NODE = (
    "Run this on the GPU node (in a container: docker run --gpus all); "
    "on this machine rehearse with --engine rehearsal."
)
ELSEWHERE = "Use a machine that has them, or lower parallel.tp or parallel.pp."


def count(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """Check that there is a GPU for each rank."""
    gpus, needed = machine.gpus, ""
    names = Counter(gpu.name for gpu in gpus.seen)
    found = ", ".join(f"{number} x {name}" for name, number in names.items()) or f"none: {gpus.problem}"
    if deployment is None or not needs_gpus(deployment):
        yield Check("GPUs", "ok", found, "none: a rehearsal runs on the CPU")
        return
    ranks = deployment.ranks_here
    needed = f"{ranks}, one for each rank"
    if not gpus.seen:
        yield Check("GPUs", "error", found, needed, gpus.fix or ON_THE_NODE)
    else:
        yield verdict("GPUs", len(gpus.seen) >= ranks, found, needed, ELSEWHERE)


def visible(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """CUDA_VISIBLE_DEVICES, if serving refuses it, or if CUDA ignores a part of it."""
    if deployment is None or not needs_gpus(deployment) or len(machine.gpus.seen) < deployment.ranks_here:
        return
    try:
        placement_of(machine, deployment)
    except ToolkitError as error:
        found = error.what if error.where == deployment.file else f"{error.where}: {error.what}"
        yield Check(VISIBLE_GPUS, "error", found, "", error.hint or "")
        return
    left = visible_to_cuda(machine.gpus, machine.settings)
    if left is not None and left.ended:
        found = f"{VISIBLE}={visible_devices(machine.settings)} leaves {listed(list(left.numbers))}: {left.ended}"
        yield Check(VISIBLE_GPUS, "warning", found, "", "Serving works with these. Correct it if you meant more GPUs.")


def opened(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """Name the GPUs that the driver cannot open."""
    broken = [gpu for gpu in of_ranks(machine, deployment) if gpu.problem]
    if broken:
        found = f"{listed([gpu.index for gpu in broken])}: {broken[0].problem}"
        fix = "Look for Xid lines in dmesg; resetting the GPU or rebooting may bring it back."
        yield verdict("broken", False, found, "", fix, "error" if needs_gpus(deployment) else "warning")


def model(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """The kind of GPU. Engines run only on the kind that they were built for."""
    kinds = sorted({kind(gpu.name) for gpu in of_ranks(machine, deployment) if not gpu.problem})
    if deployment is None or not needs_gpus(deployment) or not kinds:
        return
    planned, found = deployment.hardware.gpu.lower(), ", ".join(kinds)
    if planned == "none":  # the YAML of a rehearsal, tried with another engine
        yield Check("GPU kind", "warning", found, "", "Name the GPU in the YAML: hardware.gpu.")
        return
    fix = f"Set hardware.gpu and gpu_memory_gib to what is here, then: {deployment.command('plan')}"
    same_chip = all(_chip(kind) == _chip(planned) for kind in kinds)
    good = same_chip and (kinds == [planned] or planned == _chip(planned))
    yield verdict("GPU kind", good, found, planned, fix, "warning" if same_chip else "error")


def memory(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """Check that each GPU has the memory that the deployment counts on."""
    gpus = [gpu for gpu in of_ranks(machine, deployment) if not gpu.problem]
    sizes = [gpu.memory_bytes for gpu in gpus if gpu.memory_bytes is not None]
    if not gpus:
        return
    found = f"{gib(min(sizes))} each" if sizes else "unknown: the driver does not say (shared with the host, or MIG)"
    if sizes and max(sizes) - min(sizes) > GIB:
        found = f"{gib(min(sizes))} to {gib(max(sizes))}"
    if deployment is None or not needs_gpus(deployment):
        yield Check("GPU memory", "ok", found)
        return
    planned = deployment.hardware.gpu_memory_gib
    needed = f"{planned} GiB (hardware.gpu_memory_gib)"
    if not sizes:
        yield Check("GPU memory", "warning", found, needed, "Look up the GPU's memory: it cannot be checked here.")
        return
    fix = f"Correct hardware.gpu_memory_gib, then see what fits: {deployment.command('plan')}"
    yield verdict("GPU memory", min(sizes) >= planned * GIB * MEMORY_TOLERANCE, found, needed, fix)


def in_use(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """Memory that other programs use. Too little free memory is an error, other use a warning."""
    if machine.places is not None and machine.places.running and needs_gpus(deployment):
        yield Check("in use", "ok", f"by this deployment, which is running (process {machine.places.running})")
        return
    gpus = of_ranks(machine, deployment)
    if deployment is None or not needs_gpus(deployment):
        yield from use_of(gpus, None)
    else:
        yield from use_of(gpus, _planned_bytes(machine, deployment))


def use_of(gpus: Sequence[Gpu], planned: Mapping[int, int] | None) -> Iterator[Check]:
    """Who uses these GPUs. `planned` has the bytes that each must have free; None if nothing is needed."""
    used = {gpu: gpu.used_bytes for gpu in gpus if (gpu.used_bytes or 0) > IDLE_BYTES}
    if not used:
        if any(gpu.used_bytes is not None for gpu in gpus):
            yield Check("in use", "ok", "by nobody")
        return
    most = max(size for size in used.values() if size)
    found = f"{listed([gpu.index for gpu in used])} by {_holders(list(used))}, up to {gib(most)}"
    if planned is None:
        yield Check("in use", "ok", found)
        return
    status: Status = "warning"
    if any((gpu.memory_bytes or 0) - (gpu.used_bytes or 0) < planned[gpu.index] for gpu in used):
        status = "error"
    needed = f"{gib(max(planned.values()))} free on the fullest GPU"
    yield Check("in use", status, found, needed, OTHERS)


def mig(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """Name the GPUs that are cut into MIG instances."""
    cut = [gpu.index for gpu in of_ranks(machine, deployment) if gpu.mig]
    if cut:
        fix = f"Turn it off: nvidia-smi -i {','.join(map(str, cut))} -mig 0"
        yield verdict("MIG", not needs_gpus(deployment), f"on: {listed(cut)}", "whole GPUs", fix)


def driver(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """Check that the driver is new enough for the image."""
    gpus = machine.gpus
    if not gpus.driver:
        return
    found = f"{gpus.driver}, for CUDA {gpus.cuda} and older" if gpus.cuda else gpus.driver
    if deployment is None or not needs_gpus(deployment):
        yield Check("driver", "ok", found)
        return
    release = deployment.release
    image = release.image(deployment.engine_options.version) or (*release.images, *LATEST.images)[0]
    new = _first_two(gpus.driver) >= _first_two(image.driver)
    needed = f"{_shown(image.driver)} or newer for {image.tag.rpartition('/')[2]}"
    fix = "Update the driver. About older branches on data center GPUs see docs/reference/doctor.md."
    yield verdict("driver", new, found, needed, fix)
    cuda = _first_two(gpus.cuda)
    if new and cuda and cuda < _first_two(image.cuda):
        fix = "Another libcuda is loaded instead of the driver's: look at LD_LIBRARY_PATH and at ldconfig -p."
        yield Check("CUDA", "error", gpus.cuda, f"{_shown(image.cuda)} or newer, as this driver can", fix)


RULES = (count, visible, opened, model, memory, in_use, mig, driver)


def kind(name: str) -> str:
    """NVML's name of a GPU, as hardware.gpu spells it: `NVIDIA H100 80GB HBM3` is `h100-sxm`."""
    chip = re.search(r"\b(?:RTX )?[A-Z]{0,2}\d{1,4}[A-Z]?\b", name.removeprefix("NVIDIA "))
    if chip is None:
        return name.lower()
    forms = {"nvl": "NVL", "pcie": "PCIe", "sxm": "SXM"}
    form = next((form for form, mark in forms.items() if mark in name), "")
    if not form and chip[0] in ("H100", "H200", "B200"):  # NVIDIA names the form only if it is not SXM
        form = "sxm"
    return chip[0].lower().replace(" ", "-") + (f"-{form}" if form else "")


def _first_two(version: str) -> tuple[int, ...]:
    """(590, 44) of 590.44.01."""
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def _shown(version: str) -> str:
    return ".".join(map(str, _first_two(version)))


def _chip(kind: str) -> str:
    return re.sub(r"-(sxm|pcie|nvl)$", "", kind)


def of_ranks(machine: Machine, deployment: Deployment | None) -> tuple[Gpu, ...]:
    """The GPUs that a deployment would use, in the order of its ranks. All GPUs if it uses none."""
    if deployment is None or not needs_gpus(deployment):
        return machine.gpus.seen
    return tuple(gpus_of_ranks(machine, deployment))


def _holders(gpus: list[Gpu]) -> str:
    names = list(dict.fromkeys(str(process) for gpu in gpus for process in gpu.processes))
    if not names:
        return "processes that cannot be seen from here"
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _planned_bytes(machine: Machine, deployment: Deployment) -> dict[int, int]:
    """The bytes that the plan needs on each GPU, by its number."""
    plan, gpus = plan_memory(deployment), gpus_of_ranks(machine, deployment)
    of_rank = {rank: plan.used_bytes(stage) for stage in plan.stages for rank in stage.gpus}
    return {gpu.index: of_rank[number % len(of_rank)] for number, gpu in enumerate(gpus)}
