"""The wording of numbers, limits and outcomes, the same in the terminal and on pages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.slo.generator_error import GeneratorError
from toolkit.slo.server_metrics import ServerSeen
from toolkit.slo.target import Target

NOTHING = "–"


def number(value: float | None) -> str:
    """At least three significant digits; "∞" for the latency of a failed request."""
    if value is None:
        return NOTHING
    if math.isinf(value):
        return "∞"
    decimals = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{decimals}f}"


def quantity(value: float | None, unit: str) -> str:
    """A value with its unit."""
    if value is None:
        return NOTHING
    if unit == "share":
        return f"{value * 100:.4g} %"
    return f"{number(value)} ms" if unit == "ms" else number(value)


def measured(target: Target) -> str:
    """The measured value of a target with its unit."""
    return quantity(target.measured, target.unit)


def listed(counts: Sequence[int]) -> str:
    """Counts as a sum: `10 + 12`."""
    return " + ".join(f"{count:,}" for count in counts)


def limit(target: Target) -> str:
    """The limit as a condition: "≤ 500 ms", "≥ 8", "within 70 % to 85 %"."""
    bounds = target.limit if isinstance(target.limit, tuple) else (target.limit,)
    shares = target.unit == "share"
    texts = [quantity(bound, "share") if shares else f"{bound:,.10g}" for bound in bounds]
    return f"{target.sign} {' to '.join(texts)}{' ms' if target.unit == 'ms' else ''}"


def interval(target: Target) -> str:
    """The 95 % interval of the measured value: "148 to 161 ms"."""
    if target.interval is None:
        return NOTHING
    low, high = target.interval
    if target.unit == "share":
        return f"{low * 100:.4g} to {high * 100:.4g} %"
    return f"{number(low)} to {quantity(high, target.unit)}"


def note(target: Target) -> str:
    """Why the outcome is not reliable, and the caveats."""
    return "; ".join(filter(None, (target.undecided, target.note)))


def own_error(own: GeneratorError | None) -> str:
    """The load generator's own error in one line."""
    if own is None:
        return "The load generator was not calibrated, so its own error is unknown."
    metrics = {"TTFT": own.ttft_ms, "TPOT": own.tpot_ms, "ITL": own.itl_ms, "end-to-end": own.e2e_ms}
    parts = [f"{name} {number(e.p50)} / {number(e.p99)} ms" for name, e in metrics.items() if e]
    text = f"The load generator's own error, P50 / P99: {', '.join(parts) or 'unknown'}"
    text += f"; sent late by {number(own.dispatch_ms)} ms (P99)" if own.dispatch_ms is not None else ""
    text += f"; read late by {number(own.read_late_ms)} ms (P99)" if own.read_late_ms is not None else ""
    text += f"; busiest process {own.cpu:.0%} of a core" if own.cpu is not None else ""
    text += f"; one process carries about {carried(own.tokens_per_s)} tokens/s" if own.tokens_per_s else ""
    return f"{text}; it ran out of CPU." if own.out_of_cpu else f"{text}."


def carried(tokens_per_s: float) -> str:
    """An estimate with two significant digits: "6,100"."""
    return f"{float(f'{tokens_per_s:.2g}'):,.10g}"


def server(seen: ServerSeen | None) -> list[tuple[str, str]]:
    """What the servers' metrics said during the run: (name, value)."""
    if seen is None:
        return [("server's metrics", "not read")]
    lines = []
    for gpu in seen.gpus:
        busy = "utilisation not measured" if gpu.utilisation is None else f"{gpu.utilisation:.0%} busy"
        used, total = (f"{b / 2**30:.1f}" if b else NOTHING for b in (gpu.memory_used_bytes, gpu.memory_total_bytes))
        lines.append((gpu.uuid, f"{busy}; {used} of {total} GiB of memory at most"))
    if not seen.gpus:
        lines.append(("GPUs", f"not measured: {seen.why_no_gpus}"))
    return lines + engine(seen)


def engine(seen: ServerSeen) -> list[tuple[str, str]]:
    """What the engines' metrics said during the run: (name, value)."""
    lines = []
    if seen.kv_cache_used is not None:
        lines.append(("KV cache", f"{seen.kv_cache_used:.0%} of its blocks in use at most"))
    if seen.pipeline_empty is not None:
        lines.append(("micro-batches without a step", f"{seen.pipeline_empty:.0%} on average"))
    if seen.requests_active is not None:
        lines.append(("requests in the server", f"{seen.requests_active:.0f} at most"))
    return lines


def margin(target: Target) -> str:
    """The distance to the limit, in per cent of it: "+25 %", "-140 %"."""
    if target.margin is None:
        return NOTHING
    if math.isinf(target.margin):
        return "-∞"
    return f"{target.margin * 100:+,.{0 if abs(target.margin) >= 0.1 else 1}f} %"


def load(settings: Mapping[str, Any]) -> str:
    """The kind of load, in a few words."""
    what = f", workload {settings['workload']}" if "workload" in settings else ""
    how = f"{settings.get('users')} users, closed loop"
    if settings.get("loop") == "open":
        how = f"{number(settings.get('rate'))} requests/s, {settings.get('arrivals')}, open loop"
    whole = ", answers not streamed" if settings.get("answers") == "whole" else ""
    return f"{how}{what}, over {settings.get('protocol')}{whole}"


def share(value: float | None) -> str:
    """As "12 %"."""
    return NOTHING if value is None else f"{number(value * 100)} %"


def difference(share: float | None) -> str:
    """As "+12 %"."""
    return NOTHING if share is None else f"{share:+.0%}".replace("%", " %")
