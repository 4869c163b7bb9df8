"""The plan of a fleet as text for a terminal of 80 columns."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from toolkit.plan.fleet.curve import ERROR, REQUESTS
from toolkit.plan.fleet.day import rolling_hours
from toolkit.plan.fleet.failures import load_seconds, restart_seconds
from toolkit.plan.fleet.fleet import FleetPlan
from toolkit.plan.show.report_memory import plain_table
from toolkit.plan.show.wording import number

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

WIDTH = 80


def fleet_text(fleet: FleetPlan) -> RenderableType:
    """The nodes, the day, and what follows from both."""
    from rich.console import Group

    rows, day, notes = _rows(fleet), _day(fleet), plain_table()
    notes.show_header = False
    notes.add_column(no_wrap=True)
    notes.add_column()
    for name, line in facts(fleet).items():
        notes.add_row(name, line)
    return Group(f"[bold]{heading(fleet)}[/bold]", "", rows, "", day, "", notes)


def heading(fleet: FleetPlan) -> str:
    """The answer in a line."""
    deployment = fleet.deployment
    return (
        f"{deployment.name}: {fleet.nodes:,} nodes of {deployment.hardware.gpus} x {deployment.hardware.gpu} "
        f"for {number(fleet.rate)} requests/s, one may be lost"
    )


def _rows(fleet: FleetPlan) -> Table:
    table = plain_table()
    columns = ["nodes", "GPUs", "away", "of the time", "TTFT P99", "TPOT P99", "GPU-h/M tokens"]
    columns += ["cost/M"] * bool(fleet.deployment.fleet.price_per_gpu_hour)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in row_data(fleet):
        cells = [f"{row['nodes']:,}", f"{row['gpus']:,}", f"{row['away']}", f"{row['of_the_time']:.2%}"]
        cells += [milliseconds(row[name]) for name in ("ttft_ms_p99", "tpot_ms_p99")]
        cells += [number(row["gpu_hours_per_million_tokens"])]
        if len(columns) > len(cells):
            cells.append(number(row["cost_per_million_tokens"]))
        table.add_row(*cells, style="bold" if row["nodes"] == fleet.nodes else "")
    return table


def milliseconds(value: float | None) -> str:
    """A latency in the table; "grows" where the queue does."""
    return "grows" if value is None or not math.isfinite(value) else f"{number(value)} ms"


def row_data(fleet: FleetPlan) -> list[dict[str, Any]]:
    """The figures of each row of the table, in the busiest hour with the row's nodes away; cost over the day."""
    return [
        {
            "nodes": row.nodes,
            "gpus": row.nodes * fleet.deployment.hardware.gpus,
            "away": row.lost,
            "of_the_time": fleet.failures.at_most(max(row.lost, 0), row.nodes),
            "ttft_ms_p99": fleet.figure("ttft_ms.p99", fleet.rate, row.nodes - row.lost),
            "tpot_ms_p99": fleet.figure("tpot_ms.p99", fleet.rate, row.nodes - row.lost),
            "gpu_hours_per_million_tokens": fleet.gpu_hours_per_million(24 * row.nodes),
            "cost_per_million_tokens": fleet.cost_per_million(24 * row.nodes),
        }
        for row in fleet.rows
    ]


def _day(fleet: FleetPlan) -> Table:
    table = plain_table()
    for column in ("hour", "requests/s", "nodes needed", "TTFT P99", "one lost", "waiting", "KV pool"):
        table.add_column(column, justify="right", no_wrap=True)
    for hour in fleet.day:
        figures = {name: fleet.figure(name, hour.rate, fleet.nodes) for name in ("ttft_ms.p99", "waiting", "kv")}
        lost = fleet.figure("ttft_ms.p99", hour.rate, fleet.nodes - 1)
        cells = (milliseconds(figures["ttft_ms.p99"]), milliseconds(lost), number(figures["waiting"]))
        name = f"{hour.hour:02d}:00"
        table.add_row(name, number(hour.rate), f"{hour.needed:,}", *cells, f"{figures['kv']:.1%}")
    table.caption = "waiting, KV pool: of each replica, on average, with every node up"
    table.caption_justify = "left"
    return table


def facts(fleet: FleetPlan) -> dict[str, str]:
    """What follows from the tables, by name."""
    curve, failures, deployment = fleet.curve, fleet.failures, fleet.deployment
    nodes = fleet.nodes
    missed = next((load.missed for load in curve.loads if not load.meets), "")
    away, load_s = restart_seconds(deployment), load_seconds(deployment)
    rolling = rolling_hours(fleet.day, nodes, away)
    after = f"{number(rolling)} h from the quietest hour on" if rolling else "over a day: add a node"
    following = fleet.gpu_hours_per_million(sum(hour.needed for hour in fleet.day))
    per_day = failures.per_day(nodes)
    every = f"one every {number(1 / per_day)} days" if per_day else "none"
    add = {name: curve.at(fleet.add_at, name) for name in ("in_flight", "waiting", "kv")}
    checked = f"by the curve of one replica ({REQUESTS:,} requests per rate; {ERROR})"
    checked = "every replica simulated" if fleet.exact else checked
    return {
        "a replica": f"meets the SLO up to {number(curve.highest)} requests/s{missed and f', then misses {missed}'}; "
        f"saturates at {number(curve.saturated)}",
        "router": f"{fleet.router}; Poisson arrivals; nodes: {checked}",
        "failures": f"{every}; {failures.per_node_hour * 1000:g} per 1,000 node-hours, {failures.repair_hours:g} h "
        f"away: {number(failures.away * nodes)} nodes on average. Each breaks off "
        f"{number(fleet.broken_off(fleet.rate, nodes))} requests at the peak",
        "restarts": f"a node is away for {number(away / 60)} min. All of them, as many at once as are not "
        f"needed: {after}",
        "add nodes": f"when a replica has, on average, over {number(add['in_flight'])} requests in flight, "
        f"{number(add['waiting'])} of them waiting, or {add['kv']:.1%} of its KV pool in use "
        f"({number(fleet.add_at)} requests/s). A new node loads for {number(load_s / 60)} min",
        "following": f"the curve with nodes each hour instead of {nodes:,} all day: "
        f"{number(following)} GPU-h per million output tokens{_money(fleet, following)}",
    }


def _money(fleet: FleetPlan, hours: float) -> str:
    price = fleet.deployment.fleet.price_per_gpu_hour
    return f", cost {number(hours * price)}" if price else ""
