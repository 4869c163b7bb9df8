"""Prometheus' own program reads our files, and says which alerts fire for which series."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from toolkit.config.load import load_deployment
from toolkit.monitor import prometheus
from toolkit.monitor.alerts import alerts

from .deployments import FLAGSHIP, front_node, rehearsal

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason=f"needs promtool: {prometheus.INSTALL}")

GOOD = "toolkit_slo_good_requests_total"
ALL = "toolkit_slo_requests_total"
TTFT = '{target="ttft_p99",protocol="triton"}'
GPU = 'replica="0",rank="0",gpu="3",source="nvml"'
BUSY = f"toolkit_gpu_utilisation_ratio{{{GPU}}}"

Series = dict[str, str]
CASES: dict[str, tuple[str, Series, Series]] = {
    # Alert: (when it is looked at, series for which it fires, series for which it does not).
    "SloBurnFast": (
        "2h",
        {GOOD + TTFT: "0+8x480", ALL + TTFT: "0+10x480"},
        {GOOD + TTFT: "0+99x480", ALL + TTFT: "0+100x480"},
    ),
    "SloBurnSlow": (
        "8h",
        {GOOD + TTFT: "0+92x480", ALL + TTFT: "0+100x480"},
        {GOOD + TTFT: "0+95x480", ALL + TTFT: "0+100x480"},
    ),
    "ReplicaDown": (
        "5m",
        {'toolkit_replica_ready{replica="1"}': "1 0x10"},
        {'toolkit_replica_ready{replica="1"}': "1 0 1x10"},
    ),
    "CanaryFailing": (
        "3m",
        {'toolkit_replica_canary_failing{replica="1"}': "0 1x10"},
        {'toolkit_replica_canary_failing{replica="1"}': "0x10"},
    ),
    "RestartsInARow": (
        "10m",
        {'toolkit_part_restarts_total{part="replica 0"}': "0 0 1 2 3 4x10"},
        {'toolkit_part_restarts_total{part="replica 0"}': "0 0 1x10"},
    ),
    "KvPoolFull": (
        "7m",
        {'toolkit_kv_cache_used_ratio{replica="0"}': "0.97x10"},
        {'toolkit_kv_cache_used_ratio{replica="0"}': "0.94x10"},
    ),
    "QueueGrowing": (
        "12m",
        {'toolkit_requests_waiting{replica="0"}': "0+3x20"},
        {'toolkit_requests_waiting{replica="0"}': "12x20"},
    ),
    "OutOfBalance": (
        "20m",
        {'toolkit_balance_spread_ratio{of="utilisation"}': "0.2x20", BUSY: "0.7x20"},
        {'toolkit_balance_spread_ratio{of="utilisation"}': "0.2x20", BUSY: "0.01x20"},
    ),
    "PredictionFarFromMeasured": (
        "45m",
        {
            'toolkit_time_to_first_token_seconds_bucket{model="tensorrt_llm_bls",le="1"}': "0+0x60",
            'toolkit_time_to_first_token_seconds_bucket{model="tensorrt_llm_bls",le="2"}': "0+60x60",
            'toolkit_time_to_first_token_seconds_bucket{model="tensorrt_llm_bls",le="+Inf"}': "0+60x60",
            'toolkit_predicted_latency_seconds{metric="ttft",quantile="0.5"}': "0.5x60",
        },
        {
            'toolkit_time_to_first_token_seconds_bucket{model="tensorrt_llm_bls",le="1"}': "0+0x60",
            'toolkit_time_to_first_token_seconds_bucket{model="tensorrt_llm_bls",le="2"}': "0+60x60",
            'toolkit_time_to_first_token_seconds_bucket{model="tensorrt_llm_bls",le="+Inf"}': "0+60x60",
            'toolkit_predicted_latency_seconds{metric="ttft",quantile="0.5"}': "1.4x60",
        },
    ),
    "GpuHot": (
        "5m",
        {f"toolkit_gpu_temperature_celsius{{{GPU}}}": "86x10"},
        {f"toolkit_gpu_temperature_celsius{{{GPU}}}": "84x10"},
    ),
    "GpuThrottled": (
        "5m",
        {f'toolkit_gpu_throttled{{{GPU},reason="heat"}}': "1x10"},
        {f'toolkit_gpu_throttled{{{GPU},reason="heat"}}': "1 0 1 0 1 0 0 0"},
    ),
    "GpuMemoryHigh": (
        "7m",
        {f"toolkit_gpu_memory_used_bytes{{{GPU}}}": "90x10", f"toolkit_gpu_memory_total_bytes{{{GPU}}}": "100x10"},
        {f"toolkit_gpu_memory_used_bytes{{{GPU}}}": "84x10", f"toolkit_gpu_memory_total_bytes{{{GPU}}}": "100x10"},
    ),
    "GpuMemoryErrors": (
        "10m",
        {f'toolkit_gpu_ecc_errors_total{{{GPU},kind="uncorrected"}}': "0x5 1x10"},
        {f'toolkit_gpu_ecc_errors_total{{{GPU},kind="uncorrected"}}': "2x15"},
    ),
    "GpuXid": (
        "10m",
        {'toolkit_gpu_xid_errors_total{gpu="3",xid="79"}': "_x5 1x10"},
        {'toolkit_gpu_lost{gpu="3"}': "0x10"},
    ),
    "GpuLost": ("5m", {f"toolkit_gpu_lost{{{GPU}}}": "0 1x10"}, {f"toolkit_gpu_lost{{{GPU}}}": "0x10"}),
    "NotWatched": ("5m", {'up{job="toolkit"}': "1 0x10"}, {'up{job="toolkit"}': "1x10"}),
}


def promtool(*arguments: str | Path) -> str:
    """What it prints. It must succeed."""
    done = subprocess.run([str(PROMTOOL), *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rule_test(alert: str, when: str, series: Series, fires: bool) -> dict[str, Any]:
    """A test in promtool's form."""
    if "up{job" not in "".join(series):
        series = {**series, 'up{job="toolkit"}': "1x500"}
    firing = {
        "expr": f'count(count by (alertname) (ALERTS{{alertname="{alert}",alertstate="firing"}}))',
        "eval_time": when,
    }
    return {
        "name": f"{alert} {'fires' if fires else 'stays silent'}",
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{**firing, "exp_samples": [{"labels": "{}", "value": 1}] if fires else []}],
    }


def test_every_alert_has_a_case(tmp_path):
    deployment = load_deployment(FLAGSHIP)
    assert {alert.name for alert in alerts(deployment)} == set(CASES)
    assert {alert.name for alert in alerts(rehearsal(tmp_path))} == set(CASES)


@needs_promtool
@pytest.mark.parametrize("which", ["rehearsal", "flagship"])
def test_prometheus_takes_the_files(tmp_path, which):
    deployment = rehearsal(tmp_path) if which == "rehearsal" else load_deployment(FLAGSHIP)
    prometheus.write_files(deployment, 12345, tmp_path)
    said = promtool("check", "config", tmp_path / prometheus.CONFIG)
    assert said.count("SUCCESS") == 3, said


@needs_promtool
def test_on_a_node_with_a_door_alone_prometheus_scrapes_the_door(tmp_path):
    prometheus.write_files(front_node(tmp_path), 12345, tmp_path)
    promtool("check", "config", tmp_path / prometheus.CONFIG)
    jobs = yaml.safe_load((tmp_path / prometheus.CONFIG).read_text())["scrape_configs"]
    assert [job["job_name"] for job in jobs] == ["toolkit", "dynamo"]


@needs_promtool
def test_each_alert_fires_and_stays_silent(tmp_path):
    prometheus.write_files(rehearsal(tmp_path), None, tmp_path)
    tests = [
        rule_test(alert, when, series, fires)
        for alert, (when, *both) in CASES.items()
        for series, fires in zip(both, (True, False), strict=True)
    ]
    content = {"rule_files": [prometheus.RULES, prometheus.ALERTS], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(content, width=1000))
    promtool("test", "rules", tmp_path / "tests.yml")


def test_a_median_can_burn_its_budget(tmp_path):
    """Half of the requests may miss a P50, so 14.4 times as many cannot: the alert has another bound."""
    fast = {alert.expr for alert in alerts(rehearsal(tmp_path)) if alert.name == "SloBurnFast"}
    assert any('target="ttft_p50"} > 0.75' in expr for expr in fast)
    assert any('target="ttft_p99"} > 0.144' in expr for expr in fast)
