"""The content of the web page of `toolkit monitor`: present values, and those of the last minutes."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from toolkit.monitor.gpus import REHEARSAL
from toolkit.monitor.latencies import REQUESTS, TOKENS
from toolkit.monitor.other_nodes import not_watched
from toolkit.monitor.page import Page
from toolkit.monitor.subject import Subject

KEPT_S, HEAT_S, RATE_S, SLO_S = 300.0, 120.0, 10.0, 60.0
"""Seconds: how far back the charts and the heat map go, and the windows for rates and for the share inside the SLO."""
EVENTS = 14
LATENCIES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2e": "End-to-end"}
GOOD, COUNTED = "toolkit_slo_good_requests_total", "toolkit_slo_requests_total"


@dataclass(frozen=True)
class Moment:
    """One look. `at` is on a clock that only goes forward."""

    at: float
    page: Page


class Board:
    """Takes a page of metrics per second. `state` is all that the web page shows."""

    def __init__(self, subject: Subject) -> None:
        self._subject, self._lock = subject, threading.Lock()
        self._moments: deque[Moment] = deque()
        self._points: deque[dict[str, float | None]] = deque()

    def add(self, page: Page, at: float) -> None:
        """Take the present values."""
        with self._lock:
            self._moments.append(Moment(at, page))
            while self._moments[0].at < at - KEPT_S:
                self._moments.popleft()
                self._points.popleft()
            self._points.append(self._point())

    def state(self, wall: float | None = None) -> dict[str, Any]:
        """For JSON. `wall` is the time of day in seconds since 1970. Several threads may ask, also while one adds."""
        with self._lock:
            return self._state(wall)

    def _state(self, wall: float | None) -> dict[str, Any]:
        if not self._moments:
            return {"name": self._subject.name, "state": "not seen yet", "points": []}
        page, last = self._moments[-1].page, self._points[-1]
        targets = list(self._targets())
        return {
            "name": self._subject.name,
            "state": self._subject.state(),
            "time": time.strftime("%H:%M:%S", time.localtime(wall)),
            "slo": _verdict(targets),
            "targets": targets,
            "now": last,
            "points": [{**point, "elapsed_s": (point["at"] or 0) - self._moments[0].at} for point in self._points],
            "limits": {
                f"{one['metric']}_{one['quantile']}": limit for one, limit in page.of("toolkit_slo_limit_seconds")
            },
            "replicas": list(_replicas(page)),
            "stages": list(self._stages(page)),
            "not_watched": not_watched(page),
            "heat": self._heat(),
            "stand_in": any(one["source"] == REHEARSAL for one, _ in page.of("toolkit_gpu_memory_used_bytes")),
            "balance": {one["of"]: value for one, value in page.of("toolkit_balance_spread_ratio")},
            "predicted": list(_predicted(page)),
            "events": self._subject.events()[-EVENTS:][::-1],
        }

    def _point(self) -> dict[str, float | None]:
        """One point of the charts."""
        moment = self._moments[-1]
        page, before = moment.page, self._ago(RATE_S)
        seconds = moment.at - before.at

        def rate(name: str) -> float | None:
            now, then = _sum(page, name), _sum(before.page, name)
            return None if now is None or not seconds else max(0.0, now - (then or 0.0)) / seconds

        busy = [value for _, value in page.of("toolkit_gpu_utilisation_ratio")]
        return {
            "at": moment.at,
            **{f"{metric}_{q}": _latency(page, metric, q) for metric in LATENCIES for q in ("0.5", "0.99")},
            "requests_per_s": rate(REQUESTS),
            "tokens_per_s": rate(TOKENS),
            "active": _sum(page, "toolkit_requests_active"),
            "waiting": _sum(page, "toolkit_requests_waiting"),
            "kv": max((value for _, value in page.of("toolkit_kv_cache_used_ratio")), default=None),
            "busy": sum(busy) / len(busy) if busy else None,
        }

    def _ago(self, seconds: float) -> Moment:
        """The newest moment that is at least this old; the oldest one if there is none."""
        until = self._moments[-1].at - seconds
        older = (moment for moment in reversed(self._moments) if moment.at <= until)
        return next(older, self._moments[0])

    def _targets(self) -> Iterator[dict[str, Any]]:
        """Each target of the SLO over the last minute, all protocols together."""
        now, before = self._moments[-1].page, self._ago(SLO_S).page
        for one, limit in now.of("toolkit_slo_limit_seconds"):
            total, good = (_new(now, before, name, one["target"]) for name in (COUNTED, GOOD))
            wanted = now.get("toolkit_slo_objective_ratio", target=one["target"])
            share = good / total if total else None
            met = None if share is None or wanted is None else share >= wanted
            yield {
                "label": f"{LATENCIES.get(one['metric'], one['metric'])} P{float(one['quantile']) * 100:g}",
                "limit_s": limit,
                "measured_s": _latency(now, one["metric"], one["quantile"]),
                "requests": total,
                "inside": share,
                "wanted": wanted,
                "met": met,
            }

    def _stages(self, page: Page) -> Iterator[dict[str, Any]]:
        """Each pipeline stage with its ranks. GPUs without a rank are a stage of their own."""
        stages: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for cell in _ranks(page):
            known = cell["rank"].isdecimal()
            key = cell["replica"], int(cell["rank"]) // self._subject.tp if known else -1
            stages.setdefault(key, []).append(cell)
        for (replica, stage), cells in sorted(stages.items()):
            empty = page.get("toolkit_pipeline_empty_ratio", replica=replica)
            yield {"replica": replica, "stage": stage, "ranks": cells, "empty": empty}

    def _heat(self) -> list[dict[str, Any]]:
        """How busy each GPU was, second by second."""
        since = self._moments[-1].at - HEAT_S
        moments = [moment for moment in self._moments if moment.at >= since]
        series = [one for one, _ in self._moments[-1].page.of("toolkit_gpu_memory_used_bytes")]
        return [
            {
                "label": _label(one),
                "values": [moment.page.get("toolkit_gpu_utilisation_ratio", **one) for moment in moments],
            }
            for one in series
        ]


def _verdict(targets: list[dict[str, Any]]) -> dict[str, str]:
    """The state of the SLO over the last minute, in a word and a sentence."""
    if not targets:
        return {"word": "NO SLO", "tone": "UNSURE", "text": "No limit is known that histograms can check."}
    known = [target for target in targets if target["met"] is not None]
    if not known:
        return {"word": "NO TRAFFIC", "tone": "UNSURE", "text": "No request that counts ended in the last minute."}
    missed = [target["label"] for target in known if not target["met"]]
    if missed:
        text = f"{len(missed)} of {len(known)} targets missed in the last minute: {', '.join(missed)}."
        return {"word": "MISSED", "tone": "FAIL", "text": text}
    return {"word": "INSIDE", "tone": "PASS", "text": f"All {len(known)} targets were met in the last minute."}


def _replicas(page: Page) -> Iterator[dict[str, Any]]:
    for one, on in page.of("toolkit_replica_phase"):
        if on:
            replica = one["replica"]
            values = {
                name: page.get(f"toolkit_{name}", replica=replica)
                for name in ("requests_active", "requests_waiting", "kv_cache_used_ratio", "pipeline_empty_ratio")
            }
            yield {"replica": replica, "phase": one["phase"], **values}


def _ranks(page: Page) -> Iterator[dict[str, Any]]:
    """The present state of the GPU of each rank."""
    slow: dict[tuple[str, str], list[str]] = {}
    for one, on in page.of("toolkit_gpu_throttled"):
        if on:
            slow.setdefault((one["gpu"], one["source"]), []).append(one["reason"])
    for one, used in page.of("toolkit_gpu_memory_used_bytes"):
        total = page.get("toolkit_gpu_memory_total_bytes", **one)
        yield {
            **one,
            "label": _label(one),
            "busy": page.get("toolkit_gpu_utilisation_ratio", **one),
            "used_bytes": used,
            "memory": used / total if total else None,
            "celsius": page.get("toolkit_gpu_temperature_celsius", **one),
            "watts": page.get("toolkit_gpu_power_watts", **one),
            "slow": slow.get((one["gpu"], one["source"]), []),
            "lost": bool(page.get("toolkit_gpu_lost", **one)),
        }
    for one, lost in page.of("toolkit_gpu_lost"):
        if lost and page.get("toolkit_gpu_memory_used_bytes", **one) is None:
            yield {**one, "label": _label(one), "lost": True, "slow": []}


def _label(one: dict[str, str]) -> str:
    what = "CPU" if one["source"] == REHEARSAL else f"GPU {one['gpu']}"
    return f"{what}, replica {one['replica']} rank {one['rank']}" if one["rank"].isdecimal() else what


def _predicted(page: Page) -> Iterator[dict[str, Any]]:
    for one, predicted in page.of("toolkit_predicted_latency_seconds"):
        label = f"{LATENCIES.get(one['metric'], one['metric'])} P{float(one['quantile']) * 100:g}"
        measured = _latency(page, one["metric"], one["quantile"])
        yield {"label": label, "predicted_s": predicted, "measured_s": measured}


def _latency(page: Page, metric: str, quantile: str) -> float | None:
    """The percentile of the last minute; of the slower protocol if there are two."""
    values = [
        value
        for one, value in page.of("toolkit_latency_seconds")
        if (one["metric"], one["quantile"]) == (metric, quantile)
    ]
    return max(values, default=None)


def _sum(page: Page, name: str) -> float | None:
    values = [value for _, value in page.of(name)]
    return sum(values) if values else None


def _new(now: Page, before: Page, name: str, target: str) -> float:
    """How much a counter of a target grew, over all protocols."""
    return sum(value - (before.get(name, **one) or 0.0) for one, value in now.of(name) if one["target"] == target)
