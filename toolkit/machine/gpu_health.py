"""The GPUs while they serve: load, memory, heat, power, clocks, memory and link errors, from NVML.

NVML stays open between two readings, because opening it takes longer than reading. A value that NVML does not give is
None. Reading never raises.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from toolkit.machine.gpus import load_library

THROTTLES = {
    "SwPowerCap": "power cap",
    "HwSlowdown": "hardware slowdown",
    "SwThermalSlowdown": "heat",
    "HwThermalSlowdown": "heat, by the hardware",
    "HwPowerBrakeSlowdown": "power brake",
}
"""NVML's reasons that take speed from a GPU with work, and their names. Idle GPUs and set clocks are no throttling."""
LINK_ERRORS = ("CRC_FLIT", "CRC_DATA", "REPLAY", "RECOVERY")
RECOVERY = "NVML_GPU_RECOVERY_ACTION_"
RECOVERIES = ("GPU_RESET", "NODE_REBOOT", "DRAIN_P2P", "DRAIN_AND_RESET", "BUS_RESET", "SYSTEM_REBOOT")
"""What the driver may want done, by the endings of NVML's constants. Others do not concern a group."""
KIB = 1024


@dataclass(frozen=True)
class GpuHealth:
    """One reading of one GPU. None: NVML does not say it.

    `problem` says why NVML cannot read the GPU at all. Error counts are since the driver was loaded.
    """

    index: int
    problem: str = ""
    uuid: str = ""
    bus: str = ""
    utilisation: float | None = None
    """Share of time in which a kernel ran, 0 to 1."""
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    sm_clock_mhz: int | None = None
    throttles: tuple[str, ...] | None = None
    """Why it runs slower than it could, by the names of THROTTLES."""
    ecc_corrected: int | None = None
    ecc_uncorrected: int | None = None
    recovery: str | None = None
    """What the driver wants done: the ending of NVML_GPU_RECOVERY_ACTION_*, NONE if all is well."""
    rows_pending: bool | None = None
    """A row of memory is to be replaced at the next reset."""
    rows_failed: bool | None = None
    """A row of memory could not be replaced."""
    nvlink_errors: int | None = None
    nvlink_sent_bytes: int | None = None
    nvlink_received_bytes: int | None = None


class GpuReader:
    """Reads all GPUs of the machine, while it is open."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._count = 0
        self.problem = ""
        """Why there is nothing to read; "" if there is."""
        try:
            nvml = load_library()
        except ImportError:
            self.problem = "nvidia-ml-py is not installed"
            return
        try:
            nvml.nvmlInit()
            self._nvml, self._count = nvml, nvml.nvmlDeviceGetCount()
        except nvml.NVMLError as error:
            self.problem = f"NVML says: {error}"

    def close(self) -> None:
        """Let go of NVML."""
        if self._nvml is not None:
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()
            self._nvml = None

    def read(self) -> list[GpuHealth]:
        """Each GPU now; none if there is no NVML."""
        return [self._gpu(index) for index in range(self._count)] if self._nvml is not None else []

    def _gpu(self, index: int) -> GpuHealth:
        nvml = self._nvml
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
        except nvml.NVMLError as error:
            return GpuHealth(index, problem=str(error))
        rates = self._ask("nvmlDeviceGetUtilizationRates", handle)
        memory = self._ask("nvmlDeviceGetMemoryInfo", handle, version=nvml.nvmlMemory_v2)
        memory = memory or self._ask("nvmlDeviceGetMemoryInfo", handle)
        power, limit = (
            self._ask("nvmlDeviceGetPowerUsage", handle),
            self._ask("nvmlDeviceGetEnforcedPowerLimit", handle),
        )
        pci = self._ask("nvmlDeviceGetPciInfo", handle)
        errors, sent, received, recovery = self._fields(handle)
        rows = self._ask("nvmlDeviceGetRemappedRows", handle)
        return GpuHealth(
            index,
            uuid=self._ask("nvmlDeviceGetUUID", handle) or "",
            bus=pci.busId if pci else "",
            utilisation=rates.gpu / 100 if rates else None,
            memory_used_bytes=memory.used if memory else None,
            memory_total_bytes=memory.total if memory else None,
            temperature_c=self._ask("nvmlDeviceGetTemperature", handle, nvml.NVML_TEMPERATURE_GPU),
            power_w=None if power is None else power / 1000,
            power_limit_w=None if limit is None else limit / 1000,
            sm_clock_mhz=self._ask("nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_SM),
            throttles=self._throttles(handle),
            ecc_corrected=self._ecc(handle, nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
            ecc_uncorrected=self._ecc(handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
            recovery=self._recovery(recovery),
            rows_pending=None if rows is None else bool(rows[2]),
            rows_failed=None if rows is None else bool(rows[3]),
            nvlink_errors=errors,
            nvlink_sent_bytes=sent,
            nvlink_received_bytes=received,
        )

    def _throttles(self, handle: Any) -> tuple[str, ...] | None:
        reasons = self._ask("nvmlDeviceGetCurrentClocksEventReasons", handle)
        if reasons is None:  # a driver older than R535
            reasons = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
        if reasons is None:
            return None
        masks = {label: getattr(self._nvml, f"nvmlClocksThrottleReason{name}") for name, label in THROTTLES.items()}
        return tuple(label for label, mask in masks.items() if reasons & mask)

    def _ecc(self, handle: Any, kind: int) -> int | None:
        count: int | None = self._ask("nvmlDeviceGetTotalEccErrors", handle, kind, self._nvml.NVML_VOLATILE_ECC)
        return count

    def _recovery(self, number: int | None) -> str | None:
        if number is None:
            return None
        return next((name for name in RECOVERIES if getattr(self._nvml, f"{RECOVERY}{name}", None) == number), "NONE")

    def _fields(self, handle: Any) -> tuple[int | None, ...]:
        """(errors, bytes sent, bytes received) over all NVLinks, and the number of the recovery action."""
        names = [f"NVML_FI_DEV_NVLINK_{kind}_ERROR_COUNT_TOTAL" for kind in LINK_ERRORS]
        names += ["NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX", "NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX"]
        names += ["NVML_FI_DEV_GET_GPU_RECOVERY_ACTION"]
        fields = self._ask("nvmlDeviceGetFieldValues", handle, [getattr(self._nvml, name) for name in names])
        counts = [field.value.ullVal if field.nvmlReturn == 0 else None for field in fields or []]
        *errors, sent, received, recovery = counts or [None] * len(names)
        known = [count for count in errors if count is not None]
        in_bytes = [None if amount is None else amount * KIB for amount in (sent, received)]
        return sum(known) if known else None, in_bytes[0], in_bytes[1], recovery

    def _ask(self, name: str, *arguments: Any, **options: Any) -> Any:
        """NVML's answer, or None if it has none. Old libraries lack newer functions."""
        try:
            function: Callable[..., Any] = getattr(self._nvml, name)
            return function(*arguments, **options)
        except self._nvml.NVMLError:
            return None
