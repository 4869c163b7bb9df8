"""The GPUs while they serve, from a double of NVML with the real constants and exceptions."""

import pynvml
import pytest

from tests.doctor.fake_nvml import GIB, Card, FakeNvml
from toolkit.machine import gpu_health
from toolkit.machine.gpu_health import GpuReader


@pytest.fixture
def reader(monkeypatch):
    """Makes a reader of a library."""

    def make(nvml: FakeNvml) -> GpuReader:
        monkeypatch.setattr(gpu_health, "load_library", lambda: nvml)
        return GpuReader()

    return make


def test_everything_that_nvml_says(reader):
    fields = {
        pynvml.NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL: 3,
        pynvml.NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL: 4,
        pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX: 5,
    }
    mask = pynvml.nvmlClocksThrottleReasonSwThermalSlowdown | pynvml.nvmlClocksThrottleReasonGpuIdle
    hot = Card(used=40 * GIB, busy_percent=73, celsius=88, throttle_mask=mask, ecc=1, ecc_corrected=9, fields=fields)
    nvml = FakeNvml([Card(), hot])
    both = reader(nvml)
    idle, gpu = both.read()
    assert (gpu.utilisation, gpu.temperature_c, gpu.power_w, gpu.power_limit_w) == (0.73, 88, 120, 700)
    assert (gpu.memory_used_bytes, gpu.memory_total_bytes) == (40 * GIB, hot.total)
    assert gpu.throttles == ("heat",) and gpu.sm_clock_mhz == 1980
    assert (gpu.ecc_corrected, gpu.ecc_uncorrected) == (9, 1)
    assert (gpu.nvlink_errors, gpu.nvlink_sent_bytes, gpu.nvlink_received_bytes) == (7, 5 * 1024, None)
    assert idle.throttles == () and idle.nvlink_errors is None
    both.read()
    assert nvml.opened == 1
    both.close()
    assert nvml.open == 0 and both.read() == []


def test_values_that_nvml_does_not_have_are_none(reader):
    missing = (
        *("nvmlDeviceGetUtilizationRates", "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetPowerUsage"),
        *("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"),
        *("nvmlDeviceGetFieldValues", "nvmlDeviceGetUUID", "nvmlDeviceGetPciInfo"),
    )
    (gpu,) = reader(FakeNvml([Card(ecc=None)], fails=dict.fromkeys(missing, pynvml.NVML_ERROR_NOT_SUPPORTED))).read()
    assert (gpu.utilisation, gpu.memory_used_bytes, gpu.power_w, gpu.throttles) == (None, None, None, None)
    assert (gpu.ecc_uncorrected, gpu.nvlink_errors, gpu.uuid, gpu.bus) == (None, None, "", "")
    assert gpu.temperature_c == 40 and not gpu.problem


def test_an_old_driver_says_why_it_throttles_by_an_older_function(reader):
    fails = {"nvmlDeviceGetCurrentClocksEventReasons": pynvml.NVML_ERROR_FUNCTION_NOT_FOUND}
    (gpu,) = reader(FakeNvml([Card(throttle_mask=pynvml.nvmlClocksThrottleReasonSwPowerCap)], fails=fails)).read()
    assert gpu.throttles == ("power cap",)


def test_a_lost_gpu_is_a_problem_of_its_own(reader):
    lost, other = reader(FakeNvml([Card(), Card()], lost=0)).read()
    assert "lost" in lost.problem.lower() and lost.utilisation is None
    assert not other.problem


def test_without_a_driver_there_is_nothing_to_read(reader):
    none = reader(FakeNvml([], fails={"nvmlInit": pynvml.NVML_ERROR_LIBRARY_NOT_FOUND}))
    assert none.read() == [] and "NVML says" in none.problem
    none.close()
