"""What a person and a program see of a deployment that is not, or no longer, served; and a page with everything."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from tests import commands
from tests.monitor.deployments import FLAGSHIP, rehearsal
from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.gateway.door import folder
from toolkit.monitor.metrics import METRICS
from toolkit.monitor.page import Page
from toolkit.monitor.subject import Served
from toolkit.monitor.view import as_text
from toolkit.reports.terminal import Terminal

WIDTH = 80


def shown(deployment: Deployment, page: Page) -> str:
    """The view on a terminal of 80 columns."""
    stream = io.StringIO()
    Terminal(file=stream, width=WIDTH).print(as_text(Served(deployment), page))
    return stream.getvalue()


@pytest.fixture
def full_page() -> Page:
    page = Page()
    for gpu in range(8):
        labels = {"replica": gpu // 4, "rank": gpu % 4, "gpu": gpu, "source": "nvml"}
        page.set("toolkit_gpu_utilisation_ratio", 0.81, **labels)
        page.set("toolkit_gpu_memory_used_bytes", 67.5 * 2**30, **labels)
        page.set("toolkit_gpu_temperature_celsius", 71, **labels)
        page.set("toolkit_gpu_power_watts", 655.5, **labels)
        page.set("toolkit_gpu_throttled", gpu == 3, reason="power cap", **labels)
    for replica in range(2):
        page.set("toolkit_replica_phase", 1, replica=replica, phase="ready")
        page.set("toolkit_replica_phase", 0, replica=replica, phase="loading")
        page.set("toolkit_requests_active", 31, replica=replica)
        page.set("toolkit_requests_waiting", 4, replica=replica)
        page.set("toolkit_kv_cache_used_ratio", 0.625, replica=replica)
    for quantile, seconds in (("0.5", 0.213), ("0.9", 0.4), ("0.99", 1.234)):
        page.set("toolkit_latency_seconds", seconds, metric="ttft", quantile=quantile, protocol="triton")
    page.set("toolkit_slo_limit_seconds", 1.5, target="ttft_p99", metric="ttft", quantile="0.99")
    labels = {"target": "ttft_p99", "protocol": "triton"}
    page.set("toolkit_slo_requests_total", 1000, **labels)
    page.set("toolkit_slo_good_requests_total", 997, **labels)
    page.set("toolkit_slo_objective_ratio", 0.99, target="ttft_p99")
    return page


def test_gpus_of_another_node_are_named_first(full_page):
    full_page.set("toolkit_gpus_not_watched", 8, node="node-b", ranks="8-15")
    lines = shown(load_deployment(FLAGSHIP), full_page).splitlines()
    assert lines[1] == "not watched: 8 GPUs of node-b (ranks 8-15)"


def test_everything_fits_into_80_columns(full_page):
    text = shown(load_deployment(FLAGSHIP), full_page)
    assert max(map(len, text.splitlines())) <= WIDTH
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "0 ready 31 4 62%" in lines
    assert "3 0 3 81% 67.5 GiB 71 656 power cap" in lines
    assert "TTFT triton 213 400 1,234 1,500" in lines
    assert "ttft_p99 triton 1000 99.7% 99.0%" in lines


def test_the_newest_events_are_shown(tmp_path, full_page):
    deployment = rehearsal(tmp_path)
    folder(deployment).mkdir(parents=True)
    lines = [json.dumps({"time": 1e9 + number, "part": "replica 0", "event": f"event {number}"}) for number in range(9)]
    spoilt = [
        json.dumps({"time": time, "part": "replica 0", "event": "never"}) for time in ("now", 1e300, float("nan"))
    ]
    text = "\n".join(("half a line}", *lines, *spoilt, '{"time": '))
    (folder(deployment) / "events.jsonl").write_text(text)
    text = shown(deployment, full_page)
    assert "event 8" in text and "event 4" in text and "event 3" not in text and "never" not in text


def test_a_page_survives_its_text(full_page):
    lines = []
    for name, values in full_page.values.items():
        for key, value in values.items():
            labels = ",".join(f'{label}="{part}"' for label, part in zip(METRICS[name].labels, key, strict=True))
            lines.append(f"{name}{{{labels}}} {value}")
    again = Page.of_text("\n".join(lines) + '\nothers{a="b"} 1\n')
    assert again.values == full_page.values


def test_what_is_not_served_is_said(tmp_path):
    file = rehearsal(tmp_path, monitoring={"exporter_port": 1}).file
    done = commands.toolkit("monitor", file, "--json")
    assert done.returncode == 0, done.stderr
    phases = json.loads(done.stdout)["toolkit_replica_phase"]
    assert {"labels": {"replica": "0", "phase": "stopped"}, "value": 1.0} in phases
    text = commands.toolkit("monitor", file, "--once").stdout
    assert "stopped" in text and "GPU" not in text, "a table without rows is left out"


def test_the_exporter_is_alone(tmp_path):
    done = commands.toolkit("monitor", rehearsal(tmp_path).file, "--exporter", "--json")
    assert done.returncode == 2 and "cannot be combined" in done.stderr


def test_a_taken_port_is_one_line(tmp_path, taken_port):
    pytest.importorskip("prometheus_client", reason="needs the extra monitor")
    file: Path = rehearsal(tmp_path, monitoring={"exporter_port": taken_port}).file
    done = commands.toolkit("monitor", file, "--exporter")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        f"error: {file}: monitoring.exporter_port: {taken_port} on 127.0.0.1"
    )
