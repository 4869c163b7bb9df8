"""A rehearsal of two replicas, watched by its exporter and by a real Prometheus."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import urllib.parse
import urllib.request
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("dynamo.llm", reason="needs the extra gateway")
pytest.importorskip("envoy", reason="needs the extra gateway")
pytest.importorskip("prometheus_client", reason="needs the extra monitor")

import openai
import psutil

from tests import commands
from tests.ports import free_port
from tests.up.conftest import Up, write_and_build
from tests.waiting import eventually
from toolkit.config.histograms import HISTOGRAMS
from toolkit.monitor import prometheus
from toolkit.monitor.alerts import alerts
from toolkit.monitor.latencies import FRONT, OPENAI, TRITON
from toolkit.monitor.metrics import METRICS
from toolkit.monitor.panels import DASHBOARDS
from toolkit.monitor.read_page import metrics_url, read_page
from toolkit.monitor.rules import recording_rules
from toolkit.monitor.totals import percentile
from toolkit.reports.loadtest.samples import read_samples
from toolkit.serve.janitor import members
from toolkit.serve.state import read_state
from toolkit.slo.sample import Sample
from toolkit.slo.server_metrics import Value, parse

pytestmark = [pytest.mark.slow, pytest.mark.alone]
needs_prometheus = pytest.mark.skipif(prometheus.find() is None, reason=f"needs prometheus: {prometheus.INSTALL}")

MODEL = "tensorrt_llm_bls"
REQUESTS = 64
PACED = """
from toolkit.engine.rehearsal.worker import Rank

_compute = Rank.compute
Rank.compute = lambda rank, message: (time.sleep(0.11), _compute(rank, message))[1]
"""
"""Makes each step last as long as one of a large model. The ranks sleep meanwhile, so the times hardly depend on the
cores."""
OF_A_SAMPLE = {"ttft": "ttft_ms", "tpot": "tpot_ms", "itl": "itl_ms", "e2e": "e2e_ms"}
ON_GPUS = (
    "temperature",
    "power",
    "clock",
    "throttled",
    "lost",
    "ecc",
    "xid",
    "nvlink",
    "predicted",
    "admission",
    "watched",
)
"""Families that a rehearsal on one node without a calibration, and a door that lets in all, do not have."""


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Iterator[Up]:
    file = write_and_build(
        tmp_path_factory.mktemp("watched"),
        tiny_llama,
        "watched",
        parallel={"replicas": 2},
        limits={"max_sequences": 8, "max_num_tokens": 256, "max_seq_len": 512, "max_queue_size": 64},
        monitoring={"exporter_port": free_port(), "prometheus_port": free_port()},
        slo={
            "ttft_ms": {"p50": 500, "p99": 1500},
            "tpot_ms": {"p50": 200},
            "itl_ms": {"p99": 100},
            "gpu_utilisation": [0.7, 0.85],
            "load_balance_variance": 0.05,
        },
        loadtest={"users": 12, "requests": REQUESTS, "max_tokens": 12, "warmup_requests": 4},
    )
    running = Up(file)
    pace(running.deployment.repository_dir / "tensorrt_llm/1/model.py")
    running.start()
    yield running
    running.end()


def pace(model: Path) -> None:
    """Add PACED, and leave out as many characters of explanation: the repository's lock knows the size of each file."""
    text = model.read_text()
    start = text.index('"""Seconds until an alarm')
    end = text.index('"""', start + 3) + 3
    paced = text[:start] + text[end:] + PACED
    assert len(paced) <= len(text)
    model.write_text(paced.ljust(len(text) - 1) + "\n")


def page(up: Up) -> str:
    """What the exporter shows now."""
    return read_page(metrics_url(up.deployment))


def value(up: Up, name: str, **labels: str) -> float | None:
    """A value of the exporter; None if it has none."""
    found = [one.value for one in parse(page(up)) if one.name == name and labels.items() <= one.labels.items()]
    return found[0] if found else None


def buckets(up: Up, key: str, protocol: str) -> dict[float, float]:
    """A histogram of clients' requests, over all pages that have it."""
    family, model = HISTOGRAMS[key], MODEL
    name = family.name
    urls = [f"http://127.0.0.1:{one.serving.metrics_port}/metrics" for one in up.deployment.per_replica()]
    if protocol == OPENAI:  # the exporter is told where the front end and the workers have theirs
        urls = [word.split("=")[1] for word in psutil.Process(up.part("exporter").pid).cmdline() if "=http" in word]
        name, model = (f"{FRONT}{family.dynamo}" if family.dynamo else family.name), "llama"
    sums: dict[float, float] = {}
    for url in urls:
        values: Iterator[Value] = parse(read_page(url))
        for one in values:
            if one.name == f"{name}_bucket" and one.labels["model"] == model:
                bound = float(one.labels["le"])
                sums[bound] = sums.get(bound, 0) + one.value
    return sums


def query(up: Up, expression: str) -> list[dict[str, Any]]:
    """What Prometheus says of an expression now."""
    port = up.deployment.monitoring.prometheus_port
    text = urllib.parse.quote(expression)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?query={text}", timeout=10) as answer:
        said = json.load(answer)
    assert said["status"] == "success", said
    return said["data"]["result"]


Tested = dict[str, tuple[list[float], list[tuple[float, float]]]]
"""(the client's samples in seconds, the servers' histogram) of a load test, by metric."""


@pytest.fixture(scope="module")
def tested(watched: Up) -> Tested:
    """By Triton's protocol."""
    return load_test(watched, TRITON)


@pytest.fixture(scope="module")
def openai_tested(watched: Up) -> Tested:
    """By OpenAI's API."""
    return load_test(watched, OPENAI)


def load_test(watched: Up, protocol: str) -> Tested:
    before = {key: buckets(watched, key, protocol) for key in OF_A_SAMPLE}
    done = commands.toolkit("loadtest", watched.file, *(["--openai"] if protocol == OPENAI else []))
    assert done.returncode in (0, 1, 2), done.stderr
    samples = read_samples(watched.deployment.report_dir)
    assert len(samples) == REQUESTS + 4 and all(sample.ok for sample in samples)

    client = {key: values_of(samples, attribute) for key, attribute in OF_A_SAMPLE.items()}

    def counted() -> bool:
        now = {key: buckets(watched, key, protocol) for key in ("e2e", "tpot")}
        print(
            "now, before, wanted:",
            {key: (now[key][math.inf], before[key].get(math.inf, 0), len(client[key])) for key in now},
        )
        return all(now[key][math.inf] >= before[key].get(math.inf, 0) + len(client[key]) for key in now)

    eventually(counted, 20)
    seen = {}
    for key, values in client.items():
        after = buckets(watched, key, protocol)
        seen[key] = values, [(bound, count - before[key].get(bound, 0)) for bound, count in after.items()]
    return seen


def values_of(samples: list[Sample], attribute: str) -> list[float]:
    """All values of the requests, in seconds. An answer of one token has no time per output token."""
    values = [value for sample in samples if (value := getattr(sample, attribute)) is not None]
    return (np.hstack([np.atleast_1d(value) for value in values]) / 1e3).tolist()


OF_TEXT = (OPENAI, "itl", 99)
"""OpenAI's streams have text, not tokens: a token that is half a character comes with the next one. This model makes
many of them, so the longest gaps of the client are two tokens long."""


@pytest.mark.parametrize(
    ("protocol", "key", "q"),
    [one for one in product((TRITON, OPENAI), OF_A_SAMPLE, (50, 99)) if one != OF_TEXT],
)
def test_the_servers_latencies_are_those_of_the_client(request, protocol, key, q):
    client, histogram = request.getfixturevalue("openai_tested" if protocol == OPENAI else "tested")[key]
    # A sample, as a histogram finds its bucket by counting samples: between the last two may lie seconds.
    told, truth = percentile(histogram, q), float(np.percentile(client, q, method="inverted_cdf"))
    bounds = sorted(bound for bound, _ in histogram)
    above = next(bound for bound in bounds if bound >= truth)
    width = above - bounds[bounds.index(above) - 1]
    assert told == pytest.approx(truth, abs=0.03 * truth + width), f"a bucket is {width:g} s wide here"


def test_the_report_has_every_line_of_the_validation_table(watched, tested):
    """Utilisation, balance, memory and the share inside the limits; what stands for GPUs says so."""
    report = json.loads((watched.deployment.report_dir / "report.json").read_text())
    targets = {one["name"]: one for one in report["verdict"]["targets"]}
    for name in ("gpu_utilisation", "load_balance_variance", "gpu_memory"):
        assert targets[name]["measured"] is not None, targets[name]
        assert targets[name]["note"].startswith("a stand-in: ")
    assert targets["compliance"]["measured"] is not None
    gpus = report["run"]["server"]["gpus"]
    assert [gpu["uuid"] for gpu in gpus] == ["replica 0 rank 0, CPU", "replica 1 rank 0, CPU"]
    busy = [gpu["utilisation"] for gpu in gpus]
    assert targets["gpu_utilisation"]["measured"] == pytest.approx(sum(busy) / 2) and all(0 < one <= 1 for one in busy)
    state = read_state(watched.deployment.per_replica()[0])
    resident = sum(psutil.Process(one.pid).memory_info().rss for one in members(state.run) if one.rank is not None)
    assert gpus[0]["memory_used_bytes"] == pytest.approx(resident, rel=0.1)


def test_the_exporter_counts_the_slo_over_both_replicas(watched, tested):
    client, _ = tested["ttft"]
    inside = sum(value <= 0.5 for value in client)
    labels = {"target": "ttft_p50", "protocol": "triton"}
    eventually(lambda: (value(watched, "toolkit_slo_requests_total", **labels) or 0) >= len(client), 10)
    good = value(watched, "toolkit_slo_good_requests_total", **labels)
    assert good == pytest.approx(inside, abs=0.1 * len(client))  # of those near 0.5 s the client sees some later


def test_the_exporter_shows_every_family_that_a_rehearsal_has(watched, tested):
    names = {one.name for one in parse(page(watched))}
    wanted = {name for name in METRICS if not any(part in name for part in ON_GPUS)}
    assert wanted <= names, wanted - names
    for rank in range(2):
        labels = {"replica": str(rank), "rank": "0", "source": "rehearsal"}
        assert value(watched, "toolkit_gpu_memory_used_bytes", **labels) > 50 << 20
    assert (
        value(watched, "toolkit_replica_ready", replica="0")
        == value(watched, "toolkit_replica_ready", replica="1")
        == 1
    )
    assert value(watched, "toolkit_part_running", part="envoy") == 1


@needs_prometheus
def test_prometheus_has_every_rule_and_every_alert_s_expression(watched, tested):
    """Each expression is run against what it scraped. Those of alerts are true for nothing, as all is well."""
    eventually(lambda: watched.part("prometheus").phase == "running", 30)
    deployment = watched.deployment
    eventually(lambda: len(query(watched, "up == 1")) == 6, 60)  # the exporter, two Tritons, two workers, the front end
    with openai.OpenAI(base_url=f"{watched.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        for _ in range(4):
            answer = client.completions.create(model="llama", prompt="Shall I", max_tokens=16, stream=True)
            assert len(list(answer)) > 4
    for rule in recording_rules(deployment):
        if "predicted" not in rule.expr and "6h" not in rule.expr:
            wanted = "{" + ",".join(f'{name}="{value}"' for name, value in rule.labels.items()) + "}"
            eventually(lambda rule=rule, wanted=wanted: query(watched, rule.record + wanted), 60)
    for alert in alerts(deployment):
        query(watched, alert.expr)
    for panel in (panel for panels in DASHBOARDS.values() for panel in panels):
        for expression, _ in panel.queries:
            seen = query(watched, f"last_over_time(({expression})[5m:5s])")  # also what only a load has
            assert seen or panel.gpus_only or panel.planned_only or panel.admission_only or "limit" in expression, panel
    assert not query(watched, 'ALERTS{alertname!~"OutOfBalance|SloBurn.*",alertstate="firing"}')


@needs_prometheus
def test_both_protocols_have_the_same_buckets(watched):
    """Dynamo makes its buckets from variables, our models theirs from a parameter, and our workers from the table."""
    for family in HISTOGRAMS.values():
        others = f"dynamo_frontend_{family.dynamo}_bucket" if family.dynamo else ""
        if family.workers:
            others = f'{family.name}_bucket{{protocol="openai"}}'
        if others:
            theirs = {float(one["metric"]["le"]) for one in query(watched, others)}
            ours = {float(one["metric"]["le"]) for one in query(watched, f'{family.name}_bucket{{protocol="triton"}}')}
            assert theirs == ours, family.key


def test_an_exporter_that_is_killed_under_load_costs_nothing_and_comes_back(watched):
    pid = watched.part("exporter").pid
    os.kill(pid, signal.SIGKILL)
    done = commands.toolkit("loadtest", watched.file, "--requests", "24")
    assert done.returncode in (0, 1, 2), done.stderr
    assert re.search(r"\b0 of 24 requests failed", done.stdout), done.stdout
    eventually(lambda: watched.part("exporter").phase == "running", 60)
    assert watched.part("exporter").pid != pid and watched.phase == "ready"
    eventually(lambda: value(watched, "toolkit_replica_ready", replica="1") == 1, 20)
