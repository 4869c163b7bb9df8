"""What `toolkit monitor` shows in a terminal of 80 columns."""

from __future__ import annotations

import time
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table

from toolkit.errors import clipped
from toolkit.monitor.gpus import REHEARSAL
from toolkit.monitor.other_nodes import not_watched
from toolkit.monitor.page import Page
from toolkit.monitor.subject import Subject

NEWEST_EVENTS = 5
LONGEST_EVENT = 70
GIB = 2**30
LATENCIES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2e": "end-to-end"}


def as_text(subject: Subject, page: Page) -> Group:
    """The whole view. A table without rows is left out."""
    tables = (_replicas(page), _gpus(page), _latencies(page), _slo(page))
    parts: list[RenderableType] = [_headline(subject), *not_watched(page)]
    parts += [table for table in tables if table.row_count]
    return Group(*parts, *_events(subject))


def _headline(subject: Subject) -> str:
    return f"{subject.name}: {subject.state()}, {time.strftime('%H:%M:%S')}"


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
        gpu = f"{labels['gpu']} (CPU)" if labels["source"] == REHEARSAL else labels["gpu"]
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


def _latencies(page: Page) -> Table:
    limits = {(one["metric"], one["quantile"]): limit for one, limit in page.of("toolkit_slo_limit_seconds")}
    table = _table("last minute (ms)", "protocol", "P50", "P90", "P99", "limit of P50", "of P99")
    known = {(labels["metric"], labels["protocol"]) for labels, _ in page.of("toolkit_latency_seconds")}
    for metric, label in LATENCIES.items():
        for protocol in sorted(protocol for name, protocol in known if name == metric):
            values = [
                page.get("toolkit_latency_seconds", metric=metric, quantile=quantile, protocol=protocol)
                for quantile in ("0.5", "0.9", "0.99")
            ]
            shown = [*values, limits.get((metric, "0.5")), limits.get((metric, "0.99"))]
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


def _events(subject: Subject) -> Iterator[str]:
    for event in subject.events()[-NEWEST_EVENTS:]:
        when = time.strftime("%H:%M:%S", time.localtime(event["time"]))
        cause = f": {event['cause']}" if event.get("cause") else ""
        yield clipped(f"{when} {event['part']} {event['event']}{cause}", LONGEST_EVENT)


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
