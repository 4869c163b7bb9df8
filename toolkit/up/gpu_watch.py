"""Watches the GPUs while `toolkit up` serves. A fault becomes an event, and some faults make the supervisor act."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from toolkit.config.deployment import Deployment
from toolkit.machine.gpu_faults import ECC, MARKED, XIDS, Effect, Fault, states_of, xid_effect
from toolkit.machine.gpu_health import GpuHealth, GpuReader
from toolkit.machine.kernel_log import Kernel, Xid, bus_of, look_at_kernel, pid_of
from toolkit.monitor.other_nodes import OtherNodes
from toolkit.up.events import Events
from toolkit.up.fallback import lost_gpus

EVERY_S = 2.0
KERNEL_EVERY = 3
"""The kernel's log is read at every third look only, because that starts a process."""
HOLD = {"hot": 5, "throttled": 5}
"""Looks in a row with one state until it is an event. Limits by power and heat come and go within seconds."""
CLEAR = 5
"""Looks in a row without a state, after which it is over."""
ACTIONS: Mapping[Effect, str] = {
    "ignore": "its group goes on",
    "restart": "its group starts again",
    "lost": "a fallback takes over, if one fits",
}


@dataclass(frozen=True)
class Doubt:
    """A fault that ends the program that it hit. `pid` is that program, if the driver named it."""

    gpu: int
    why: str
    pid: int | None


class GpuWatch:
    """Looks every EVERY_S in a thread of its own: NVML can hang when a GPU is lost."""

    def __init__(self, deployment: Deployment, events: Events, kernel: Callable[[], Kernel] = look_at_kernel) -> None:
        self._deployment, self._events, self._kernel = deployment, events, kernel
        self._reader = GpuReader() if deployment.kind.on_gpus else None
        self._held: Counter[tuple[int, str]] = Counter()
        self._gone: Counter[tuple[int, str]] = Counter()
        self._noted: dict[tuple[int, str], Fault] = {}
        self._lost_by_xid: dict[int, str] = {}
        self._xids: Counter[Xid] | None = None
        self._ecc: dict[int, int] = {}
        self._looks = 0
        self.lost: Mapping[int, str] = {}
        """Why each GPU that cannot be used is lost."""
        self.doubts: queue.SimpleQueue[Doubt] = queue.SimpleQueue()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpu-watch", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        if others := str(OtherNodes(self._deployment)):
            action = "a fault there shows when it ends a rank; toolkit doctor looks, on each node"
            self._events.note("GPUs", "not watched", f"only this node's can be read, not those of {others}", action)
        self._thread.start()

    def close(self) -> None:
        """Stop looking. A look that hangs is left behind."""
        self._end.set()

    def forget(self) -> None:
        """Forget old faults, when an operator restarts replicas: the kernel's log still has them."""
        self._lost_by_xid, self.lost = {}, {}

    def look(self) -> None:
        """Look once."""
        if self._reader is None:
            return self._compare({(gpu, "lost"): (MARKED, "") for gpu in lost_gpus(self._deployment)})
        gpus = self._reader.read()
        if self._looks % KERNEL_EVERY == 0:
            self._read_kernel({bus_of(gpu.bus): gpu.index for gpu in gpus if gpu.bus})
        self._looks += 1
        states = {(gpu.index, name): (fault, details) for gpu in gpus for name, fault, details in states_of(gpu)}
        for gpu in gpus:
            self._note_memory_errors(gpu)
        return self._compare(states)

    def _run(self) -> None:
        while not self._end.wait(EVERY_S):
            self.look()
        if self._reader:
            self._reader.close()

    def _compare(self, states: Mapping[tuple[int, str], tuple[Fault, str]]) -> None:
        """Note what is new and what is over."""
        for key, (fault, details) in states.items():
            self._held[key] += 1
            self._gone[key] = 0
            if key not in self._noted and self._held[key] >= HOLD.get(key[1], 1):
                self._noted[key] = fault
                self._note(key[0], key[1], f"{details or fault.what}", fault.effect)
        for key in [key for key in self._held if key not in states]:
            del self._held[key]
        for key in [key for key in self._noted if key not in states]:
            self._gone[key] += 1
            if self._gone[key] >= CLEAR or self._reader is None:
                del self._noted[key], self._gone[key]
                self._events.note(f"GPU {key[0]}", f"{key[1]}: over")
        lost = {gpu: fault.what for (gpu, _), fault in self._noted.items() if fault.effect == "lost"}
        self.lost = {**self._lost_by_xid, **lost}

    def _note_memory_errors(self, gpu: GpuHealth) -> None:
        if (count := gpu.ecc_uncorrected) is not None:
            if count > self._ecc.get(gpu.index, count):
                self._note(gpu.index, "uncorrected errors rise", f"{count}: {ECC.what}", ECC.effect)
            self._ecc[gpu.index] = count

    def _read_kernel(self, by_bus: Mapping[str, int]) -> None:
        """Note the Xids that came since the last look. Those from before the first look are the doctor's."""
        kernel = self._kernel()
        if not kernel.told:
            return
        now, before = Counter(kernel.xids), self._xids
        self._xids = now
        for xid in (now - before) if before is not None else ():
            if (gpu := by_bus.get(xid.bus)) is not None:
                self._take(gpu, xid)

    def _take(self, gpu: int, xid: Xid) -> None:
        effect, name = xid_effect(xid.code, xid.text), f"Xid {xid.code}"
        what = f"{name}: {XIDS[xid.code].what if xid.code in XIDS else 'not in our table'}"
        self._note(gpu, name, f"{what} ({xid.text})" if xid.text else what, effect)
        if effect == "lost":
            self._lost_by_xid[gpu] = what
        elif effect == "restart":
            self.doubts.put(Doubt(gpu, f"GPU {gpu}: {what}", pid_of(xid)))

    def _note(self, gpu: int, name: str, cause: str, effect: Effect) -> None:
        self._events.note(f"GPU {gpu}", name, cause, ACTIONS[effect])
