"""The rules between the fields of a workload: that of a deployment's YAML, and that of a workload file.

They are here and not in `workload/`, which is above: a deployment is checked whole when its YAML is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from toolkit.config.sections import Lengths, LoadWorkload, Workload
from toolkit.errors import ToolkitError, shown

Broken = tuple[str, str, str]
"""A rule that does not hold: (field, what is wrong, what to do)."""
MOST_REQUESTS = 10**7
"""Of a load test: a week of 16 a second."""
LEAST_RATE, MOST_RATE = 1e-6, 1e6
"""Requests/s. The most is far more than the processes of a machine send."""


def check_workload(workload: LoadWorkload, file: Path) -> None:
    """Raise a ToolkitError for the first rule that does not hold in a workload file."""
    for field, what, hint in chain(_load_rules(workload), lengths_and_times(workload)):
        raise ToolkitError(f"{field}: {what}", where=file, hint=hint)


def lengths_and_times(workload: Workload) -> Iterator[Broken]:
    """The rules about lengths and arrivals that do not hold."""
    for name in ("prompt_tokens", "output_tokens"):
        given = getattr(workload, name)
        if isinstance(given, Lengths):
            if given.mean is None and given.max is None:
                yield name, "neither max nor mean is given", "Give {min, max}, or {mean, cv}, or one number."
            if given.max is not None and given.max < given.min:
                yield name, f"max {given.max} is less than min {given.min}", "Exchange them."
            elif given.mean is not None and given.mean < given.min:
                yield name, f"mean {given.mean} is less than min {given.min}", "It would not be the mean."
            elif given.mean is not None and given.mean > (given.max or math.inf):
                yield name, f"mean {given.mean} is more than max {given.max}", "It would not be the mean."
    for field, least in (("rate", LEAST_RATE), ("burstiness", 1e-3)):
        value = getattr(workload, field)
        if value is not None and value < least:
            yield field, f"{value} is too small", f"Use at least {least}."
    if workload.rate is not None and workload.rate > MOST_RATE:
        yield "rate", f"{workload.rate:g} requests/s are too many", f"Use at most {MOST_RATE:,.0f}."
    if workload.requests > MOST_REQUESTS:
        yield "requests", f"{shown(workload.requests)} are more than {MOST_REQUESTS:,}", "Use fewer."
    for field, its in (("users", "closed"), ("burstiness", "gamma")):
        if field in workload.model_fields_set and workload.arrivals != its:
            yield field, f"means nothing with arrivals: {workload.arrivals}", f"Remove it, or use arrivals: {its}."
    if workload.arrivals == "closed" and workload.rate is not None:
        yield "rate", "means nothing with arrivals: closed", "Remove it: users ask when their last answer has ended."
    if workload.arrivals == "trace" and workload.trace is None:
        yield "trace", "missing, with arrivals: trace", "Give the file to replay."
    for field in ("trace_form", "trace_block_tokens"):
        if field in workload.model_fields_set and workload.trace is None:
            yield field, "means nothing without trace", "Remove it, or give the file to replay."
    for field in ("prompt_tokens", "output_tokens", "shared_prefix_tokens"):
        if field in workload.model_fields_set and workload.trace is not None:
            yield field, "means nothing beside trace, which has the lengths of each request", "Remove one of them."


def _load_rules(workload: LoadWorkload) -> Iterator[Broken]:
    kind, given = workload.kind, workload.model_fields_set
    if workload.arrivals == "trace" and kind != "trace":
        yield "kind", f"{kind} with arrivals: trace", "A trace has times for its own requests only: use kind: trace."
    if kind == "trace" and workload.trace is None and workload.arrivals != "trace":
        yield "trace", "missing, with kind: trace", "Give the file to replay."
    if kind == "jsonl" and workload.prompts is None:
        yield "prompts", "missing, with kind: jsonl", "Give the JSONL file with your prompts."
    kinds = {
        "prompt_tokens": ("synthetic",),
        "shared_prefix_tokens": ("synthetic",),
        "output_tokens": ("synthetic", "chat", "jsonl"),
        "prompts": ("jsonl",),
        "trace": ("trace",),
        "trace_form": ("trace",),
        "trace_block_tokens": ("trace",),
        "turns": ("synthetic", "chat"),
        "think_s": ("synthetic", "chat"),
    }
    for field in (field for field, its in kinds.items() if field in given and kind not in its):
        yield field, f"means nothing with kind: {kind}", f"Remove it; it is for kind {', '.join(kinds[field])}."
    yield from _shape_rules(workload, given)
    if "think_s" in given and workload.turns == 1:
        yield "think_s", "means nothing without turns", "It is the pause between the turns of a conversation."


def _shape_rules(workload: LoadWorkload, given: set[str]) -> Iterator[Broken]:
    shapes = [field for field in ("stages", "ramp", "spike") if getattr(workload, field) is not None]
    if workload.stages == ():
        yield "stages", "is empty", "Give {rate, seconds} for each, or remove it."
    for shape in shapes[1:]:
        yield shape, f"is given beside {shapes[0]}", "Keep one; stages can say what the others say."
    for shape in shapes:
        if workload.arrivals in ("closed", "trace"):
            yield shape, f"has no rate to change with arrivals: {workload.arrivals}", "Use poisson, constant or gamma."
        for field in sorted(given & {"rate", "requests"}):
            yield field, f"{getattr(workload, field)} is given beside {shape}, which says it", "Remove one of them."
