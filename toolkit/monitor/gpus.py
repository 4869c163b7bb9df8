"""The GPU of each rank; in a rehearsal, the processor share and the memory of the rank's processes stand for it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError
from toolkit.machine.gpu_faults import states_of
from toolkit.machine.gpu_health import THROTTLES, GpuHealth, GpuReader
from toolkit.machine.kernel_log import Kernel, bus_of, look_at_kernel
from toolkit.machine.limits import memory_limit
from toolkit.monitor.page import Page
from toolkit.serve.janitor import ServerRun, members
from toolkit.serve.share import share_of
from toolkit.serve.state import read_state

NVML, REHEARSAL = "nvml", "rehearsal"
KERNEL_EVERY_S = 30.0
USER, SYSTEM, STARTED, RESIDENT = 11, 12, 19, 21
"""Fields of /proc/PID/stat behind the name (proc(5) counts them from 1, with the number and the name)."""
TICKS_PER_S, PAGE_BYTES = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
NO_RANK = "none"
"""The labels `replica` and `rank` of a GPU that the deployment does not use."""


class GpuWatch:
    """The GPUs of this machine, with the rank on each."""

    def __init__(self, deployment: Deployment, kernel: Callable[[], Kernel] = look_at_kernel) -> None:
        self._reader, self._kernel = GpuReader(), kernel
        self.problem = self._reader.problem
        self._ranks = dict(_ranks_by_gpu(deployment))
        self._xids, self._looked = Kernel(), -KERNEL_EVERY_S

    def fill(self, page: Page, now: float) -> None:
        """Read all GPUs."""
        if now - self._looked >= KERNEL_EVERY_S:
            self._xids, self._looked = self._kernel(), now
        gpus = self._reader.read()
        for gpu in gpus:
            replica, rank = self._ranks.get(gpu.index, (NO_RANK, NO_RANK))
            _fill_gpu(page, gpu, {"replica": replica, "rank": rank, "gpu": gpu.index, "source": NVML})
        by_bus = {bus_of(gpu.bus): gpu.index for gpu in gpus if gpu.bus}
        for xid in self._xids.xids:
            labels = {"gpu": by_bus.get(xid.bus, xid.bus), "xid": xid.code}
            before = page.get("toolkit_gpu_xid_errors_total", **labels) or 0
            page.set("toolkit_gpu_xid_errors_total", before + 1, **labels)

    def close(self) -> None:
        """Close NVML."""
        self._reader.close()


def _ranks_by_gpu(deployment: Deployment) -> Iterator[tuple[int, tuple[int, int]]]:
    """(GPU, (replica, rank))."""
    for number, replica in enumerate(deployment.here()):
        with contextlib.suppress(ToolkitError):
            for rank, gpu in enumerate(share_of(replica).gpus):
                yield gpu, (number, rank)


def _fill_gpu(page: Page, gpu: GpuHealth, labels: dict[str, object]) -> None:
    page.set("toolkit_gpu_lost", any(fault.effect == "lost" for _, fault, _ in states_of(gpu)), **labels)
    page.set("toolkit_gpu_utilisation_ratio", gpu.utilisation, **labels)
    page.set("toolkit_gpu_memory_used_bytes", gpu.memory_used_bytes, **labels)
    page.set("toolkit_gpu_memory_total_bytes", gpu.memory_total_bytes, **labels)
    page.set("toolkit_gpu_temperature_celsius", gpu.temperature_c, **labels)
    page.set("toolkit_gpu_power_watts", gpu.power_w, **labels)
    page.set("toolkit_gpu_power_limit_watts", gpu.power_limit_w, **labels)
    page.set("toolkit_gpu_sm_clock_hertz", None if gpu.sm_clock_mhz is None else gpu.sm_clock_mhz * 1e6, **labels)
    for reason in THROTTLES.values() if gpu.throttles is not None else ():
        page.set("toolkit_gpu_throttled", reason in (gpu.throttles or ()), reason=reason, **labels)
    page.set("toolkit_gpu_ecc_errors_total", gpu.ecc_corrected, kind="corrected", **labels)
    page.set("toolkit_gpu_ecc_errors_total", gpu.ecc_uncorrected, kind="uncorrected", **labels)
    page.set("toolkit_gpu_nvlink_errors_total", gpu.nvlink_errors, **labels)
    page.set("toolkit_gpu_nvlink_bytes_total", gpu.nvlink_sent_bytes, direction="sent", **labels)
    page.set("toolkit_gpu_nvlink_bytes_total", gpu.nvlink_received_bytes, direction="received", **labels)


class RankWatch:
    """The ranks of a rehearsal, with the numbers that GPUs would have."""

    def __init__(self, deployment: Deployment) -> None:
        self._replicas = deployment.here()
        self._size = deployment.mapping.world_size
        self._total = (memory_limit() or psutil.virtual_memory().total) / deployment.ranks_here
        self._runs: dict[int, tuple[ServerRun, dict[int, list[Process]]]] = {}
        self._before: dict[tuple[int, int], tuple[float, float]] = {}
        self.problem = ""

    def fill(self, page: Page, now: float) -> None:
        """Read the processes of all ranks."""
        for number, replica in enumerate(self._replicas):
            for rank, (seconds, resident) in self._used(number, replica).items():
                labels = {"replica": number, "rank": rank, "gpu": number * self._size + rank, "source": REHEARSAL}
                then, before = self._before.get((number, rank), (now, seconds))
                self._before[number, rank] = now, seconds
                if now > then and seconds >= before:
                    share = min(1.0, (seconds - before) / (now - then))
                    page.set("toolkit_gpu_utilisation_ratio", share, **labels)
                page.set("toolkit_gpu_memory_used_bytes", resident, **labels)
                page.set("toolkit_gpu_memory_total_bytes", self._total, **labels)

    def close(self) -> None:
        """Do nothing: no file is open."""

    def _used(self, number: int, replica: Deployment) -> dict[int, tuple[float, int]]:
        """(seconds, bytes) of each rank. /proc is searched only for a new run, or when a process has ended."""
        state = read_state(replica)
        if state is None or state.phase in ("stopped", "failed"):
            self._runs.pop(number, None)
            return {}
        run, ranks = self._runs.get(number, (None, {}))
        used = _used(ranks)
        if run != state.run or state.phase == "loading" or used is None:
            ranks = _processes(state.run)
            self._runs[number] = state.run, ranks
            used = _used(ranks)
        return used or {}


def _used(ranks: dict[int, list[Process]]) -> dict[int, tuple[float, int]] | None:
    """The sums of each rank; None if a process has ended."""
    sums = {}
    for rank, processes in ranks.items():
        amounts = [process.used() for process in processes]
        known = [amount for amount in amounts if amount is not None]
        if len(known) < len(amounts):
            return None
        sums[rank] = sum(seconds for seconds, _ in known), sum(resident for _, resident in known)
    return sums


@dataclass(frozen=True)
class Process:
    """A process of a rank. `started` distinguishes it from a later process with the same number."""

    pid: int
    started: int

    def used(self) -> tuple[float, int] | None:
        """(seconds of processor time, resident bytes); None if it has ended. One file, as this runs each second."""
        fields = _stat(self.pid)
        if fields is None or int(fields[STARTED]) != self.started:
            return None
        return (int(fields[USER]) + int(fields[SYSTEM])) / TICKS_PER_S, int(fields[RESIDENT]) * PAGE_BYTES


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat behind the name, which may hold spaces."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].decode().split()
    return None


def _processes(run: ServerRun) -> dict[int, list[Process]]:
    ranks: dict[int, list[Process]] = {}
    for member in members(run):
        if member.rank is not None and (fields := _stat(member.pid)):
            ranks.setdefault(member.rank, []).append(Process(member.pid, int(fields[STARTED])))
    return ranks


def watch_of(deployment: Deployment) -> GpuWatch | RankWatch:
    """The GPUs, or in a rehearsal what stands for them."""
    return GpuWatch(deployment) if deployment.kind.on_gpus else RankWatch(deployment)
