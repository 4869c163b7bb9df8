"""Reading the servers' /metrics during a load test, and what it sums up to."""

from __future__ import annotations

import http.server
import threading

import pytest

from toolkit.errors import ToolkitError
from toolkit.load.server_watch import ServerWatch
from toolkit.monitor.metrics import METRICS
from toolkit.slo.readings import KEPT

GPUS = """# HELP nv_gpu_utilization GPU utilization rate [0.0 - 1.0)
# TYPE nv_gpu_utilization gauge
nv_gpu_utilization{gpu_uuid="GPU-a"} {A}
nv_gpu_utilization{gpu_uuid="GPU-b"} 0.9
nv_gpu_memory_total_bytes{gpu_uuid="GPU-a"} 85520809984
nv_gpu_memory_used_bytes{gpu_uuid="GPU-a"} 7e10
"""
ENGINE = """nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="used",model="tensorrt_llm",version="1"} 30
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max",model="tensorrt_llm",version="1"} 120
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="active",version="1"} 7
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="max",version="1"} 64
"""


EXPORTED = """# HELP toolkit_gpu_utilisation_ratio Busy share of the GPU; rehearsal: share of one core
toolkit_gpu_utilisation_ratio{gpu="0",rank="0",replica="0",source="{S}"} {A}
toolkit_gpu_utilisation_ratio{gpu="10",rank="10",replica="0",source="{S}"} 0.8
toolkit_gpu_utilisation_ratio{gpu="11",rank="none",replica="none",source="{S}"} 0.01
toolkit_gpu_memory_used_bytes{gpu="0",rank="0",replica="0",source="{S}"} {B}
toolkit_gpu_memory_total_bytes{gpu="0",rank="0",replica="0",source="{S}"} 80
toolkit_gpu_lost{gpu="3",rank="3",replica="0",source="{S}"} 1
toolkit_pipeline_empty_ratio{replica="0"} {C}
toolkit_pipeline_empty_ratio{replica="1"} 0.5
"""


def exported(source: str, busy: str = "0.6", used: str = "60", empty: str = "0.25") -> str:
    text = EXPORTED.replace("{S}", source)
    return text.replace("{A}", busy).replace("{B}", used).replace("{C}", empty)


def watched(answers: dict[str, list[str]], exporter=None):
    """What is seen when each server gives these answers one after the other, then none."""
    left, done = {url: list(texts) for url, texts in answers.items()}, threading.Event()

    def read(url: str) -> str:
        if left[url]:
            return left[url].pop(0)
        done.set()
        raise ConnectionRefusedError("Connection refused")

    with ServerWatch(list(answers), exporter, every_s=0.001, read=read) as watch:
        assert done.wait(30)
    return watch.seen()


def test_means_of_utilisation_and_peaks_of_the_rest() -> None:
    texts = [GPUS.replace("{A}", value) + ENGINE for value in ("0.5", "0.7")]
    seen = watched({"one": texts})
    assert [gpu.uuid for gpu in seen.gpus] == ["GPU-a", "GPU-b"]
    assert seen.gpus[0].utilisation == pytest.approx(0.6)
    assert (seen.gpus[0].memory_used_bytes, seen.gpus[0].memory_total_bytes) == (7e10, 85520809984)
    assert seen.gpus[1].memory_used_bytes is None
    assert seen.gpu_utilisation == pytest.approx(0.75)
    assert seen.load_balance_variance == pytest.approx(0.4)
    assert (seen.kv_cache_used, seen.requests_active, seen.readings) == (0.25, 7, 2)


def test_the_exporter_says_which_gpus_it_does_not_see() -> None:
    elsewhere = "".join(f'toolkit_gpus_not_watched{{node="{node}",ranks="8-15"}} 8\n' for node in ("node-b", "node-c"))
    seen = watched({"one": [ENGINE] * 2}, exporter=lambda: exported("nvml") + elsewhere)
    assert seen.gpus_not_watched == 16 and len(seen.gpus) == 2
    assert watched({"one": [ENGINE]}, exporter=lambda: exported("nvml")).gpus_not_watched == 0


def test_the_exporter_knows_the_gpu_of_each_rank() -> None:
    """It counts instead of what Triton says of GPUs; those without a rank do not count."""
    pages = [exported("nvml", "0.6", "60"), exported("nvml", "0.8", "64", "0.75")]
    seen = watched({"one": [GPUS.replace("{A}", "0.1"), ENGINE, ENGINE]}, lambda: pages.pop(0) if pages else "")
    assert [gpu.uuid for gpu in seen.gpus] == ["replica 0 rank 0, GPU 0", "replica 0 rank 10, GPU 10"]
    assert seen.gpus[0].utilisation == pytest.approx(0.7)
    assert seen.load_balance_variance == pytest.approx(0.1 / 0.75)
    assert (seen.gpus[0].memory_used_bytes, seen.memory_used) == (64, 0.8)
    assert seen.pipeline_empty == pytest.approx(0.5)
    assert not seen.stand_in and seen.kv_cache_used == 0.25


def test_a_rehearsal_s_exporter_has_stand_ins() -> None:
    seen = watched({"one": [ENGINE]}, lambda: exported("rehearsal"))
    assert seen.gpus[0].uuid == "replica 0 rank 0, CPU" and seen.stand_in
    assert seen.gpu_utilisation == pytest.approx(0.7)


def test_without_an_exporter_it_says_how_to_have_one() -> None:
    def none() -> str:
        raise ToolkitError("no exporter answers here", where="http://x", hint="Start it: toolkit monitor c --exporter")

    seen = watched({"one": [ENGINE, ENGINE]}, none)
    assert seen.why_no_gpus == (
        "the server's metrics name no GPU, and http://x: no exporter answers here. "
        "Start it: toolkit monitor c --exporter"
    )
    assert watched({"one": [GPUS.replace("{A}", "0.5")] * 2}, none).gpu_utilisation == pytest.approx(0.7)


def test_every_family_that_is_read_is_one_of_the_exporter() -> None:
    ours = [name for name in KEPT if name.startswith("toolkit_")]
    assert ours and all(any(metric.startswith(name) for metric in METRICS) for name in ours)


def test_replicas_see_the_same_gpus_and_have_their_own_requests() -> None:
    text = GPUS.replace("{A}", "0.5") + ENGINE
    seen = watched({"one": [text], "two": [text]})
    assert len(seen.gpus) == 2 and seen.requests_active == 14


def test_a_rehearsal_has_no_gpus() -> None:
    seen = watched({"one": [ENGINE]})
    assert (seen.gpus, seen.gpu_utilisation, seen.why_no_gpus) == ((), None, "the server's metrics name no GPU")


def test_a_gpu_without_utilisation_is_not_taken_for_idle() -> None:
    seen = watched({"one": ['nv_gpu_memory_used_bytes{gpu_uuid="GPU-a"} 5\n']})
    assert seen.gpu_utilisation is None
    assert seen.why_no_gpus == "the server's metrics do not say how busy the GPUs are"


def test_a_server_that_gives_none_says_why() -> None:
    seen = watched({"one": []})
    assert seen.why_no_gpus == "the server's metrics cannot be read: Connection refused"


def test_it_reads_over_http_and_goes_on_after_an_error(monkeypatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    statuses, read_twice = [500, 200, 200], threading.Event()

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(statuses.pop(0) if statuses else 200)
            self.end_headers()
            self.wfile.write(ENGINE.encode())
            if not statuses:
                read_twice.set()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with ServerWatch([f"http://127.0.0.1:{server.server_port}/metrics"], every_s=0.001) as watch:
            assert read_twice.wait(30)
        server.shutdown()
    assert watch.seen().kv_cache_used == 0.25


def test_warm_up_and_drain_are_left_out() -> None:
    with ServerWatch(["one"], every_s=0.001, read=lambda url: GPUS.replace("{A}", "0.5")) as watch:
        pass
    assert watch.seen().readings >= 1
    assert watch.seen(begin=1e12).why_no_gpus == "the server's metrics were not read in time"
