"""Writes docs/reference/metrics.md from the tables of metrics, rules and alerts. Run `make docs`; a test checks it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from toolkit.config.histograms import ERRORS, HISTOGRAMS, HistogramFamily
from toolkit.config.load import load_deployment
from toolkit.monitor.alerts import alerts
from toolkit.monitor.metrics import METRICS
from toolkit.monitor.rules import recording_rules

PAGE = Path(__file__).parent / "reference/metrics.md"
EXAMPLE = Path(__file__).parents[1] / "build_configs/llama3-70b-h100-pp4tp2-fp16.yaml"
HEAD = """# Metrics, rules and alerts

`make docs` makes this page from the tables in the code. Do not edit it. How to use them:
[monitor](../how-to/monitor.md).

## In Triton's own /metrics

Our models add these to `nv_inference_*`, `nv_trt_llm_*` and `nv_llm_*`. Labels: `model`, `protocol` (triton) and
`replica`. Count clients' requests by `model="tensorrt_llm_bls"`; with `engine: pytorch` by `model="tensorrt_llm"`.
There the requests of OpenAI's API are not counted by the model that they reach, but as the last column says.
A bucket's upper bounds are 0 and then equal ratios, two digits each. Dynamo's front end gets the same bounds.

Dynamo has no time per output token. So the worker of each replica measures it, in the same family with `protocol`
(openai), `model` (the name that clients ask) and `replica`, on a port of loopback that `toolkit up` chooses. It counts
each request that ended, whole answers included, from its first token to its last. A stream that moved to another
replica counts once, by the replica that ended it, with the tokens from there: a worker cannot tell it from a new
request. The pause of the move is in the time between tokens.
"""


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table of Markdown."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines) + "\n"


def _of_openai(family: HistogramFamily) -> str:
    if family.workers:
        return f'`{family.name}{{protocol="openai"}}`'
    return f"`dynamo_frontend_{family.dynamo}`" if family.dynamo else ""


def reference() -> str:
    """The text of the page."""
    deployment = load_deployment(EXAMPLE)
    histograms = (
        (f"`{one.name}`", one.label, "{:g}, {:g}, {}".format(*one.buckets), _of_openai(one))
        for one in HISTOGRAMS.values()
    )
    exported = (
        (f"`{one.name}`", one.kind, ", ".join(f"`{label}`" for label in one.labels), one.help)
        for one in METRICS.values()
    )
    rules = {rule.record: ", ".join(f"`{label}`" for label in rule.labels) for rule in recording_rules(deployment)}
    shown = {alert.name: alert for alert in alerts(deployment)}.values()
    fired = ((alert.name, alert.severity, f"`{alert.expr}`", alert.lasts, alert.action) for alert in shown)
    return "\n".join(
        [
            HEAD,
            table(("Histogram", "Is", "Buckets: from, to, how many", "OpenAI's traffic"), histograms),
            f"`{ERRORS}` counts failed requests by `error`: invalid_arg, unavailable, internal, cancelled (the client\n"
            "left), unsupported, not_found. Those of OpenAI's API are in `dynamo_frontend_requests_total` with\n"
            '`status="error"`, by `error_type`.\n',
            "## From the exporter\n",
            table(("Family", "Kind", "Labels", "Is"), exported),
            "## Recording rules\n",
            table(("Series", "Labels"), ((f"`{name}`", labels) for name, labels in rules.items())),
            f"## Alerts\n\nWith the SLO of `{EXAMPLE.name}`. An SLO alert is there for each target.\n",
            table(("Alert", "Severity", "Fires when", "For", "Do"), fired),
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
