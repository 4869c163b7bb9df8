"""Any Triton, by its page of metrics alone."""

from __future__ import annotations

import urllib.error

import pytest

from tests import commands
from tests.monitor.test_watcher import engine_page
from toolkit.errors import ToolkitError
from toolkit.monitor.latencies import SloTarget
from toolkit.monitor.target import TargetWatcher

NVIDIAS = """
nv_inference_request_success{model="tensorrt_llm",version="1"} 93
nv_inference_request_success{model="ensemble",version="1"} 90
nv_inference_request_success{model="preprocessing",version="1"} 93
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="active",version="1"} 5
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="waiting",version="1"} 2
nv_trt_llm_inflight_batcher_metrics{inflight_batcher_specific_metric="micro_batch_id",version="1"} 1
nv_gpu_utilization{gpu_uuid="GPU-b"} 0.9
nv_gpu_utilization{gpu_uuid="GPU-a"} 0.7
nv_gpu_memory_used_bytes{gpu_uuid="GPU-a"} 7e10
"""
"""As NVIDIA's backend gives them, without our histograms."""


def watcher(text: str, targets=()) -> TargetWatcher:
    clock = iter(range(1000))
    return TargetWatcher("http://triton:8002", targets, lambda url: text, lambda: float(next(clock)))


def test_nvidia_s_backend():
    page = watcher(NVIDIAS).look()
    assert page.get("toolkit_requests_active", replica=0) == 5
    assert page.get("toolkit_requests_waiting", replica=0) == 2
    assert page.get("toolkit_requests_total", protocol="triton") == 93, "each request reaches this model once"
    labels = {"replica": "none", "rank": "none", "source": "triton"}
    assert page.get("toolkit_gpu_utilisation_ratio", gpu=0, **labels) == 0.7
    assert page.get("toolkit_gpu_utilisation_ratio", gpu=1, **labels) == 0.9
    assert page.get("toolkit_gpu_memory_used_bytes", gpu=0, **labels) == 7e10
    assert "toolkit_pipeline_empty_ratio" not in page.values, "how many stages it has is not known"
    assert "toolkit_latency_seconds" not in page.values


def test_our_models_have_percentiles_and_the_slo():
    count = 'toolkit_request_duration_seconds_count{model="tensorrt_llm_bls",protocol="triton",replica="0"} 100\n'
    watch = watcher(engine_page(within=90, requests=100) + count, [SloTarget("ttft", 50, 0.5)])
    page = watch.look()
    assert page.get("toolkit_slo_good_requests_total", target="ttft_p50", protocol="triton") == 90
    assert page.get("toolkit_requests_total", protocol="triton") == 100


def test_one_that_is_gone_is_said():
    def gone(url: str) -> str:
        raise ConnectionRefusedError("Connection refused")

    page = TargetWatcher("http://triton:8002", read=gone).look()
    assert page.get("toolkit_replica_phase", replica=0, phase="no answer") == 1


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (urllib.error.HTTPError("", 404, "Not Found", None, None), "no metrics are here: HTTP 404. Give the port of"),
        (urllib.error.URLError(ConnectionRefusedError(111, "Connection refused")), "cannot be read: .*refused"),
        (None, "has no metrics of Triton. Give the port of Triton's metrics, as http://HOST:8002"),
    ],
)
def test_what_is_no_triton_is_one_line(error, what):
    def read(url: str) -> str:
        assert url == "http://triton:8002/metrics"
        if error:
            raise error
        return "<h1>hello</h1>"

    with pytest.raises(ToolkitError, match=rf"^http://triton:8002/metrics: {what}"):
        TargetWatcher("http://triton:8002/", read=read).require()


def test_the_command_line():
    done = commands.toolkit("monitor")
    assert done.returncode == 2 and "Give a CONFIG, or --target URL." in done.stderr
    done = commands.toolkit("monitor", "--target", "triton:8002")
    assert done.returncode == 1 and "'triton:8002' is not a URL of a server" in done.stderr
    done = commands.toolkit("monitor", "--target", "http://127.0.0.1:1", "--exporter")
    assert done.returncode == 2 and "--target cannot be combined with --exporter" in done.stderr
