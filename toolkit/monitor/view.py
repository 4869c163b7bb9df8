"""What `toolkit monitor` shows in a terminal of 80 columns."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from toolkit.config.deployment import Deployment
from toolkit.errors import clipped
from toolkit.gateway.door import folder, read_door
from toolkit.monitor.latencies import slo_targets
from toolkit.monitor.page import Page

EVENTS = "events.jsonl"
NEWEST_EVENTS = 5
TAIL_BYTES = 16 << 10
LONGEST_EVENT = 70
LATEST = 1 << 36
"""Seconds since 1970; what is later (after the year 4000) is no time of ours."""
GIB = 2**30
LATENCIES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2e": "end-to-end"}


def as_text(deployment: Deployment, page: Page) -> Group:
    """The whole view. A table without rows is left out."""
    tables = (_replicas(page), _gpus(page), _latencies(deployment, page), _slo(page))
    parts: list[RenderableType] = [_headline(deployment), *(table for table in tables if table.row_count)]
    return Group(*parts, *_newest_events(deployment))


def _headline(deployment: Deployment) -> str:
    door = read_door(deployment)
    state = f"{door.phase}, {door.url}" if door else "without a door"
    return f"{deployment.name}: {state}, {time.strftime('%H:%M:%S')}"


def _replicas(page: Page) -> Table:
    table = _table("replica", "phase", "active", "waiting", "KV cache", "micro-batches empty")
    for labels, on in page.of("toolkit_replica_phase"):
        if on:
            replica = {"replica": labels["replica"]}
            table.add_row(
                labels["replica"],
                labels["phase"],
                _number(page.get("toolkit_requests_active", **replica)),
                _number(page.get("toolkit_requests_waiting", **replica)),
                _percent(page.get("toolkit_kv_cache_used_ratio", **replica)),
                _percent(page.get("toolkit_pipeline_empty_ratio", **replica)),
            )
    return table


def _gpus(page: Page) -> Table:
    table = _table("GPU", "replica", "rank", "busy", "memory", "°C", "W", "slowed down by")
    for labels, used in page.of("toolkit_gpu_memory_used_bytes"):
        gpu = labels["gpu"] if labels["source"] == "nvml" else f"{labels['gpu']} (CPU)"
        throttles = [
            other["reason"]
            for other, on in page.of("toolkit_gpu_throttled")
            if on and (other["gpu"], other["source"]) == (labels["gpu"], labels["source"])
        ]
        table.add_row(
            gpu,
            labels["replica"],
            labels["rank"],
            _percent(page.get("toolkit_gpu_utilisation_ratio", **labels)),
            f"{used / GIB:.1f} GiB",
            _number(page.get("toolkit_gpu_temperature_celsius", **labels)),
            _number(page.get("toolkit_gpu_power_watts", **labels)),
            ", ".join(throttles),
        )
    for labels, lost in page.of("toolkit_gpu_lost"):
        if lost:
            table.add_row(labels["gpu"], labels["replica"], labels["rank"], "lost", "", "", "", "")
    return table


def _latencies(deployment: Deployment, page: Page) -> Table:
    limits = {(target.metric, target.quantile): target.limit_s for target in slo_targets(deployment)}
    table = _table("last minute (ms)", "protocol", "P50", "P90", "P99", "limit of P50", "of P99")
    known = {(labels["metric"], labels["protocol"]) for labels, _ in page.of("toolkit_latency_seconds")}
    for metric, label in LATENCIES.items():
        for protocol in sorted(protocol for name, protocol in known if name == metric):
            values = [
                page.get("toolkit_latency_seconds", metric=metric, quantile=quantile, protocol=protocol)
                for quantile in ("0.5", "0.9", "0.99")
            ]
            shown = [*values, limits.get((metric, 50)), limits.get((metric, 99))]
            table.add_row(label, protocol, *(_milliseconds(value) for value in shown))
    return table


def _slo(page: Page) -> Table:
    table = _table("target of the SLO", "protocol", "requests", "inside", "wanted")
    for labels, total in page.of("toolkit_slo_requests_total"):
        good = page.get("toolkit_slo_good_requests_total", **labels)
        objective = page.get("toolkit_slo_objective_ratio", target=labels["target"])
        inside = _percent(good / total if good is not None and total else None)
        table.add_row(labels["target"], labels["protocol"], _number(total), inside, _percent(objective))
    return table


def _newest_events(deployment: Deployment) -> Iterator[str]:
    for event in events(folder(deployment) / EVENTS)[-NEWEST_EVENTS:]:
        when = time.strftime("%H:%M:%S", time.localtime(event["time"]))
        cause = f": {event['cause']}" if event.get("cause") else ""
        yield clipped(f"{when} {event['part']} {event['event']}{cause}", LONGEST_EVENT)


def events(file: Path) -> list[dict[str, Any]]:
    """The newest events of `toolkit up`, the newest last; none if there is no such file."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, 2) - TAIL_BYTES))
            lines = stream.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    return list(_parsed(lines))


def _parsed(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:  # the first line may lack its beginning
            continue
        if isinstance(event, dict) and {"time", "part", "event"} <= event.keys() and _is_a_time(event["time"]):
            yield event


def _is_a_time(value: Any) -> bool:
    """Whether it can be shown as a time of day: the file may be damaged."""
    return isinstance(value, int | float) and 0 <= value < LATEST


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}" if value > 0.9 else f"{value:.0%}"


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds * 1e3:,.0f}" if seconds >= 0.1 else f"{seconds * 1e3:.3g}"
