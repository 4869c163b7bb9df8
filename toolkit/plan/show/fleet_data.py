"""The plan of a fleet as JSON-ready data: requests/s, ms, shares from 0 to 1. Figures without an end are null."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from toolkit.plan.fleet.day import rolling_hours
from toolkit.plan.fleet.failures import load_seconds, restart_seconds
from toolkit.plan.fleet.fleet import FleetPlan
from toolkit.plan.show.fleet_report import row_data


def fleet_data(fleet: FleetPlan) -> dict[str, Any]:
    """Everything that the text says."""
    deployment, curve, failures = fleet.deployment, fleet.curve, fleet.failures
    restart_s = restart_seconds(deployment)
    needed = sum(hour.needed for hour in fleet.day)
    return {
        "name": deployment.name,
        "router": fleet.router,
        "requests_per_s": fleet.rate,
        "nodes": fleet.nodes,
        "checked_exactly": fleet.exact,
        "gpus_per_node": deployment.hardware.gpus,
        "replicas_per_node": fleet.replicas,
        "rows": [_finite(row) for row in row_data(fleet)],
        "replica": {
            "highest_requests_per_s": curve.highest,
            "saturated_requests_per_s": curve.saturated,
            "curve": [
                _finite({"requests_per_s": load.rate, **load.latencies})
                | {"waiting": load.waiting, "in_flight": load.in_flight, "kv": load.kv, "meets_slo": load.meets}
                for load in curve.loads
            ],
        },
        "day": [
            {"hour": hour.hour, "requests_per_s": hour.rate, "nodes_needed": hour.needed}
            | _finite(
                {
                    "ttft_ms_p99": fleet.figure("ttft_ms.p99", hour.rate, fleet.nodes),
                    "ttft_ms_p99_one_lost": fleet.figure("ttft_ms.p99", hour.rate, fleet.nodes - 1),
                    "waiting_per_replica": fleet.figure("waiting", hour.rate, fleet.nodes),
                    "kv": fleet.figure("kv", hour.rate, fleet.nodes),
                }
            )
            for hour in fleet.day
        ],
        "failures": {
            "per_day": failures.per_day(fleet.nodes),
            "nodes_away_on_average": failures.away * fleet.nodes,
            **_finite({"requests_broken_off_by_each": fleet.broken_off(fleet.rate, fleet.nodes)}),
        },
        "restart": {
            "seconds_of_a_node": restart_s,
            "load_seconds": load_seconds(deployment),
            "hours_of_all": rolling_hours(fleet.day, fleet.nodes, restart_s),
        },
        "add_nodes_above": {
            "requests_per_s_per_replica": fleet.add_at,
            **{name: curve.at(fleet.add_at, name) for name in ("in_flight", "waiting", "kv")},
        },
        "following_the_day": {
            "gpu_hours_per_million_tokens": fleet.gpu_hours_per_million(needed),
            "cost_per_million_tokens": fleet.cost_per_million(needed),
        },
    }


def _finite(values: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: value if value is not None and math.isfinite(value) else None for name, value in values.items()}
