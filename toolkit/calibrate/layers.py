"""Times the parts of a layer, as one GPU of each tensor parallel degree would compute them."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import torch

from toolkit.calibrate import device as on
from toolkit.calibrate.grid import powers
from toolkit.calibrate.parts import Shard, fused
from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError
from toolkit.model.shape_rules import tensor_parallel_degrees

LARGEST_ON_CPU = 2048
"""Hidden size. On a CPU a layer of a larger model takes minutes, and says nothing about a GPU."""
PARTS = ("linear", "elementwise", "context", "generation", "lm_head")
ALL_REDUCE = "all_reduce cannot be timed on one GPU: its rates are those of the planner's table"
FP8 = "16-bit products are timed, FP8 ones are not: the rates of FP8 are those of the planner's table"


class Point(NamedTuple):
    """One thing to time. The fields are those of toolkit.steptimes.fit.Timing."""

    part: str
    tp: int
    tokens: int
    context: int


def points(deployment: Deployment) -> list[Point]:
    """Everything to time. Within a part and tp the longest points come last."""
    limits = deployment.limits
    decode, prompts = powers(1, min(128, limits.max_num_tokens)), powers(256, min(8192, limits.max_num_tokens))
    longest = min(8192, limits.max_seq_len, limits.max_num_tokens)
    lengths = powers(min(128, longest), longest)
    keys = sorted({max(1, limits.max_seq_len // part) for part in (8, 4, 2, 1)})
    sizes = {
        "linear": [(tokens, 0) for tokens in decode + prompts],
        "elementwise": [(tokens, 0) for tokens in decode + prompts],
        "context": [(length, length) for length in lengths],
        "generation": sorted(((n, k) for n in decode[::2] for k in keys), key=lambda size: size[0] * size[1]),
        "lm_head": [(rows, 0) for rows in decode],
    }
    degrees = [tp for tp in tensor_parallel_degrees(deployment.shape, deployment.hardware.gpus) if tp in (1, 2, 4, 8)]
    return [Point(part, tp, *size) for tp in degrees for part in PARTS for size in sizes[part]]


def time_layers(deployment: Deployment, budget_s: float, tell: Callable[[int, int], None]) -> dict[str, Any]:
    """Device, dtype, rows, and the points that were skipped because time or memory was short.

    `tell` is called with (points done, points in all). Raises ToolkitError for a model that needs a GPU, without one.
    """
    device = require_device(deployment)
    with on.threads_for(device, deployment.shape.hidden_size):
        dtype = getattr(torch, deployment.model.dtype) if device.type == "cuda" else torch.float32
        kernels, not_fused = fused(device)
        make = partial(Shard, deployment.shape, device, dtype, on.cache_bytes(device), kernels)
        rows, skipped = _time_all(make, points(deployment), budget_s, tell)
        return {
            "device": on.describe(device),
            "dtype": str(dtype).removeprefix("torch."),
            "notes": [
                ALL_REDUCE,
                *([FP8] if deployment.model.quantization == "fp8" else []),
                *([not_fused] if not_fused else []),
            ],
            "skipped": [named_point(point) for point in skipped],
            "rows": [{**point._asdict(), "seconds": seconds} for point, seconds in rows],
        }


def require_device(deployment: Deployment) -> torch.device:
    """The GPU, or the CPU for a small model. Raises ToolkitError for a large model without a GPU."""
    device, hidden = on.pick(), deployment.shape.hidden_size
    if device.type == "cpu" and hidden > LARGEST_ON_CPU:
        raise ToolkitError(
            f"there is no GPU here, and layers of hidden size {hidden} are too large to time on a CPU "
            f"(at most {LARGEST_ON_CPU})",
            where=deployment.file,
            hint="Run it on a GPU node, or calibrate a small model with --engine rehearsal.",
        )
    return device


def _time_all(
    make: Callable[[int], Shard], points: list[Point], budget_s: float, tell: Callable[[int, int], None]
) -> tuple[list[tuple[Point, float]], list[Point]]:
    """Points with their seconds, and the points that were skipped."""
    series = {key: list(ahead) for key, ahead in groupby(points, key=lambda point: point[:2])}
    rows, skipped, until = list[tuple[Point, float]](), list[Point](), time.monotonic()
    shard: Shard | None = None
    for (_, tp), ahead in series.items():
        until += budget_s / len(series)  # the next series may use what one leaves over
        if shard is None or shard.tp != tp:
            shard = None  # frees its weights before the next ones are made
            shard = make(tp)
        timed = _time_series(shard, ahead, until)
        rows += timed
        skipped += ahead[len(timed) :]
        tell(len(rows) + len(skipped), len(points))
    return rows, skipped


def _time_series(shard: Shard, ahead: list[Point], until: float) -> list[tuple[Point, float]]:
    """Points of one part and their seconds, shortest first, until the next would end too late or not fit."""
    rows, last = list[tuple[Point, float]](), 0.0
    for point in ahead:
        needed = shard.bytes_of(point.part, point.tokens, point.context)
        if time.monotonic() + last > until or needed > 0.8 * on.free_bytes(shard.device):
            break
        begin = time.monotonic()
        try:
            seconds = on.seconds(shard.device, getattr(shard, point.part)(point.tokens, point.context))
        except torch.cuda.OutOfMemoryError:
            break
        rows.append((point, seconds))
        last = 2 * (time.monotonic() - begin)  # the next point is about twice the size
    return rows


def named_point(point: Point) -> str:
    """The point in words."""
    unit = {"generation": "sequences", "lm_head": "rows"}.get(point.part, "tokens")
    keys = f" of {point.context} keys" if point.part == "generation" else ""
    return f"{point.part} tp {point.tp}: {point.tokens} {unit}{keys}"
