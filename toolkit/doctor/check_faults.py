"""Checks the past faults of the GPUs: memory errors that ECC counted, and Xid lines in the kernel's log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from toolkit.doctor.check import Check, Status, listed, needs_gpus
from toolkit.doctor.check_gpus import of_ranks
from toolkit.doctor.machine import Machine
from toolkit.machine.gpu_faults import XIDS
from toolkit.machine.kernel_log import bus_of

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

RESET = (
    "Stop what runs there and reset it (nvidia-smi -i {gpus} -r), or reboot. If it comes again, have the GPU tested."
)
HARDWARE = {code: fault.what for code, fault in XIDS.items() if fault.of == "GPU"}
"""Xid codes that mean a fault of a GPU or its links. Most others mean a fault of a program."""


def ecc(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """Memory errors that were not corrected since the driver was loaded. What was computed with them may be wrong."""
    gpus = [gpu for gpu in of_ranks(machine, deployment) if not gpu.problem]
    counts = {gpu.index: gpu.ecc_errors for gpu in gpus if gpu.ecc_errors is not None}
    broken = {index: errors for index, errors in counts.items() if errors}
    if broken:
        numbers = ",".join(map(str, broken))
        found = f"{sum(broken.values())} uncorrected errors, on {listed(list(broken))}"
        yield Check("ECC", _status(deployment), found, "none", RESET.format(gpus=numbers))
    elif counts:
        yield Check("ECC", "ok", "no uncorrected error")
    elif gpus and needs_gpus(deployment):
        yield Check("ECC", "ok", "unknown: the driver does not say (ECC is off, or this GPU has none)")


def xid(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """Xid lines since the machine started. Never an error: the log does not say whether a GPU was reset since."""
    gpus = of_ranks(machine, deployment)
    if not machine.kernel.told:
        if gpus and needs_gpus(deployment):
            yield Check("Xid", "ok", "unknown: this user cannot read the kernel's log (dmesg)")
        return
    on = {bus_of(gpu.bus): gpu.index for gpu in gpus if gpu.bus}
    # If NVML gives no address, every line may be about one of these GPUs.
    lines = [line for line in machine.kernel.xids if line.bus in on or not on]
    codes = Counter(line.code for line in lines)
    broken = sorted({on[line.bus] for line in lines if line.code in HARDWARE and line.bus in on})
    found = ", ".join(f"{number} x {code}{_meaning(code)}" for code, number in sorted(codes.items())) or "none"
    if not any(code in HARDWARE for code in codes):
        yield Check("Xid", "ok", found if not codes else f"{found}: faults of programs")
        return
    where = f" on {listed(broken)}" if broken else ""
    fix = RESET.format(gpus=",".join(map(str, broken)) or "GPU")
    yield Check("Xid", "warning", found + where, "none since the machine started", fix)


def _meaning(code: int) -> str:
    return f" ({HARDWARE[code]})" if code in HARDWARE else ""


def _status(deployment: Deployment | None) -> Status:
    return "error" if needs_gpus(deployment) else "warning"


RULES = (ecc, xid)
