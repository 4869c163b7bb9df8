"""`workload`: the traffic of a plan or a load test. Its keys, then the rules between them.

They are not in `toolkit/workload/`, because that room imports this one and a deployment is checked when its YAML is
read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from toolkit.config.sections import Broken, LoosePath, Positive, PositiveFloat, Section
from toolkit.errors import ToolkitError, shown

MOST_REQUESTS = 10**7
"""Most requests in a load test: a week at 16 per second."""
LEAST_RATE, MOST_RATE = 1e-6, 1e6
"""Requests/s. The upper one is far more than the processes of a machine can send."""


class Lengths(Section):
    """Token counts that differ from request to request: uniform from min to max, or log-normal around a mean."""

    min: Positive = 1
    max: Positive | None = None
    mean: PositiveFloat | None = None
    cv: Annotated[float, Field(gt=0, le=100)] = 1.0
    """log-normal: standard deviation / mean."""


NUMBER, LENGTHS = "a number", "lengths"
"""The two forms of Tokens. pydantic's errors name the one that it tried as part of the location."""


def _form(value: Any) -> str:
    return LENGTHS if isinstance(value, dict | Lengths) else NUMBER


Tokens = Annotated[Annotated[Positive, Tag(NUMBER)] | Annotated[Lengths, Tag(LENGTHS)], Discriminator(_form)]
TOKENS_EXPECTED = "expected a whole number of tokens above 0, or {min, max} or {mean, cv}"


class Workload(Section):
    """The traffic that the deployment is made for: `toolkit plan` predicts under it."""

    arrivals: Literal["poisson", "constant", "gamma", "closed", "trace"] = "poisson"
    rate: PositiveFloat | None = None
    """Requests per second. Default: slo.requests_per_s."""
    burstiness: PositiveFloat = 1.0
    """gamma: the shape of the intervals. 1 is Poisson, below 1 is bursty, above 1 is smoother."""
    users: Positive = 64
    """closed: users, each of whom sends the next request when the last one has ended."""
    prompt_tokens: Tokens = 1024
    output_tokens: Tokens = 128
    shared_prefix_tokens: Annotated[int, Field(ge=0)] = 0
    """Tokens at the start of every prompt that are the same in all (a system prompt)."""
    trace: LoosePath | None = None
    """A public trace: its lengths and texts, and with `arrivals: trace` also its times."""
    trace_form: Literal["mooncake", "bailian", "guidellm", "burstgpt", "azure", "sharegpt"] | None = None
    """Default: detected from the file. guidellm differs from mooncake only in the unit of its times: name it."""
    trace_block_tokens: Positive | None = None
    """Tokens per block in hash_ids: 512 in mooncake's traces, 16 in bailian's."""
    requests: Positive = 1000
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="before")
    @classmethod
    def _arrivals_follow(cls, value: Any) -> Any:
        """With a trace, `arrivals` defaults to its own times."""
        if not isinstance(value, dict) or value.get("trace") is None or value.get("kind", "trace") != "trace":
            return value
        return {"arrivals": "trace", **value}


class RateStage(Section):
    """One stage of a staged load: a rate for a time."""

    rate: PositiveFloat
    seconds: PositiveFloat


class Ramp(Section):
    """A rate that changes evenly from one value to another."""

    start: Annotated[float, Field(ge=0, allow_inf_nan=False, alias="from")]
    to: PositiveFloat
    seconds: PositiveFloat


class Spike(Section):
    """`at` seconds of the base rate, then the peak, then `at` seconds of the base rate again."""

    base: PositiveFloat
    peak: PositiveFloat
    at: PositiveFloat
    seconds: PositiveFloat
    """Length of the peak."""


class LoadWorkload(Workload):
    """The traffic of a load test (a file in loadtest/workloads): also what is sent, and rates that change."""

    kind: Literal["synthetic", "chat", "jsonl", "trace"] = "synthetic"
    """Words with an exact number of tokens, built-in questions, the user's own prompts, or the lengths of a trace."""
    output: Literal["fixed", "natural"] = "fixed"
    """Exactly output_tokens, or until the model stops, at most output_tokens. Default for chat and jsonl: natural."""
    prompts: LoosePath | None = None
    """jsonl: a line is {"prompt": ...} or {"messages": [...]}; max_tokens is optional."""
    turns: Positive = 1
    """Requests per conversation. Each contains the earlier ones and their answers."""
    think_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Pause from the end of an answer to the next turn."""
    stages: Annotated[tuple[RateStage, ...], Field(strict=False)] | None = None
    ramp: Ramp | None = None
    spike: Spike | None = None

    @model_validator(mode="before")
    @classmethod
    def _kind_follows(cls, value: Any) -> Any:
        """Derive `kind` from `arrivals`, `trace` and `prompts`, and the other way round: one of them is enough."""
        if not isinstance(value, dict):
            return value
        filled = dict(value)
        if filled.get("arrivals") == "trace" or filled.get("trace") is not None:
            filled.setdefault("kind", "trace")
        elif filled.get("prompts") is not None:
            filled.setdefault("kind", "jsonl")
        if filled.get("kind") == "trace":
            filled.setdefault("arrivals", "trace")
        elif filled.get("kind") in ("chat", "jsonl"):
            filled.setdefault("output", "natural")
        return filled


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
