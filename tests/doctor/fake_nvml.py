"""A library in the place of pynvml: its constants and exceptions are the real ones, its GPUs are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml

GIB = 2**30
H100 = "NVIDIA H100 80GB HBM3"
A100 = "NVIDIA A100 80GB PCIe"


@dataclass
class Card:
    name: str = H100
    total: int = int(79.65 * GIB)
    used: int = 3 << 20
    pids: tuple[int, ...] = ()
    mig: bool | None = False
    """None: as of GPUs that know no MIG, where NVML raises."""
    ecc: int | None = 0
    """None: as of GPUs without ECC."""
    bus: str = ""
    sm: tuple[int, int] = (9, 0)
    uuid: str = ""
    """"": one by its place, of which the first 8 digits differ from the others'."""
    busy_percent: int = 0
    celsius: int = 40
    milliwatts: int = 120_000
    clock_mhz: int = 1980
    throttle_mask: int = 0
    ecc_corrected: int = 0
    rows: tuple[int, int, int, int] | None = (0, 0, 0, 0)
    """Rows of memory replaced after corrected and uncorrected errors, whether one waits, whether one failed."""
    fields: dict[int, int] = field(default_factory=dict)
    """By field id; the others are not supported."""


class FakeNvml:
    """`fails` maps a function's name to the error code that it raises, for all GPUs or for one index."""

    def __init__(
        self,
        cards: list[Card],
        driver: str = "590.44.01",
        nvlink: Callable[[int, int], bool] = lambda a, b: True,
        fails: dict[str, int] | None = None,
        lost: int | None = None,
        cuda: int = 13010,
        peer: Callable[[int, int], bool] = lambda a, b: True,
    ) -> None:
        self.cards, self.driver, self.nvlink, self.fails, self.lost = cards, driver, nvlink, fails or {}, lost
        self.cuda, self.peer = cuda, peer
        self.open = self.opened = 0
        """How often it is open now, and how often it was opened in all."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("NVML_", "NVMLError", "nvmlMemory_v2", "nvmlClocksThrottleReason")):
            return getattr(pynvml, name)
        raise AttributeError(name)

    def _maybe_fail(self, name: str) -> None:
        if name in self.fails:
            raise pynvml.NVMLError(self.fails[name])

    def nvmlInit(self) -> None:
        self._maybe_fail("nvmlInit")
        self.open += 1
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        self._maybe_fail("nvmlDeviceGetCount")
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:
        if index == self.lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return self.cards[index]

    def nvmlSystemGetDriverVersion(self) -> str:
        self._maybe_fail("nvmlSystemGetDriverVersion")
        return self.driver

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return self.cuda

    def nvmlDeviceGetName(self, card: Card) -> str:
        return card.name

    def nvmlDeviceGetMemoryInfo(self, card: Card, version: int | None = None) -> Any:
        self._maybe_fail("nvmlDeviceGetMemoryInfo")
        reserved = 0 if version else 600 << 20  # the first form counts what the driver keeps as used
        if version:
            self._maybe_fail("nvmlDeviceGetMemoryInfo_v2")
        return SimpleNamespace(total=card.total, used=card.used + reserved)

    def nvmlDeviceGetCudaComputeCapability(self, card: Card) -> list[int]:
        self._maybe_fail("nvmlDeviceGetCudaComputeCapability")
        return list(card.sm)

    def nvmlDeviceGetMigMode(self, card: Card) -> list[int]:
        if card.mig is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [int(card.mig), int(card.mig)]

    def nvmlDeviceGetComputeRunningProcesses(self, card: Card) -> list[Any]:
        self._maybe_fail("nvmlDeviceGetComputeRunningProcesses")
        return [SimpleNamespace(pid=pid, usedGpuMemory=None) for pid in card.pids]

    def nvmlDeviceGetP2PStatus(self, a: Card, b: Card, index: int) -> int:
        self._maybe_fail("nvmlDeviceGetP2PStatus")
        told = {pynvml.NVML_P2P_CAPS_INDEX_NVLINK: self.nvlink, pynvml.NVML_P2P_CAPS_INDEX_WRITE: self.peer}[index]
        places = [next(i for i, card in enumerate(self.cards) if card is one) for one in (a, b)]
        return pynvml.NVML_P2P_STATUS_OK if told(*places) else pynvml.NVML_P2P_STATUS_NOT_SUPPORTED

    def nvmlDeviceGetPciInfo(self, card: Card) -> Any:
        self._maybe_fail("nvmlDeviceGetPciInfo")
        place = next(i for i, one in enumerate(self.cards) if card is one)
        return SimpleNamespace(busId=card.bus or f"00000000:{place * 16 + 0x1B:02X}:00.0")

    def nvmlDeviceGetUUID(self, card: Card) -> str:
        self._maybe_fail("nvmlDeviceGetUUID")
        place = next(i for i, one in enumerate(self.cards) if card is one)
        return card.uuid or f"GPU-52a3a85{place:x}-0000-0000-0000-82c69ed360fc"

    def nvmlDeviceGetTotalEccErrors(self, card: Card, kind: int, since: int) -> int:
        assert since == pynvml.NVML_VOLATILE_ECC
        if card.ecc is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        if kind == pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED:
            return card.ecc_corrected
        return card.ecc

    def nvmlDeviceGetRemappedRows(self, card: Card) -> tuple[int, int, int, int]:
        if card.rows is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return card.rows

    def nvmlDeviceGetUtilizationRates(self, card: Card) -> Any:
        self._maybe_fail("nvmlDeviceGetUtilizationRates")
        return SimpleNamespace(gpu=card.busy_percent, memory=0)

    def nvmlDeviceGetTemperature(self, card: Card, sensor: int) -> int:
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return card.celsius

    def nvmlDeviceGetPowerUsage(self, card: Card) -> int:
        self._maybe_fail("nvmlDeviceGetPowerUsage")
        return card.milliwatts

    def nvmlDeviceGetEnforcedPowerLimit(self, card: Card) -> int:
        return 700_000

    def nvmlDeviceGetClockInfo(self, card: Card, kind: int) -> int:
        assert kind == pynvml.NVML_CLOCK_SM
        return card.clock_mhz

    def nvmlDeviceGetCurrentClocksEventReasons(self, card: Card) -> int:
        self._maybe_fail("nvmlDeviceGetCurrentClocksEventReasons")
        return card.throttle_mask

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, card: Card) -> int:
        self._maybe_fail("nvmlDeviceGetCurrentClocksThrottleReasons")
        return card.throttle_mask

    def nvmlDeviceGetFieldValues(self, card: Card, ids: list[int]) -> list[Any]:
        self._maybe_fail("nvmlDeviceGetFieldValues")

        def value(id: int) -> Any:
            code = 0 if id in card.fields else pynvml.NVML_ERROR_NOT_SUPPORTED
            return SimpleNamespace(fieldId=id, nvmlReturn=code, value=SimpleNamespace(ullVal=card.fields.get(id)))

        return [value(id) for id in ids]


def h100s(count: int = 8, **options: Any) -> FakeNvml:
    """H100 SXM, all on an NVSwitch."""
    return FakeNvml([Card() for _ in range(count)], **options)


def a100s_pcie(count: int = 4) -> FakeNvml:
    return FakeNvml([Card(A100, 80 * GIB, sm=(8, 0)) for _ in range(count)], nvlink=lambda a, b: False)
