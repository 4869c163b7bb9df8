"""Reading the servers' /metrics during a load test, and what it sums up to."""

from __future__ import annotations

import http.server
import threading

import pytest

from toolkit.load.server_watch import ServerWatch

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


def watched(answers: dict[str, list[str]]):
    """What is seen when each server gives these answers one after the other, then none."""
    left, done = {url: list(texts) for url, texts in answers.items()}, threading.Event()

    def read(url: str) -> str:
        if left[url]:
            return left[url].pop(0)
        done.set()
        raise ConnectionRefusedError("Connection refused")

    with ServerWatch(list(answers), every_s=0.001, read=read) as watch:
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
