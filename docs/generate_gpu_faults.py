"""Writes docs/reference/gpu-faults.md from the tables of faults. Run `make docs`; a test checks it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from docs.generate_metrics import table
from toolkit.machine.gpu_faults import STATES, XIDS, Fault

PAGE = Path(__file__).parent / "reference/gpu-faults.md"
HEAD = """# Faults of GPUs

`make docs` makes this page from the tables in `toolkit/machine/gpu_faults.py`. Do not edit it.

While [`toolkit up`](../how-to/up.md) serves on GPUs, it reads NVML every 2 seconds and the kernel's log every 6. What
it sees is an event (`run/events.jsonl`, [`toolkit monitor`](../how-to/monitor.md)), and has one of three effects:

| Effect | The group whose rank is on the GPU |
| --- | --- |
| ignore | goes on; the canary ends it if it no longer answers |
| restart | is ended at once and starts again, if the driver names no program or one of the group's |
| lost | is ended at once if a `recovery.fallback` fits the GPUs that are left; else it goes on until it fails |

A GPU that an Xid made lost is used again after `toolkit restart`. Xids from before the start have no effect; `toolkit
doctor` shows them. An Xid that is not in the table has none either.

In a container the log is often not readable, and has the host's process numbers. Then NVML's states count, which newer
drivers have (565 or later for the recovery action), and the canary.

**Sources.** NVIDIA's action: the column "Immediate Action" for H100 of [the Xid
catalogue](https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html); of memory, [GPU memory error
management](https://docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt/index.html). RESTART_APP means restart, RESET_GPU and
RESTART_BM (the machine) mean lost. Where the effect is another one, the table says why. All of it was tested with a
double of NVML; no real fault has been seen.
"""


def _rows(faults: Mapping[str, Fault]) -> list[tuple[str, ...]]:
    return [
        (name, fault.what, f"**{fault.effect}**" if fault.effect == "lost" else fault.effect, fault.nvidia, fault.why)
        for name, fault in faults.items()
    ]


def reference() -> str:
    """The text of the page."""
    xids = {str(code): fault for code, fault in XIDS.items()}
    rest = ("Means", "Effect", "NVIDIA's action", "Why not that")
    return "\n".join(
        [
            HEAD,
            "## What NVML says\n",
            table(("Event", *rest), _rows(STATES)),
            "## Xid\n",
            table(("Xid", *rest), _rows(xids)),
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
