"""What the exporter shows, from pages of metrics as servers give them."""

from __future__ import annotations

import subprocess
import sys

import pynvml
import pytest

from tests.doctor.fake_nvml import GIB, Card, FakeNvml
from tests.monitor.deployments import FLAGSHIP, front_node, rehearsal
from toolkit.config.load import load_deployment
from toolkit.machine import gpu_health
from toolkit.machine.kernel_log import Kernel, Xid
from toolkit.monitor import gpus
from toolkit.monitor.gpus import GpuWatch
from toolkit.monitor.other_nodes import OtherNodes, not_watched
from toolkit.monitor.page import Page
from toolkit.monitor.servers import FRONT, worker
from toolkit.monitor.watcher import PAGES_EVERY_S, Watcher, fill_balance

REPLICA_0, REPLICA_1 = "http://127.0.0.1:8002/metrics", "http://127.0.0.1:8012/metrics"
FRONT_URL = "http://127.0.0.1:1/metrics"


def engine_page(active: int = 0, used: int = 0, micro_batch: int = 0, within: int = 0, requests: int = 0) -> str:
    """A Triton's page: of `requests` streams, `within` had their first token in half a second, the rest in two."""
    labels = 'model="tensorrt_llm_bls",protocol="triton",replica="0"'
    ttft = "toolkit_time_to_first_token_seconds_bucket"
    return f"""
# TYPE nv_trt_llm_request_metrics gauge
nv_trt_llm_request_metrics{{model="tensorrt_llm",request_type="active",version="1"}} {active}
nv_trt_llm_request_metrics{{model="tensorrt_llm",request_type="waiting",version="1"}} {active // 2}
nv_trt_llm_kv_cache_block_metrics{{kv_cache_block_type="used",model="tensorrt_llm",version="1"}} {used}
nv_trt_llm_kv_cache_block_metrics{{kv_cache_block_type="max",model="tensorrt_llm",version="1"}} 100
nv_trt_llm_kv_cache_block_metrics{{kv_cache_block_type="reused",model="tensorrt_llm",version="1"}} 7
nv_trt_llm_inflight_batcher_metrics{{inflight_batcher_specific_metric="micro_batch_id",version="1"}} {micro_batch}
{ttft}{{{labels},le="0.5"}} {within}
{ttft}{{{labels},le="1"}} {within}
{ttft}{{{labels},le="2"}} {requests}
{ttft}{{{labels},le="+Inf"}} {requests}
{ttft}{{model="tensorrt_llm",protocol="triton",replica="0",le="+Inf"}} 1000
toolkit_request_errors_total{{{labels},error="unavailable"}} 2
toolkit_request_errors_total{{{labels},error="invalid_arg"}} 50
"""


OPENAI_PAGE = """
dynamo_frontend_time_to_first_token_seconds_bucket{model="llama",le="0.5"} 4
dynamo_frontend_time_to_first_token_seconds_bucket{model="llama",le="+Inf"} 5
dynamo_frontend_requests_total{endpoint="completions",error_type="internal",model="llama",status="error"} 1
dynamo_frontend_requests_total{endpoint="completions",error_type="validation",model="llama",status="error"} 9
"""


def worker_page(replica: int, within: int, requests: int) -> str:
    """A worker's page: `within` requests had at most 50 ms per output token, the rest up to 100 ms."""
    labels = f'model="llama",protocol="openai",replica="{replica}"'
    tpot = "toolkit_time_per_output_token_seconds_bucket"
    return "".join(
        f'{tpot}{{{labels},le="{bound}"}} {count}\n'
        for bound, count in (("0.05", within), ("0.1", requests), ("+Inf", requests))
    )


class World:
    """The pages of all servers, and the time."""

    def __init__(self) -> None:
        self.pages = {REPLICA_0: engine_page(), REPLICA_1: engine_page()}
        self.now = 1000.0

    def read(self, url: str) -> str:
        if url not in self.pages:
            raise ConnectionRefusedError(url)
        return self.pages[url]


@pytest.fixture
def world():
    return World()


@pytest.fixture
def watcher(tmp_path, world):
    made = Watcher(rehearsal(tmp_path), {FRONT: FRONT_URL}, world.read, lambda: world.now)
    yield made
    made.close()


def look(watcher: Watcher, world: World) -> Page:
    world.now += PAGES_EVERY_S
    return watcher.look()


def test_queue_and_kv_cache_of_each_replica(watcher, world):
    world.pages[REPLICA_0] = engine_page(active=6, used=40)
    page = look(watcher, world)
    assert page.get("toolkit_requests_active", replica=0) == 6
    assert page.get("toolkit_requests_waiting", replica=0) == 3
    assert page.get("toolkit_kv_cache_used_ratio", replica=0) == 0.4
    assert page.get("toolkit_kv_cache_reused_blocks_total", replica=1) == 7
    assert page.get("toolkit_balance_spread_ratio", of="kv") == 2  # 0.4 and 0, mean 0.2
    assert page.get("toolkit_scrape_ok", source="replica 0") == 1
    assert page.get("toolkit_scrape_ok", source=FRONT) == 0


def test_a_replica_that_answers_no_metrics_has_none(watcher, world):
    del world.pages[REPLICA_1]
    page = look(watcher, world)
    assert page.get("toolkit_scrape_ok", source="replica 1") == 0
    assert page.get("toolkit_requests_active", replica=1) is None
    assert page.get("toolkit_requests_active", replica=0) == 0


def test_the_slo_counts_failures_as_misses_but_not_a_request_s_own_fault(watcher, world):
    world.pages[REPLICA_0] = engine_page(within=90, requests=100)
    page = look(watcher, world)
    labels = {"target": "ttft_p50", "protocol": "triton"}
    assert page.get("toolkit_slo_requests_total", **labels) == 100 + 2 + 2  # each replica has two failures
    assert page.get("toolkit_slo_good_requests_total", **labels) == 90
    assert page.get("toolkit_slo_objective_ratio", target="ttft_p50") == 0.5
    assert page.get("toolkit_slo_limit_seconds", target="ttft_p50", metric="ttft", quantile="0.5") == 0.5
    # 1.5 s is in the middle of the bucket from 1 to 2 s, which has ten of them.
    assert page.get("toolkit_slo_good_requests_total", target="ttft_p99", protocol="triton") == 95


def test_the_slo_s_counters_survive_the_restart_of_a_replica(watcher, world):
    labels = {"target": "ttft_p50", "protocol": "triton"}
    world.pages[REPLICA_0] = engine_page(within=90, requests=100)
    look(watcher, world)
    del world.pages[REPLICA_0]
    look(watcher, world)
    world.pages[REPLICA_0] = engine_page(within=3, requests=3)
    page = look(watcher, world)
    assert page.get("toolkit_slo_good_requests_total", **labels) == 93
    assert page.get("toolkit_slo_requests_total", **labels) == 103 + 2 + 2 + 2


def test_openai_s_traffic_is_that_of_the_front_end(watcher, world):
    world.pages[FRONT_URL] = OPENAI_PAGE
    page = look(watcher, world)
    labels = {"target": "ttft_p50", "protocol": "openai"}
    assert page.get("toolkit_slo_good_requests_total", **labels) == 4
    assert page.get("toolkit_slo_requests_total", **labels) == 6


def test_the_time_per_output_token_of_openai_s_traffic_is_that_of_the_workers(tmp_path, world):
    """Its counters grow on when a worker starts again at 0, as the other ones do."""
    urls = {FRONT: FRONT_URL, **{worker(number): f"http://127.0.0.1:{number + 5}/metrics" for number in range(2)}}
    deployment = rehearsal(tmp_path, slo={"ttft_ms": {"p99": 1500}, "tpot_ms": {"p50": 50}})
    watcher = Watcher(deployment, urls, world.read, lambda: world.now)
    world.pages[FRONT_URL] = OPENAI_PAGE
    world.pages |= {urls[worker(0)]: worker_page(0, 6, 10), urls[worker(1)]: worker_page(1, 0, 0)}
    look(watcher, world)
    world.pages |= {urls[worker(0)]: worker_page(0, 1, 2), urls[worker(1)]: worker_page(1, 0, 8)}
    page = look(watcher, world)
    labels = {"target": "tpot_p50", "protocol": "openai"}
    assert page.get("toolkit_slo_requests_total", **labels) == 10 + 2 + 8 + 1, "and the failed one of the front end"
    assert page.get("toolkit_slo_good_requests_total", **labels) == 6 + 1
    seconds = page.get("toolkit_latency_seconds", metric="tpot", quantile="0.5", protocol="openai")
    assert seconds == pytest.approx(0.05 + 0.05 * (5 - 1) / 9)  # of ten new requests one was within 50 ms
    assert page.get("toolkit_scrape_ok", source="worker 1") == 1
    watcher.close()


def test_percentiles_are_those_of_the_last_minute(watcher, world):
    labels = {"metric": "ttft", "quantile": "0.5", "protocol": "triton"}
    for step in range(100):
        slow = step >= 50
        world.pages[REPLICA_0] = engine_page(within=min(step, 50) * 10, requests=step * 10)
        page = look(watcher, world)
        assert slow or step < 2 or page.get("toolkit_latency_seconds", **labels) <= 0.5
    assert page.get("toolkit_latency_seconds", **labels) == pytest.approx(1.5)  # the middle of 1 to 2 s


def test_micro_batches_that_stay_empty(tmp_path, world):
    deployment = rehearsal(tmp_path, parallel={"replicas": 2, "tp": 1, "pp": 2})
    watcher = Watcher(deployment, {}, world.read, lambda: world.now)
    try:
        shares = []
        for step in range(12):
            world.pages[REPLICA_0] = engine_page(active=1, micro_batch=0)
            world.pages[REPLICA_1] = engine_page(active=4, micro_batch=step % 2)
            page = look(watcher, world)
            shares.append([page.get("toolkit_pipeline_empty_ratio", replica=number) for number in (0, 1)])
        assert shares[0] == [None, None]  # one look says nothing
        assert shares[-1] == [0.5, 0.0]
    finally:
        watcher.close()


def test_phases_without_a_server(watcher, world):
    page = look(watcher, world)
    assert page.get("toolkit_replica_ready", replica=0) == 0
    assert page.get("toolkit_replica_phase", replica=1, phase="stopped") == 1
    assert page.get("toolkit_replica_phase", replica=1, phase="ready") == 0


def gpu_page(monkeypatch, nvml: FakeNvml, kernel: Kernel | None = None) -> Page:
    """The GPUs of the flagship with two replicas of four ranks."""
    monkeypatch.setattr(gpu_health, "load_library", lambda: nvml)
    monkeypatch.setattr(
        gpus, "share_of", lambda replica: _Share(tuple(range(4 * replica.replica, 4 * replica.replica + 4)))
    )
    watch, page = GpuWatch(load_deployment(FLAGSHIP), lambda: kernel or Kernel()), Page()
    watch.fill(page, 0.0)
    watch.close()
    return page


class _Share:
    def __init__(self, numbers: tuple[int, ...]) -> None:
        self.gpus = numbers


def labels_of(replica: object, rank: object, gpu: int) -> dict[str, object]:
    return {"replica": replica, "rank": rank, "gpu": gpu, "source": "nvml"}


def test_each_gpu_has_its_rank(monkeypatch):
    cards = [Card(used=70 * GIB, busy_percent=80) for _ in range(9)]
    cards[5] = Card(used=70 * GIB, busy_percent=40, throttle_mask=pynvml.nvmlClocksThrottleReasonHwSlowdown, ecc=2)
    page = gpu_page(monkeypatch, FakeNvml(cards, lost=7))
    assert page.get("toolkit_gpu_utilisation_ratio", **labels_of(1, 1, 5)) == 0.4
    assert page.get("toolkit_gpu_throttled", reason="hardware slowdown", **labels_of(1, 1, 5)) == 1
    assert page.get("toolkit_gpu_throttled", reason="hardware slowdown", **labels_of(0, 0, 0)) == 0
    assert page.get("toolkit_gpu_ecc_errors_total", kind="uncorrected", **labels_of(1, 1, 5)) == 2
    assert page.get("toolkit_gpu_lost", **labels_of(1, 3, 7)) == 1
    assert page.get("toolkit_gpu_utilisation_ratio", **labels_of(1, 3, 7)) is None
    assert page.get("toolkit_gpu_utilisation_ratio", **labels_of("none", "none", 8)) == 0.8
    fill_balance(page)
    busy = [0.8] * 6 + [0.4]  # the ninth GPU has no rank, the eighth is lost
    assert page.get("toolkit_balance_spread_ratio", of="utilisation") == pytest.approx(0.4 / (sum(busy) / 7))


def test_xid_errors_of_the_kernel_log(monkeypatch):
    nvml = FakeNvml([Card(bus="00000000:3B:00.0"), Card(bus="00000000:5E:00.0")])
    kernel = Kernel(True, (Xid("0:5e:0", 79, "fallen off the bus"), Xid("0:5e:0", 79, "again"), Xid("0:aa:0", 13, "")))
    page = gpu_page(monkeypatch, nvml, kernel)
    assert page.get("toolkit_gpu_xid_errors_total", gpu=1, xid=79) == 2
    assert page.get("toolkit_gpu_xid_errors_total", gpu="0:aa:0", xid=13) == 1


def test_a_node_with_a_door_alone_shows_the_door(tmp_path, world):
    """Its replicas are on other nodes: none of them is down here."""
    world.pages = {FRONT_URL: OPENAI_PAGE}
    watcher = Watcher(front_node(tmp_path), {FRONT: FRONT_URL}, world.read, lambda: world.now)
    page = look(watcher, world)
    assert page.get("toolkit_slo_requests_total", target="ttft_p50", protocol="openai") == 6
    assert [labels for labels, _ in page.of("toolkit_scrape_ok")] == [{"source": FRONT}]
    assert not list(page.of("toolkit_replica_ready")) and not list(page.of("toolkit_gpu_memory_used_bytes"))
    watcher.close()


OVER_NODES = {"parallel": {"replicas": 2, "tp": 1, "pp": 2, "nodes": 2}, "cluster": {"hosts": ["node-a", "node-b"]}}


def test_the_gpus_of_other_nodes_are_said_not_to_be_watched(tmp_path, world):
    """Two replicas have a rank each on the second node. Their GPUs can be read there only."""
    watcher = Watcher(rehearsal(tmp_path, **OVER_NODES), {}, world.read, lambda: world.now)
    page = look(watcher, world)
    watcher.close()
    assert [*page.of("toolkit_gpus_not_watched")] == [({"node": "node-b", "ranks": "1"}, 2)]
    assert not_watched(page) == ["not watched: 2 GPUs of node-b (ranks 1)"]


def test_where_the_hosts_are_not_known_the_nodes_have_numbers(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    page = Page()
    OtherNodes(rehearsal(tmp_path, parallel={"tp": 2, "pp": 2, "nodes": 2})).fill(page)
    assert [*page.of("toolkit_gpus_not_watched")] == [({"node": "node 1", "ranks": "2-3"}, 2)]
    alone = Page()
    OtherNodes(rehearsal(tmp_path)).fill(alone)
    assert not alone.values


def test_the_exporter_and_the_page_leave_large_packages_out():
    """They run next to the engines all the time: numpy and gRPC alone would take 18 MB of each."""
    code = "import sys, toolkit.monitor.exporter, toolkit.monitor.web; print(*{'numpy', 'grpc'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
