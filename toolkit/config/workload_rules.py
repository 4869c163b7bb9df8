"""The rules between the fields of a workload, in a deployment's YAML and in a workload file.

They are not in `workload/`, because that room imports this one and a deployment is checked when its YAML is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from toolkit.config.sections import Lengths, LoadWorkload, Workload
from toolkit.errors import ToolkitError, shown

Broken = tuple[str, str, str]
"""A broken rule: (field, what is wrong, what to do)."""
MOST_REQUESTS = 10**7
"""Most requests in a load test: a week at 16 per second."""
LEAST_RATE, MOST_RATE = 1e-6, 1e6
"""Requests/s. The upper one is far more than the processes of a machine can send."""


def check_workload(workload: LoadWorkload, file: Path) -> None:
    """Raise a ToolkitError for the first broken rule in a workload file."""
    for field, what, hint in chain(_load_rules(workload), lengths_and_times(workload)):
        raise ToolkitError(f"{field}: {what}", where=file, hint=hint)


def lengths_and_times(workload: Workload) -> Iterator[Broken]:
    """The rules about lengths and arrivals that do not hold."""
    for name in ("prompt_tokens", "output_tokens"):
        lengths = getattr(workload, name)
        if isinstance(lengths, Lengths):
            if lengths.mean is None and lengths.max is None:
                yield name, "max and mean are missing", "Give {min, max}, or {mean, cv}, or one number."
            if lengths.max is not None and lengths.max < lengths.min:
                yield name, f"max {lengths.max} is less than min {lengths.min}", "Exchange them."
            elif lengths.mean is not None and lengths.mean < lengths.min:
                yield name, f"mean {lengths.mean} is less than min {lengths.min}", "Give a mean between min and max."
            elif lengths.mean is not None and lengths.mean > (lengths.max or math.inf):
                yield name, f"mean {lengths.mean} is more than max {lengths.max}", "Give a mean between min and max."
    for field, least in (("rate", LEAST_RATE), ("burstiness", 1e-3)):
        value = getattr(workload, field)
        if value is not None and value < least:
            yield field, f"{value} is too small", f"Use at least {least}."
    if workload.rate is not None and workload.rate > MOST_RATE:
        yield "rate", f"{workload.rate:g} requests/s is too much", f"Use at most {MOST_RATE:,.0f}."
    if workload.requests > MOST_REQUESTS:
        yield (
            "requests",
            f"{shown(workload.requests)} is more than {MOST_REQUESTS:,}",
            f"Use at most {MOST_REQUESTS:,}.",
        )
    for field, arrivals in (("users", "closed"), ("burstiness", "gamma")):
        if field in workload.model_fields_set and workload.arrivals != arrivals:
            yield field, f"has no effect with arrivals: {workload.arrivals}", f"Remove it, or use arrivals: {arrivals}."
    if workload.arrivals == "closed" and workload.rate is not None:
        yield "rate", "has no effect with arrivals: closed", "Remove it: a user asks when the last answer has ended."
    if workload.arrivals == "trace" and workload.trace is None:
        yield "trace", "missing, and arrivals is trace", "Give the file to replay."
    for field in ("trace_form", "trace_block_tokens"):
        if field in workload.model_fields_set and workload.trace is None:
            yield field, "has no effect without trace", "Remove it, or give the file to replay."
    for field in ("prompt_tokens", "output_tokens", "shared_prefix_tokens"):
        if field in workload.model_fields_set and workload.trace is not None:
            yield field, "has no effect with trace, which gives each request its length", "Remove one of them."


def _load_rules(workload: LoadWorkload) -> Iterator[Broken]:
    kind, fields = workload.kind, workload.model_fields_set
    if workload.arrivals == "trace" and kind != "trace":
        yield "kind", f"{kind} with arrivals: trace", "Use kind: trace. A trace has times only for its own requests."
    if kind == "trace" and workload.trace is None and workload.arrivals != "trace":
        yield "trace", "missing, and kind is trace", "Give the file to replay."
    if kind == "jsonl" and workload.prompts is None:
        yield "prompts", "missing, and kind is jsonl", "Give the JSONL file with your prompts."
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
    for field, its_kinds in kinds.items():
        if field in fields and kind not in its_kinds:
            yield field, f"has no effect with kind: {kind}", f"Remove it; it is for kind {', '.join(its_kinds)}."
    yield from _shape_rules(workload, fields)
    if "think_s" in fields and workload.turns == 1:
        yield (
            "think_s",
            "has no effect without turns",
            "Remove it: it is the pause between the turns of a conversation.",
        )


def _shape_rules(workload: LoadWorkload, fields: set[str]) -> Iterator[Broken]:
    shapes = [field for field in ("stages", "ramp", "spike") if getattr(workload, field) is not None]
    if workload.stages == ():
        yield "stages", "is empty", "Give {rate, seconds} for each stage, or remove it."
    for shape in shapes[1:]:
        yield shape, f"cannot be combined with {shapes[0]}", "Keep one of them; stages can express the others."
    for shape in shapes:
        if workload.arrivals in ("closed", "trace"):
            yield (
                shape,
                f"has no effect with arrivals: {workload.arrivals}",
                "Use arrivals: poisson, constant or gamma.",
            )
        for field in sorted(fields & {"rate", "requests"}):
            yield field, f"cannot be combined with {shape}, which sets it", "Remove one of them."
