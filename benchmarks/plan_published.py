"""The planner's throughput beside NVIDIA's published tables, whole run against whole run: output tokens/s of a group.

    python benchmarks/plan_published.py                 # every point
    python benchmarks/plan_published.py --summary       # only the errors of groups of points

`data/published.csv` holds what the performance overviews of TensorRT-LLM 0.14 to 1.2 say of Llama models: all requests
at once, equal lengths, total output tokens over total seconds. `data/first_tokens.csv` has the first-token latencies
of one prompt alone, of 0.9. The column `earlier` is what the planner predicted
before its step times were made as they are. Settings are those of the releases' own trtllm-bench (see `settings`).
Which points were used to set constants, and which were not, is in benchmarks/plan.md.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from burst import Burst, Limits

from toolkit.model.rank_mapping import RankMapping
from toolkit.model.shape import ModelShape
from toolkit.sizing.gpus import GPUS, Gpu
from toolkit.sizing.memory import GIB, activation_bytes, context_bytes, plan_stage
from toolkit.sizing.precision import Precision
from toolkit.steptimes.latency import ClosedForm
from toolkit.steptimes.step import prefill

DATA = Path(__file__).parent / "data"
PRECISIONS = {"fp8": Precision(1, 1, 2, True), "fp16": Precision()}
REQUESTS = {
    (128, 128): 30000, (1000, 2000): 1500, (128, 4096): 1500, (2048, 2048): 1500, (5000, 500): 1500,
    (8192, 1024): 1500, (1024, 8192): 1500, (20000, 2000): 1000, (32768, 1024): 1000,
}  # fmt: skip
"""Requests of a run by (prompt, output), as the overviews have them; 3,000 of the others."""
TRAINING = "0.17"
"""The release whose points set the constants of `toolkit.steptimes.latency.Overheads` and of memory."""


def shape(vocabulary: int, hidden: int, ffn: int, layers: int, heads: int, kv_heads: int = 8) -> ModelShape:
    return ModelShape(
        "LlamaForCausalLM", vocabulary, hidden, ffn, layers, heads, kv_heads, 128, 131072, 1e-5, 5e5, None,
        tie_word_embeddings=False, attention_bias=False, mlp_bias=False, hidden_act="silu", dtype="float16",
    )  # fmt: skip


SHAPES = {
    "Llama-3.1-8B": shape(128256, 4096, 14336, 32, 32),
    "Llama-3.1-70B": shape(128256, 8192, 28672, 80, 64),
    "Llama-3.3-70B": shape(128256, 8192, 28672, 80, 64),
    "Llama-3.1-405B": shape(128256, 16384, 53248, 126, 128),
    "Llama-2-70B": shape(32000, 8192, 28672, 80, 64),
    "Llama-2-7B": shape(32000, 4096, 11008, 32, 32, kv_heads=32),
}


@dataclass(frozen=True)
class Point:
    """A row of the file."""

    release: str
    model: str
    precision: str
    gpu: str
    tp: int
    prompt: int
    output: int
    published: float
    """Output tokens/s."""
    earlier: float
    """What the planner used to predict."""

    @property
    def held_out(self) -> bool:
        """Whether no constant was set from it."""
        return self.release != TRAINING and not self.sets_logits

    @property
    def sets_logits(self) -> bool:
        """Of the few points whose memory is mostly logits, and which set LOGITS_BYTES."""
        return (self.release, self.gpu, self.precision, self.tp) == (
            "0.14",
            "h100-sxm",
            "fp8",
            1,
        ) and "70B" in self.model

    def predicted(self) -> float:
        """Output tokens/s of the run; 0 where the memory that is predicted holds no sequence."""
        gpu, precision, model = GPUS[self.gpu], PRECISIONS[self.precision], SHAPES[self.model]
        mapping = RankMapping(tp=self.tp, pp=1)
        sequences, tokens, share = settings(self)
        stage = plan_stage(model, mapping, 0, precision)
        used = stage.weight_bytes + context_bytes(gpu, self.tp)
        used += activation_bytes(model, self.tp, tokens, sequences, precision)
        pool = int(share * (gpu.memory_gib * GIB - used)) // stage.kv_bytes_per_token
        count = REQUESTS.get((self.prompt, self.output), 3000)
        times = ClosedForm(model, mapping, gpu, precision)
        limits = Limits(sequences, tokens, pool)
        return count * self.output / Burst(times, self.prompt, self.output, count, limits).run()

    def error(self) -> float:
        return self.predicted() / self.published - 1


def points() -> list[Point]:
    with (DATA / "published.csv").open() as file:
        return [
            Point(
                release=row["release"],
                model=row["model"],
                precision=row["precision"],
                gpu=row["gpu"],
                tp=int(row["tp"]),
                prompt=int(row["isl"]),
                output=int(row["osl"]),
                published=float(row["tokens_per_s"]),
                earlier=float(row["earlier"]),
            )
            for row in csv.DictReader(file)
        ]


def first_tokens() -> Iterable[tuple[str, float, float]]:
    """(what, milliseconds published, predicted) of one prompt alone, data/first_tokens.csv."""
    with (DATA / "first_tokens.csv").open() as file:
        for r in csv.DictReader(file):
            mapping, gpu = RankMapping(tp=int(r["tp"]), pp=1), GPUS[r["gpu"]]
            times = ClosedForm(SHAPES[r["model"]], mapping, gpu, PRECISIONS[r["precision"]])
            what = f"{r['model']} {r['precision']} {r['gpu']} tp{r['tp']}, {r['isl']} tokens"
            yield what, float(r["ms"]), 1e3 * sum(times.stage_seconds(prefill(int(r["isl"]))))


def settings(point: Point) -> tuple[int, int, float]:
    """(max_batch_size, max_num_tokens, share of free memory for the KV cache) of trtllm-bench in that release.

    0.14 has a table of them in its benchmark_config.yml. Later releases estimate how many requests fit, and round up.
    """
    if point.release == "0.14":
        if point.model == "Llama-3.1-8B":
            return 2048, 8192, 0.9
        two = (2048, 1024) if point.prompt + point.output == 4096 else (256, 1024)
        return (*{1: (2048, 2048), 2: two, 4: (2048, 1024), 8: (8192, 16384)}[point.tp], 0.9)
    fit = _requests_that_fit(GPUS[point.gpu], SHAPES[point.model], PRECISIONS[point.precision], point)
    sequences = min(fit, 4096)
    tokens = min(sequences * (1 + point.prompt / point.output), 32768)
    return (
        _rounded(sequences, 64, ((256, 32), (1024, 128)), 256),
        _rounded(tokens, 2048, ((4096, 256), (8192, 512)), 1024),
        0.95,
    )


def _requests_that_fit(gpu: Gpu, model: ModelShape, precision: Precision, point: Point) -> float:
    """By trtllm-bench's own estimate, which knows weights and KV cache only."""
    heads = max(point.tp, model.num_key_value_heads)
    per_token = 2 * model.num_hidden_layers * heads * model.head_dim * precision.kv_bytes
    weights = model.parameters * precision.weight_bytes / 1e9 * GIB  # it takes 10^9 bytes for a GiB
    return 0.95 * (point.tp * gpu.memory_gib * GIB - weights) / per_token / (point.prompt + point.output)


def _rounded(value: float, least: int, steps: Iterable[tuple[int, int]], last: int) -> int:
    """Up to a multiple of the step that belongs to the value."""
    step = next((step for below, step in steps if value < below), last)
    return max(least, step * math.ceil(value / step))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--summary", action="store_true")
    summary = parser.parse_args().summary
    groups: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for point in points():
        predicted = point.predicted()
        before, now = point.earlier / point.published - 1, predicted / point.published - 1
        use = "held out" if point.held_out else "used"
        for group in (f"all, {use}", f"{point.release}, {use}", f"{point.gpu} {point.precision}, {use}"):
            groups[group].append((before, now))
        if not summary:
            print(
                f"{point.release:5} {point.model:15} {point.precision:5} {point.gpu:9} tp{point.tp} "
                f"{point.prompt:5}/{point.output:<5} published {point.published:9,.0f}  earlier {before:+7.1%}  "
                f"now {predicted:9,.0f} {now:+7.1%}  {use}"
            )
    if not summary:
        for what, published, milliseconds in first_tokens():
            print(
                f"first token, {what:40} {published:6.1f} ms  {milliseconds:6.1f} {milliseconds / published - 1:+7.1%}"
            )
    for group, errors in sorted(groups.items()):
        earlier, ours = zip(*errors, strict=True)
        print(f"{group:28} {len(errors):4} points   earlier {describe(earlier)}   now {describe(ours)}")


def describe(errors: Iterable[float]) -> str:
    size, ninth, bias = accuracy(errors)
    return f"median {size:5.1%}  P90 {ninth:6.1%}  bias {bias:+6.1%}"


def accuracy(errors: Iterable[float]) -> tuple[float, float, float]:
    """Median and 90th percentile of the errors' sizes, and their median."""
    errors = list(errors)
    sizes = sorted(map(abs, errors))
    return statistics.median(sizes), sizes[math.ceil(0.9 * len(sizes)) - 1], statistics.median(errors)


if __name__ == "__main__":
    main()
