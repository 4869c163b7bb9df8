"""Faults that the GPUs have had: memory errors that ECC counted, and Xid lines in the kernel's log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from toolkit.doctor.check import Check, Status, listed, needs_gpus
from toolkit.doctor.check_gpus import of_ranks
from toolkit.doctor.machine import Machine
from toolkit.machine.kernel_log import bus_of

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

RESET = (
    "Stop what runs there and reset it (nvidia-smi -i {gpus} -r), or reboot. If it comes again, have the GPU tested."
)
HARDWARE = {
    48: "memory error that ECC could not correct",
    62: "the GPU's own processor halted",
    63: "a row of memory is to be replaced at the next reset",
    64: "a row of memory could not be replaced",
    74: "NVLink error",
    79: "the GPU has fallen off the bus",
    92: "many memory errors that ECC corrected",
    94: "memory error, contained to one program",
    95: "memory error, not contained",
    109: "a context switch timed out",
    119: "the GPU's system processor does not answer",
    120: "the GPU's system processor failed",
    140: "memory error that ECC could not correct",
    154: "the GPU is to be reset, or the machine rebooted",
}
"""Xid codes of a GPU or its links. The others are mostly of a program. Source: NVIDIA's Xid catalog, shortened."""


def ecc(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """Errors that were not corrected since the driver was loaded: what was computed then may be wrong."""
    gpus = [gpu for gpu in of_ranks(machine, deployment) if not gpu.problem]
    told = {gpu.index: gpu.ecc_errors for gpu in gpus if gpu.ecc_errors is not None}
    broken = {index: errors for index, errors in told.items() if errors}
    if broken:
        numbers = ",".join(map(str, broken))
        found = f"{sum(broken.values())} errors that were not corrected, on {listed(list(broken))}"
        yield Check("ECC", _status(deployment), found, "none", RESET.format(gpus=numbers))
    elif told:
        yield Check("ECC", "ok", "no error that was not corrected")
    elif gpus and needs_gpus(deployment):
        yield Check("ECC", "ok", "not told by the driver: off, or this GPU has none")


def xid(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """Since the machine started. The log does not say whether a GPU was reset since: never an error."""
    gpus = of_ranks(machine, deployment)
    if not machine.kernel.told:
        if gpus and needs_gpus(deployment):
            yield Check("Xid", "ok", "not told: this user may not read the kernel's log here (dmesg)")
        return
    on = {bus_of(gpu.bus): gpu.index for gpu in gpus if gpu.bus}
    # Where NVML told no address, every line may be of one of these GPUs.
    lines = [line for line in machine.kernel.xids if line.bus in on or not on]
    codes = Counter(line.code for line in lines)
    broken = sorted({on[line.bus] for line in lines if line.code in HARDWARE and line.bus in on})
    found = ", ".join(f"{number} x {code}{_meaning(code)}" for code, number in sorted(codes.items())) or "none"
    if not any(code in HARDWARE for code in codes):
        yield Check("Xid", "ok", found if not codes else f"{found}: of programs")
        return
    where = f" on {listed(broken)}" if broken else ""
    fix = RESET.format(gpus=",".join(map(str, broken)) or "GPU")
    yield Check("Xid", "warning", found + where, "none since the machine started", fix)


def _meaning(code: int) -> str:
    return f" ({HARDWARE[code]})" if code in HARDWARE else ""


def _status(deployment: Deployment | None) -> Status:
    return "error" if needs_gpus(deployment) else "warning"


RULES = (ecc, xid)
