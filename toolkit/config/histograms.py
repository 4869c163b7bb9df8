"""The histograms of the serving side: their names and buckets, in one table.

Our Triton models get the buckets as a parameter of their config.pbtxt, Dynamo's front end by variables, and our workers
from here, so that all have the same ones. Dynamo takes a least value, a greatest one and a count; ours follow its rule
(0 first, equal ratios, 2 significant digits).

Latencies have ten buckets per factor of ten: a percentile is known to a quarter of its value, and 50, 100 and 500 ms
and 1 s, which most SLOs name, are bounds. The ranges begin below the time of one step on an H100, and end above what a
client waits. Token counts have five buckets per factor of ten: capacity planning needs no more. Each bucket costs one
time series for each replica and model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

PARAMETER = "toolkit_histograms"
"""The parameter of config.pbtxt."""


@dataclass(frozen=True)
class HistogramFamily:
    """One histogram."""

    key: str
    """Its name inside our Triton models (triton_repo/shared/latency.py)."""
    name: str
    """Its name in Prometheus."""
    label: str
    buckets: tuple[float, float, int]
    """(least, greatest, count) of Dynamo's rule."""
    dynamo: str = ""
    """The family of Dynamo's front end, without `dynamo_frontend_`; "" if it has none."""
    variable: str = ""
    """The prefix of Dynamo's variables for its buckets."""
    workers: bool = False
    """Whether our workers measure it for OpenAI's traffic, because Dynamo's front end does not."""


SECONDS, STEP_SECONDS, LONG_SECONDS = (0.001, 100.0, 51), (0.001, 10.0, 41), (0.01, 1000.0, 51)
TOKENS = (1.0, 100_000.0, 26)
_ALL = (
    HistogramFamily(
        "ttft",
        "toolkit_time_to_first_token_seconds",
        "Time to first token of streamed answers",
        SECONDS,
        "time_to_first_token_seconds",
        "DYN_METRICS_TTFT",
    ),
    HistogramFamily(
        "tpot",
        "toolkit_time_per_output_token_seconds",
        "Mean time per output token after the first, per request",
        STEP_SECONDS,
        workers=True,
    ),
    HistogramFamily(
        "itl",
        "toolkit_inter_token_latency_seconds",
        "Time between two tokens of a stream",
        STEP_SECONDS,
        "inter_token_latency_seconds",
        "DYN_METRICS_ITL",
    ),
    HistogramFamily(
        "e2e",
        "toolkit_request_duration_seconds",
        "From the arrival of a request to its last token",
        LONG_SECONDS,
        "request_duration_seconds",
        "DYN_METRICS_REQUEST_DURATION",
    ),
    HistogramFamily(
        "queue",
        "toolkit_queue_time_seconds",
        "From the arrival of a request to its first step in the engine",
        SECONDS,
    ),
    HistogramFamily(
        "prompt_tokens",
        "toolkit_prompt_tokens",
        "Tokens of a prompt",
        TOKENS,
        "input_sequence_tokens",
        "DYN_METRICS_INPUT_SEQUENCE",
    ),
    HistogramFamily(
        "output_tokens",
        "toolkit_output_tokens",
        "Tokens of an answer",
        TOKENS,
        "output_sequence_tokens",
        "DYN_METRICS_OUTPUT_SEQUENCE",
    ),
)
HISTOGRAMS: Mapping[str, HistogramFamily] = {family.key: family for family in _ALL}
"""By key, in the order in which they are shown."""
ERRORS = "toolkit_request_errors_total"
"""The counter of failed requests, with the label `error`: the class of the error."""


def parameter() -> str:
    """The value of PARAMETER: JSON of key to [name, label, least, most, count]."""
    return json.dumps({family.key: [family.name, family.label, *family.buckets] for family in _ALL})


def dynamo_variables() -> dict[str, str]:
    """The environment that gives Dynamo's front end the same buckets."""
    return {
        f"{family.variable}_{name}": str(value)
        for family in _ALL
        if family.variable
        for name, value in zip(("MIN", "MAX", "COUNT"), family.buckets, strict=True)
    }
