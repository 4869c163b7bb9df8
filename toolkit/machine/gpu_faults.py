"""What each fault of a GPU means for the group on it: one table for Xid codes, one for what NVML says.

Source: NVIDIA's Xid catalogue for H100, docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html, column
"Resolution Bucket (Immediate Action)"; of NVML's states docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt and the
recovery actions of nvml.h. docs/reference/gpu-faults.md is made from this.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from toolkit.machine.gpu_health import GpuHealth

Effect = Literal["ignore", "restart", "lost"]
EFFECTS: Mapping[str, Effect] = {
    "IGNORE": "ignore",
    "RESTART_APP": "restart",
    "RESET_GPU": "lost",
    "RESTART_BM": "lost",
    "RESTART_VM": "lost",
}
"""The effect on a group, by NVIDIA's immediate action (BM: the machine)."""
HOT_CELSIUS = 85
"""An H100 slows down at 87 to 90 degrees (`nvidia-smi -q -d TEMPERATURE`, GPU Slowdown Temp)."""


@dataclass(frozen=True)
class Fault:
    """One kind of fault. `nvidia` is NVIDIA's immediate action; `why` says why the effect is not that of EFFECTS."""

    what: str
    nvidia: str
    of: Literal["GPU", "program"] = "GPU"
    other: Effect | None = None
    why: str = ""

    @property
    def effect(self) -> Effect:
        """On a group whose rank is on this GPU."""
        return self.other or EFFECTS[self.nvidia]


def _program(what: str, nvidia: str = "RESTART_APP") -> Fault:
    return Fault(what, nvidia, "program")


_COPY = dict.fromkeys((39, 40, 41, 70, 71, 72, 75, 76, 77, 85), _program("error of a copy engine"))
_PUSH = dict.fromkeys((11, 25, 32), _program("a command stream was invalid or damaged"))
_OTHERS = {
    8: _program("the GPU stopped processing a program"),
    13: _program("a kernel failed: an address or an instruction was wrong"),
    31: _program("a memory address was not mapped"),
    37: _program("error of the driver's firmware", "IGNORE"),
    38: _program("error of the driver's firmware", "IGNORE"),
    43: _program("a program ended after its own fault", "IGNORE"),
    44: _program("fault while contexts were switched", "IGNORE"),
    45: Fault(
        "a program was ended", "WORKFLOW_XID_45", "program", "ignore", "It follows another Xid, or the end of a program"
    ),
    46: Fault("the GPU stopped processing", "RESET_GPU"),
    48: Fault(
        "memory error that ECC could not correct",
        "WORKFLOW_XID_48",
        other="restart",
        why="Xid 94 or 95 comes with it, and says more",
    ),
    62: Fault("the GPU's own processor halted", "RESET_GPU"),
    63: Fault("a row of memory is to be replaced at the next reset", "IGNORE"),
    64: Fault("a row of memory could not be replaced", "RESET_GPU"),
    69: _program("a command of a kernel was invalid"),
    74: Fault(
        "NVLink error",
        "WORKFLOW_NVLINK_ERR",
        other="restart",
        why="The GPU at the other end may be the broken one; a link that stays down fails the next start",
    ),
    79: Fault("the GPU has fallen off the bus", "RESTART_BM"),
    80: _program("data sent to the GPU was damaged"),
    92: Fault("many memory errors that ECC corrected", "IGNORE"),
    94: Fault("memory error, contained to one program", "RESTART_APP"),
    95: Fault("memory error, not contained", "RESET_GPU"),
    109: Fault("a context switch timed out", "RESET_GPU"),
    110: Fault("security fault", "RESET_GPU"),
    119: Fault("the GPU's system processor does not answer", "RESET_GPU"),
    120: Fault("the GPU's system processor failed", "RESET_GPU"),
    136: Fault("an NVLink could not be trained", "RESET_GPU"),
    137: _program("an address of another GPU was wrong", "IGNORE"),
    140: Fault("memory error that ECC could not correct", "RESET_GPU"),
    141: _program("error in CUDA's fast path", "IGNORE"),
    143: Fault("the GPU could not be initialised", "RESET_GPU"),
    151: Fault("a key could not be changed", "RESTART_VM"),
    154: Fault(
        "another recovery is needed now", "XID_154", other="ignore", why="Its text names the action, which counts"
    ),
    156: Fault("a part of the GPU was retired", "RESET_GPU"),
    157: Fault("a part of the GPU could not be retired", "IGNORE"),
    158: Fault("a fatal timeout", "RESET_GPU"),
}
XIDS: Mapping[int, Fault] = dict(sorted({**_COPY, **_PUSH, **_OTHERS}.items()))
"""By code. One that is not here has no effect: whether the group still answers decides."""

UNREADABLE = Fault("NVML cannot read it", "RESET_GPU")
ROWS_PENDING = Fault("a row of memory is to be replaced at the next reset", "IGNORE")
ROWS_FAILED = Fault("a row of memory could not be replaced", "RESET_GPU")
ECC = Fault(
    "memory errors that ECC could not correct", "WORKFLOW_XID_48", other="ignore", why="The Xid says whom they hit"
)
HOT = Fault(f"{HOT_CELSIUS} degrees or more", "IGNORE")
SLOW = Fault("slowed down", "IGNORE")
MARKED = Fault("marked as lost in this rehearsal", "RESET_GPU")
RECOVERIES: Mapping[str, Fault] = {
    "GPU_RESET": Fault("the driver wants a reset of the GPU", "RESET_GPU"),
    "NODE_REBOOT": Fault("the driver wants a reboot of the machine", "RESTART_BM"),
    "DRAIN_P2P": Fault("the driver wants transfers between GPUs to end", "IGNORE"),
    "DRAIN_AND_RESET": Fault("the driver wants the GPU to be drained and reset", "RESET_GPU"),
    "BUS_RESET": Fault("the driver wants a reset of the bus", "RESTART_BM"),
    "SYSTEM_REBOOT": Fault("the driver wants a reboot of the system", "RESTART_BM"),
}
"""By the ending of NVML_GPU_RECOVERY_ACTION_*. The driver (565 or newer) says it without the kernel's log."""
STATES: Mapping[str, Fault] = {
    "does not answer": UNREADABLE,
    **{f"recovery action {name}": fault for name, fault in RECOVERIES.items()},
    "row remapping failed": ROWS_FAILED,
    "row remapping pending": ROWS_PENDING,
    "uncorrected errors rise": ECC,
    "hot": HOT,
    "throttled": SLOW,
}
"""What NVML says, by the name of the event."""
_XID_154 = re.compile(r" to 0x\w+ \((.*?)\)")
_RESETS = ("reset", "reboot")


def states_of(gpu: GpuHealth) -> Iterator[tuple[str, Fault, str]]:
    """(name, fault, details) of each state of STATES that holds now."""
    if gpu.problem:
        yield "does not answer", UNREADABLE, gpu.problem
        return
    if gpu.recovery and gpu.recovery in RECOVERIES:
        yield f"recovery action {gpu.recovery}", RECOVERIES[gpu.recovery], ""
    if gpu.rows_failed:
        yield "row remapping failed", ROWS_FAILED, ""
    if gpu.rows_pending:
        yield "row remapping pending", ROWS_PENDING, ""
    if gpu.temperature_c is not None and gpu.temperature_c >= HOT_CELSIUS:
        yield "hot", HOT, f"{gpu.temperature_c} degrees"
    if gpu.throttles:
        yield "throttled", SLOW, f"slowed down: {', '.join(gpu.throttles)}"


def xid_effect(code: int, text: str) -> Effect:
    """What an Xid means for the group on its GPU. `text` is the rest of its line."""
    if code == 154:
        action = _XID_154.search(text)
        return "lost" if action and any(word in action[1].lower() for word in _RESETS) else "ignore"
    fault = XIDS.get(code)
    return fault.effect if fault else "ignore"
