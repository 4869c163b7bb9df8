"""Fits the planner's rates to data/kernel_times.csv, and holds them against whole steps.

    python benchmarks/plan_fit.py

Prints the rates of each measured GPU (they are those of toolkit/sizing/gpus.py), how far the closed form is from
the kernel times under them, and, for the H100, the error on whole steps of data/step_times.csv when no kernel time of
that layout's tensor parallelism took part in the fit.
"""

from __future__ import annotations

import csv
import statistics
from collections import defaultdict
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

from toolkit.config.load import load_deployment
from toolkit.model.rank_mapping import RankMapping
from toolkit.sizing.gpus import GPUS, Gpu
from toolkit.sizing.precision import Precision
from toolkit.steptimes.fit import Part, Timing, closed_form, fit_rates, predicted_s
from toolkit.steptimes.latency import ALONE, ClosedForm
from toolkit.steptimes.step import decode, prefill

DATA = Path(__file__).parent / "data"
FLAGSHIP = Path(__file__).parent.parent / "build_configs/llama3-70b-h100-pp4tp2-fp16.yaml"
PRECISIONS = {
    ("16", "16"): Precision(),
    ("fp8", "fp8"): Precision(1, 1, 2, True),
    ("fp8", "16"): Precision(1, 2, 2, True),
}


LEFT_OUT = {("l40s", "all_reduce"), ("a100-sxm", "generation")}
"""Times that say nothing about a deployment, by GPU and part; benchmarks/plan.md gives the reasons in figures."""
CACHED = 0.92
"""Keys read at more than this share of memory's bandwidth came from the L2 cache, where an engine's never are."""


def kernel_times(gpu: str, without_tp: int | None = None) -> list[Timing]:
    """The measured times of a GPU that rates are fitted to, without those of one degree of tensor parallelism."""
    with (DATA / "kernel_times.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["gpu"] == gpu and int(row["tp"]) != without_tp]
    timings = [
        Timing(
            cast(Part, r["part"]),
            int(r["tp"]),
            int(r["tokens"]),
            int(r["context"]),
            float(r["us"]) * 1e-6,
            r["dtype"] == "fp8",
        )
        for r in rows
        if (gpu, r["part"]) not in LEFT_OUT
    ]
    return [timing for timing in timings if not (timing.part == "generation" and _is_cached(GPUS[gpu], timing))]


def _is_cached(gpu: Gpu, timing: Timing) -> bool:
    form = closed_form(load_deployment(FLAGSHIP).shape, gpu, timing.tp, timing.fp8)
    return form.key_bytes(timing.tokens * timing.context) > CACHED * gpu.bandwidth * timing.seconds


def step_errors() -> dict[tuple[str, str, str], list[float]]:
    """Relative errors of whole steps on the H100 by (layout, precision, phase), the layout's tp held out."""
    shape, found = load_deployment(FLAGSHIP).shape, defaultdict(list)
    with (DATA / "step_times.csv").open() as file:
        rows = list(csv.DictReader(file))
    gpus = {tp: refitted(GPUS["h100-sxm"], without_tp=tp) for tp in (1, 2, 4, 8)}
    for row in rows:
        tp, pp, context = int(row["tp"]), int(row["pp"]), int(row["context"])
        form = ClosedForm(shape, RankMapping(tp=tp, pp=pp), gpus[tp], PRECISIONS[row["weights"], row["kv"]], ALONE)
        work = prefill(context) if row["phase"] == "prefill" else decode(int(row["sequences"]), context)
        seconds = sum(form.stage_seconds(work)) + sum(form.hops(work))
        precision = {"16": "16 bits", "fp8": "FP8"}[row["weights"]] + (", KV 16" if row["weights"] != row["kv"] else "")
        found[f"tp{tp} pp{pp}", precision, row["phase"]].append(seconds * 1e3 / float(row["ms"]) - 1)
    return found


def refitted(gpu: Gpu, without_tp: int | None = None) -> Gpu:
    shape = load_deployment(FLAGSHIP).shape
    return replace(gpu, rates=fit_rates(shape, gpu, kernel_times(gpu.name, without_tp)))


def main() -> None:
    shape = load_deployment(FLAGSHIP).shape
    for gpu in filter(lambda gpu: gpu.measured, GPUS.values()):
        fitted, errors = refitted(gpu), defaultdict(list)
        for timing in kernel_times(gpu.name):
            error = predicted_s(closed_form(shape, fitted, timing.tp, timing.fp8), timing) / timing.seconds - 1
            errors[timing.part + (" FP8" if timing.fp8 else "")].append(error)
        print(f"\n{gpu.name}: " + ", ".join(f"{name}={value:.3g}" for name, value in asdict(fitted.rates).items()))
        for part, values in errors.items():
            print(f"    {part:16s} {describe(values)}")
    print("\nh100-sxm, whole steps, the layout's tp held out of the fit")
    for (layout, precision, phase), values in sorted(step_errors().items()):
        print(f"    {layout:8s} {precision:12s} {phase:8s} {describe(values)}")


def describe(errors: list[float]) -> str:
    size = statistics.median(map(abs, errors))
    return f"median {size:6.1%}   {min(errors):+6.1%} to {max(errors):+6.1%}   {len(errors)} points"


if __name__ == "__main__":
    main()
