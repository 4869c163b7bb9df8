"""What `toolkit tune` found, for people and for machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toolkit.plan.show.data import finite
from toolkit.plan.show.report import workload_text
from toolkit.plan.show.report_memory import plain_table
from toolkit.plan.show.wording import NOTHING, number

if TYPE_CHECKING:
    from rich.console import RenderableType

    from toolkit.plan.predict import Prediction
    from toolkit.plan.tune import Advice

LATENCIES = {"ttft_ms": "TTFT P99, ms", "tpot_ms": "TPOT P99, ms"}
WIDTH = 100


def advice_text(advice: Advice) -> RenderableType:
    """The traffic, and a line for each change."""
    from rich.console import Group

    table = plain_table()
    table.add_column("settings")
    for column in ("engine", "requests/s in time", *LATENCIES.values(), "SLO"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    table.add_row("as it is", "", *_cells(advice.now), style="bold")
    for change in advice.changes:
        gain = advice.gain(change)
        rate, *others = _cells(change.prediction)
        said = rate if gain is None else f"{rate} ({gain:+.0%})"
        table.add_row(change.text.replace(" ", "\n"), "another" if change.needs_engine else "the same", said, *others)
    none = [] if advice.changes else ["Nothing that was tried serves more of this traffic in time."]
    return Group(f"traffic     {workload_text(advice.now)}", "", table, *none)


def _cells(prediction: Prediction) -> tuple[str, ...]:
    rate = prediction.capacity.highest
    latencies = (number(prediction.percentile(metric, 99)) for metric in LATENCIES)
    return number(rate) if rate else NOTHING, *latencies, "meets" if prediction.meets_slo else "misses"


def advice_data(advice: Advice) -> dict[str, Any]:
    """JSON-ready; a latency without a steady state is null, as is a gain where no rate is in time now."""
    changes = [
        {
            "settings": change.settings,
            "needs_engine": change.needs_engine,
            "gain": advice.gain(change),
            **_data(change.prediction),
        }
        for change in advice.changes
    ]
    return {"now": _data(advice.now), "changes": changes}


def _data(prediction: Prediction) -> dict[str, Any]:
    latencies = {f"{metric}_p99": finite(prediction.percentile(metric, 99)) for metric in LATENCIES}
    return {"requests_per_s": prediction.capacity.highest, **latencies, "meets_slo": prediction.meets_slo}
