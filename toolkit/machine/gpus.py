"""The GPUs of this machine, from NVML: the library behind nvidia-smi, through the package nvidia-ml-py.

NVML raises an exception if a GPU does not have a field (unified memory, MIG), if a container may not ask, or if a GPU
has fallen off the bus. Here such a field is None or "unknown"; nothing raises.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

PROC = Path("/proc")
Way = Literal["NVLink", "PCIe", "unknown"]


@dataclass(frozen=True)
class Process:
    """A process with memory on a GPU. `name` is "" when it cannot be seen from here, as in a container."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.name})" if self.name else f"process {self.pid}"


@dataclass(frozen=True)
class Gpu:
    """One GPU. Memory is in bytes, `used_bytes` without what the driver keeps for itself. None means unknown.

    `bus` is its PCI address. `ecc_errors` counts the memory errors that ECC could not correct since the driver
    was loaded. `sm` is its compute capability: 9.0 for an H100. `sm` and `uuid` are "" if unknown.
    `problem` says why NVML, which counts this GPU, cannot open it.
    """

    index: int
    name: str
    memory_bytes: int | None = None
    used_bytes: int | None = None
    mig: bool = False
    processes: tuple[Process, ...] = ()
    problem: str = ""
    bus: str = ""
    ecc_errors: int | None = None
    sm: str = ""
    uuid: str = ""


@dataclass(frozen=True)
class Link:
    """How the GPUs `a` < `b` reach each other. NVLink through an NVSwitch counts as NVLink.

    `peer`: each can write into the other's memory, over NVLink or PCIe. None means unknown.
    """

    a: int
    b: int
    way: Way
    peer: bool | None = None


@dataclass(frozen=True)
class Gpus:
    """All GPUs. If there are none, `problem` says why, and `fix` what to do if there should be some."""

    seen: tuple[Gpu, ...] = ()
    driver: str = ""
    cuda: str = ""
    """The newest CUDA that the driver can run."""
    links: tuple[Link, ...] = ()
    problem: str = ""
    fix: str = ""

    def peers(self, a: int, b: int) -> bool | None:
        """`Link.peer` of two GPUs."""
        return next((link.peer for link in self.links if {link.a, link.b} == {a, b}), None)


REASONS = {
    "NVML_ERROR_LIBRARY_NOT_FOUND": (
        "no NVIDIA driver (libnvidia-ml.so.1 is not here)",
        "",  # the ordinary machine without GPUs: what to do depends on who asks
    ),
    "NVML_ERROR_DRIVER_NOT_LOADED": (
        "the NVIDIA driver is installed and not loaded",
        "Load it (modprobe nvidia) or reboot; in a container use docker run --gpus all.",
    ),
    "NVML_ERROR_LIB_RM_VERSION_MISMATCH": (
        "the NVIDIA driver was updated, and the old one is still loaded",
        "Reboot the machine.",
    ),
    "NVML_ERROR_NO_PERMISSION": (
        "this user may not use the NVIDIA driver",
        "Look at the permissions of /dev/nvidia*.",
    ),
}
"""What the error codes of NVML's start mean, and what to do."""


def load_library() -> Any:
    """The module pynvml. Tests replace this function."""
    import pynvml

    return pynvml


def look_at_gpus() -> Gpus:
    """Read all GPUs through NVML. Never raises: a problem is part of the result."""
    try:
        nvml = load_library()
    except ImportError:
        return Gpus(problem="nvidia-ml-py is not installed", fix="Run: pip install nvidia-ml-py")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return _none(nvml, error)
    try:
        return _all(nvml)
    except nvml.NVMLError as error:
        return _none(nvml, error)
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _none(nvml: Any, error: Any) -> Gpus:
    for code, (problem, fix) in REASONS.items():
        if error.value == getattr(nvml, code):
            return Gpus(problem=problem, fix=fix)
    return Gpus(problem=f"NVML says: {error}", fix="Look at nvidia-smi and at dmesg.")


def _all(nvml: Any) -> Gpus:
    count = nvml.nvmlDeviceGetCount()
    handles = {index: _ask(nvml, nvml.nvmlDeviceGetHandleByIndex, index) for index in range(count)}
    cuda = _ask(nvml, nvml.nvmlSystemGetCudaDriverVersion_v2)
    return Gpus(
        seen=tuple(_gpu(nvml, index, handle) for index, handle in handles.items()),
        driver=_ask(nvml, nvml.nvmlSystemGetDriverVersion) or "",
        cuda=f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else "",
        links=tuple(_links(nvml, handles)),
        problem="" if count else "the NVIDIA driver sees no GPU",
        fix="" if count else "Look at nvidia-smi and at dmesg; in a container use docker run --gpus all.",
    )


def _gpu(nvml: Any, index: int, handle: Any) -> Gpu:
    if handle is None:
        return Gpu(index, "unknown", problem="NVML cannot open it")
    # The second form of the answer leaves out of `used` what the driver keeps for itself.
    memory = _ask(nvml, nvml.nvmlDeviceGetMemoryInfo, handle, version=nvml.nvmlMemory_v2)
    memory = memory or _ask(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    mig = _ask(nvml, nvml.nvmlDeviceGetMigMode, handle)
    processes = _ask(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, handle)
    pci = _ask(nvml, nvml.nvmlDeviceGetPciInfo, handle)
    capability = _ask(nvml, nvml.nvmlDeviceGetCudaComputeCapability, handle)
    ecc = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
    return Gpu(
        index=index,
        name=_ask(nvml, nvml.nvmlDeviceGetName, handle) or "unknown",
        memory_bytes=memory.total if memory else None,
        used_bytes=memory.used if memory else None,
        mig=bool(mig and mig[0]),
        processes=tuple(Process(process.pid, _process_name(process.pid)) for process in processes or ()),
        bus=pci.busId if pci else "",
        ecc_errors=_ask(nvml, nvml.nvmlDeviceGetTotalEccErrors, handle, *ecc),
        sm=".".join(map(str, capability or ())),
        uuid=_ask(nvml, nvml.nvmlDeviceGetUUID, handle) or "",
    )


def _process_name(pid: int) -> str:
    """The name of a process that has a GPU open, else "": in a container NVML's pids are those of the host."""
    folder = PROC / str(pid)
    with contextlib.suppress(OSError):
        if any(str(file.readlink()).startswith("/dev/nvidia") for file in (folder / "fd").iterdir()):
            return (folder / "comm").read_text().strip()
    return ""


def _links(nvml: Any, handles: dict[int, Any]) -> Iterator[Link]:
    """Asks for each pair of GPUs: the state of one GPU's links does not say which GPUs they reach."""
    for a in handles:
        for b in range(a + 1, len(handles)):
            nvlink, peer = None, None
            if handles[a] is not None and handles[b] is not None:
                nvlink = _allowed(nvml, handles[a], handles[b], nvml.NVML_P2P_CAPS_INDEX_NVLINK)
                peer = _allowed(nvml, handles[a], handles[b], nvml.NVML_P2P_CAPS_INDEX_WRITE)
            known: Way = "NVLink" if nvlink else "PCIe"
            yield Link(a, b, "unknown" if nvlink is None else known, peer)


def _allowed(nvml: Any, a: Any, b: Any, capability: int) -> bool | None:
    status = _ask(nvml, nvml.nvmlDeviceGetP2PStatus, a, b, capability)
    return None if status in (None, nvml.NVML_P2P_STATUS_UNKNOWN) else status == nvml.NVML_P2P_STATUS_OK


def _ask(nvml: Any, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """NVML's answer, or None if it has none."""
    try:
        return function(*arguments, **options)
    except nvml.NVMLError:
        return None
