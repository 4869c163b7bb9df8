"""Fits the rates of a GPU to measured times of the parts of a layer.

The fit is by least squares on the logarithm of predicted over measured time. So a decode kernel of a microsecond counts
as much as a prefill of a millisecond. The loss is robust, so one odd measurement does not bend the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from toolkit.model.rank_mapping import RankMapping
from toolkit.model.shape import ModelShape
from toolkit.sizing.gpus import Gpu, Rates
from toolkit.sizing.precision import Precision
from toolkit.steptimes.latency import ALONE, ClosedForm

Part = Literal["linear", "elementwise", "context", "generation", "all_reduce", "lm_head"]

SHARES_AND_FLOORS = {
    ("linear", False): ("linear_flops", "weight_bytes", "knee", "linear_s"),
    ("linear", True): ("linear_flops_fp8", "linear_fp8_s"),
    ("elementwise", False): ("elementwise_bytes", "elementwise_s"),
    ("context", False): ("context_flops", "context_bytes", "context_s"),
    ("context", True): ("context_flops_fp8",),
    ("generation", False): ("key_bytes", "extra_keys", "generation_s"),
    ("generation", True): ("generation_fp8_s",),
    ("all_reduce", False): ("one_shot_link", "all_reduce_s", "ring_link", "ring_hop_s"),
}
"""By (part, FP8): the rates that its times determine, in the order in which they are fitted."""

SHARES = {name for names in SHARES_AND_FLOORS.values() for name in names if not name.endswith("_s")} - {
    "extra_keys",
    "knee",
}


class Timing(NamedTuple):
    """The measured time of one part of one layer, or of lm_head, on one GPU of `tp`."""

    part: Part
    tp: int
    tokens: int
    """Rows: for a generation its sequences, for lm_head the emitted tokens."""
    context: int
    """For a context the length of the prompt, for a generation the keys per sequence, else 0."""
    seconds: float
    fp8: bool = False


def predicted_s(form: ClosedForm, timing: Timing) -> float:
    """The time that the closed form predicts for a measurement."""
    part, tokens = timing.part, timing.tokens
    if part == "context":
        return form.context_s(tokens, tokens * (timing.context + 1) / 2)
    if part == "generation":
        return form.generation_s(tokens, tokens * timing.context)
    parts: dict[str, Callable[[int], float]] = {
        "linear": form.linear_s,
        "elementwise": form.elementwise_s,
        "all_reduce": form.all_reduce_s,
        "lm_head": form.lm_head_s,
    }
    return parts[part](tokens)


def fit_rates(shape: ModelShape, gpu: Gpu, timings: Sequence[Timing]) -> Rates:
    """The rates with which the closed form is nearest to the timings. Rates without timings stay as they are."""
    rates = gpu.rates
    for (part, fp8), names in SHARES_AND_FLOORS.items():
        relevant = [timing for timing in timings if (timing.part, timing.fp8) == (part, fp8)]
        if len(relevant) > len(names):
            rates = _fit(shape, replace(gpu, rates=rates), relevant, names)
    return rates


def _fit(shape: ModelShape, gpu: Gpu, timings: Sequence[Timing], names: Sequence[str]) -> Rates:
    from scipy.optimize import least_squares

    def rates(logs: Sequence[float]) -> Rates:
        return replace(gpu.rates, **{name: math.exp(log) for name, log in zip(names, logs, strict=True)})

    def misses(logs: Sequence[float]) -> list[float]:
        tried = replace(gpu, rates=rates(logs))
        forms = {(t.tp, t.fp8): closed_form(shape, tried, t.tp, t.fp8) for t in timings}
        return [math.log(predicted_s(forms[t.tp, t.fp8], t) / t.seconds) for t in timings]

    start = [math.log(getattr(gpu.rates, name)) for name in names]
    most = [0.0 if name in SHARES else math.inf for name in names]  # a share is at most 1
    found = least_squares(misses, start, loss="soft_l1", f_scale=0.05, bounds=([-math.inf] * len(names), most))
    return rates(found.x.tolist())


def closed_form(shape: ModelShape, gpu: Gpu, tp: int, fp8: bool) -> ClosedForm:
    """The closed form for kernels alone: one stage with all layers, in 16 bits or with weights and KV cache in FP8."""
    return ClosedForm(shape, RankMapping(tp=tp, pp=1), gpu, Precision(1, 1, 2, True) if fp8 else Precision(), ALONE)
