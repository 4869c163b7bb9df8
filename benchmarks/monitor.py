"""What watching costs: in the models per token, and in the exporter per second.

python benchmarks/monitor.py            # without a server
python benchmarks/monitor.py --triton   # and one message of a model to a real Triton
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolkit.config.histograms import HISTOGRAMS, parameter
from toolkit.config.load import load_deployment
from toolkit.files.distribution import folder
from toolkit.monitor.engine import EngineWatch
from toolkit.monitor.latencies import Latencies, clients_model, slo_targets
from toolkit.monitor.page import Page
from toolkit.slo.server_metrics import parse

ROOT = Path(__file__).parents[1]
FLAGSHIP = ROOT / "build_configs/llama3-70b-h100-2xtp4-fp16.yaml"
STREAMS, TOKENS, RATE = 64, 256, 8.0
"""Streams at once, tokens of each, requests per second: the load of the requirements."""
MODEL = """
import sys, threading, time
import triton_python_backend_utils as pb_utils
CALLS = 5000
class TritonPythonModel:
    def initialize(self, args):
        self.family = pb_utils.MetricFamily("bench_seconds", "bench", pb_utils.MetricFamily.HISTOGRAM)
        self.metric = self.family.Metric(labels={"a": "b"}, buckets=[0.001 * 1.26 ** step for step in range(51)])
        threading.Thread(target=self.measure).start()
    def measure(self):
        time.sleep(1)
        wall, own = time.perf_counter(), time.thread_time()
        for _ in range(CALLS):
            self.metric.observe(0.03)
        wall, own = time.perf_counter() - wall, time.thread_time() - own
        print("RESULT", wall / CALLS * 1e6, own / CALLS * 1e6, flush=True)
    def execute(self, requests):
        return [pb_utils.InferenceResponse([]) for _ in requests]
"""
CONFIG = """name: "bench"
backend: "python"
input { name: "a" data_type: TYPE_INT32 dims: 1 }
output { name: "b" data_type: TYPE_INT32 dims: 1 }
instance_group { count: 1 kind: KIND_CPU }
"""


def timed(action: Callable[[], object], repeats: int) -> float:
    """Microseconds of processor time per call; the best of three."""
    best = float("inf")
    for _ in range(3):
        begin = time.process_time()
        for _ in range(repeats):
            action()
        best = min(best, (time.process_time() - begin) / repeats * 1e6)
    return best


class Messages:
    """In the place of Triton's metrics: counts the messages that the server would get."""

    COUNTER, GAUGE, HISTOGRAM = range(3)
    sent = 0

    def __init__(self, name: str, description: str, kind: int) -> None:
        pass

    def Metric(self, **_: Any) -> Messages:
        return self

    def observe(self, value: float) -> None:
        Messages.sent += 1

    increment = observe


def models() -> None:
    """Per token: what the model itself does, and how many messages it sends."""
    sys.path.append(str(folder("triton_repo") / "shared"))
    sys.modules["triton_python_backend_utils"] = types.SimpleNamespace(MetricFamily=Messages)  # type: ignore[assignment]
    import latency
    import latency_metrics

    collected = latency.Latencies()
    exported = latency_metrics.LatencyMetrics(collected, "bench", parameter())

    def stream() -> None:
        times = latency.RequestTimes(collected)
        for _ in range(TOKENS):
            times.tokens(1)
        times.ended(100, 0.1)

    print(f"a token, in the model: {timed(stream, 200) / TOKENS:.2f} us")
    collected.take()
    Messages.sent = 0
    seconds = 60
    for _ in range(int(seconds * RATE)):
        stream()
    for _ in range(int(seconds / latency_metrics.PERIOD_S)):
        exported.export()  # all in the first: the most messages for requests, the fewest for tokens
    per_request = Messages.sent / (seconds * RATE)
    bound = len(latency.boundaries(*HISTOGRAMS["itl"].buckets)) + 3
    print(
        f"messages: {per_request:.1f} per request, and at most {bound} per {latency_metrics.PERIOD_S} s for all tokens"
    )


def exporter() -> None:
    """Per second: the pages of two replicas, the percentiles and the SLO."""
    deployment = load_deployment(FLAGSHIP)
    page = fake_page()
    latencies, engine = Latencies(clients_model(deployment), slo_targets(deployment)), EngineWatch(0, 1)
    values = tuple(parse(page))
    print(f"a page of {len(page.splitlines())} lines: parse {timed(lambda: tuple(parse(page)), 20) / 1e3:.2f} ms")
    print(f"its histograms: {timed(lambda: latencies.note('replica 0', values), 50) / 1e3:.2f} ms")
    print(f"its engine: {timed(lambda: engine.fill(Page(), values, 0.0), 50) / 1e3:.2f} ms")
    print(f"percentiles and SLO: {timed(lambda: latencies.fill(Page(), time.monotonic()), 50) / 1e3:.2f} ms")


def fake_page() -> str:
    """A page as long as that of a Triton with our models."""
    lines = []
    for family in HISTOGRAMS.values():
        for model in ("tensorrt_llm_bls", "tensorrt_llm"):
            labels = f'model="{model}",protocol="triton",replica="0"'
            least, most, count = family.buckets
            for step in range(count):
                bound = least * (most / least) ** (step / (count - 1))
                lines.append(f'{family.name}_bucket{{{labels},le="{bound:g}"}} {step * 10}')
            lines.append(f'{family.name}_bucket{{{labels},le="+Inf"}} {count * 10}')
    lines += [f'nv_trt_llm_request_metrics{{model="tensorrt_llm",request_type="active{n}"}} 1' for n in range(120)]
    return "\n".join(lines)


def triton() -> None:
    """What one message costs the model, with a real Triton."""
    from toolkit.processes import free_port
    from toolkit.serve.tritonserver import find_tritonserver

    server = find_tritonserver()
    with tempfile.TemporaryDirectory() as place:
        version = Path(place, "bench", "1")
        version.mkdir(parents=True)
        (version / "model.py").write_text(MODEL)
        (version.parent / "config.pbtxt").write_text(CONFIG)
        ports = [f"--{name}-port={free_port()}" for name in ("http", "grpc", "metrics")]
        command = [str(server.binary), f"--model-repository={place}", *ports, "--disable-auto-complete-config"]
        command += [
            f"--backend-directory={server.backend_directory}",
            "--backend-config=python,shm-region-prefix-name=bm",
        ]
        process = subprocess.Popen(
            command, env=server.environ(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            assert process.stdout
            line = next(line for line in process.stdout if "RESULT" in line)
        finally:
            process.terminate()
            process.wait()
        wall, own = line.split("RESULT")[1].split()
        print(f"a message to Triton: {float(wall):.0f} us, of which the model computes {float(own):.0f} us")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--triton", action="store_true")
    models()
    exporter()
    if arguments.parse_args().triton:
        triton()
