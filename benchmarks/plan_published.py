"""The planner's throughput beside NVIDIA's published tables, whole run against whole run: output tokens/s of a group.

    python benchmarks/plan_published.py                 # every point
    python benchmarks/plan_published.py --table         # the same as the table of benchmarks/plan.md
    python benchmarks/plan_published.py --summary       # only the errors of groups of points

`data/published.csv` holds what the performance overviews of TensorRT-LLM 0.11 to 1.2 say of Llama models: all requests
at once, equal lengths, total output tokens over total seconds. `data/first_tokens.csv` has the first-token latencies
of one prompt alone, of 0.9. The column `earlier` is what the planner predicted before its constants for engines were
made as they are. Settings are those of the releases' own benchmark (see `settings`). Which points were used to set
constants, and which were not, is in benchmarks/plan.md.
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
from toolkit.sizing.memory import GIB, activation_bytes, context_bytes, plan_stage, sequence_bytes
from toolkit.sizing.precision import Precision
from toolkit.steptimes.latency import ENGINE, PYTORCH, ClosedForm
from toolkit.steptimes.step import prefill

DATA = Path(__file__).parent / "data"
PRECISIONS = {"fp8": Precision(1, 1, 2, True), "fp16": Precision()}
REQUESTS = {
    (128, 128): 30000, (1000, 2000): 1500, (128, 4096): 1500, (2048, 2048): 1500, (5000, 500): 1500,
    (8192, 1024): 1500, (1024, 8192): 1500, (20000, 2000): 1000, (32768, 1024): 1000,
}  # fmt: skip
"""Requests of a run by (prompt, output), as the overviews have them; 3,000 of the others."""
TABLED = {"0.11": 0.99, "0.12": 0.9, "0.13": 0.9, "0.14": 0.9}
"""Releases whose limits come from a table, and the share of the free memory that their KV cache took."""
TUNED = ("0.15", "0.17")
"""Releases whose benchmark lets the executor tune the batch size, by the sequences that fit (`tuned`)."""
PYTORCH_SINCE = ("0.20", "1.0", "1.2")


def shape(vocabulary: int, hidden: int, ffn: int, layers: int, heads: int, kv_heads: int = 8) -> ModelShape:
    return ModelShape(
        "LlamaForCausalLM", vocabulary, hidden, ffn, layers, heads, kv_heads, 128, 131072, 1e-5, 5e5, None,
        tie_word_embeddings=False, attention_bias=False, mlp_bias=False, hidden_act="silu", dtype="float16",
    )  # fmt: skip


SHAPES = {
    "Llama-3-8B": shape(128256, 4096, 14336, 32, 32),
    "Llama-3-70B": shape(128256, 8192, 28672, 80, 64),
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
        return not (self.sets_overheads or self.sets_logits)

    @property
    def sets_overheads(self) -> bool:
        """Of those that set the constants of ENGINE, the two-shot all-reduce, and memory: 0.17, and Llama 2 in 0.13."""
        return self.release == "0.17" or (self.release == "0.13" and self.model.startswith("Llama-2"))

    @property
    def sets_logits(self) -> bool:
        """Of the few points whose memory is mostly logits, and which set LOGITS_BYTES."""
        layout = (self.release, self.gpu, self.precision, self.tp)
        return layout == ("0.14", "h100-sxm", "fp8", 1) and "70B" in self.model

    def predicted(self) -> float:
        """Output tokens/s of the run; 0 where the memory that is predicted holds no sequence."""
        gpu, precision, model = GPUS[self.gpu], PRECISIONS[self.precision], SHAPES[self.model]
        mapping, pytorch = RankMapping(tp=self.tp, pp=1), self.release in PYTORCH_SINCE
        sequences, tokens, share = settings(self)
        # The LLM API, with which trtllm-bench builds, shards the embedding (embedding_parallel_mode); 0.11 did not.
        stage = plan_stage(model, mapping, 0, precision, parallel_embedding=self.release != "0.11")
        used = stage.weight_bytes + context_bytes(gpu, self.tp, pytorch)
        used += activation_bytes(model, self.tp, tokens, precision)
        used += sequence_bytes(model, sequences, self.prompt + self.output)
        pool = int(share * (gpu.memory_gib * GIB - used)) // stage.kv_bytes_per_token
        limits = Limits(sequences, tokens, pool)
        if self.release in TUNED:
            fit = pool // limits.block // math.ceil((self.prompt + self.output) / limits.block)
            limits = limits._replace(sequences=min(sequences, tuned(fit)))
        count = REQUESTS.get((self.prompt, self.output), 3000)
        times = ClosedForm(model, mapping, gpu, precision, PYTORCH if pytorch else ENGINE)
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
    """(max_batch_size, max_num_tokens, share of free memory for the KV cache) of the release's own benchmark.

    Up to 0.14 they are in a table: the overview of 0.11 prints it, and trtllm-bench has it as benchmark_config.yml.
    Later releases estimate how many requests fit, and round up.
    """
    if point.release in TABLED:
        return (*_tabled(point), TABLED[point.release])
    fit = _requests_that_fit(GPUS[point.gpu], SHAPES[point.model], PRECISIONS[point.precision], point)
    sequences = min(fit, 4096)
    tokens = min(sequences * (1 + point.prompt / point.output), 32768)
    return (
        _rounded(sequences, 64, ((256, 32), (1024, 128)), 256),
        _rounded(tokens, 2048, ((4096, 256), (8192, 512)), 1024),
        0.95,
    )


def _tabled(point: Point) -> tuple[int, int]:
    """(max_batch_size, max_num_tokens), for some lengths of their own: the table goes by prompt + output, in 0.11 by
    both."""
    length = point.prompt + point.output
    if point.model == "Llama-2-7B":
        return 4096, 8192
    if point.model == "Llama-2-70B":
        few = length == 2176 and (point.release != "0.11" or point.output == 2048)
        four = (256, 8192) if length == 4224 else (4096, 8192)
        return {2: (2048, 2048), 4: four, 8: (1024 if few else 8192, 16384)}[point.tp]
    if point.model.endswith("8B"):
        return 2048, 8192
    two = (2048, 1024) if length == 4096 else (256, 1024)
    return {1: (2048, 2048), 2: two, 4: (2048, 1024), 8: (8192, 16384)}[point.tp]


def tuned(fit: int) -> int:
    """The batch size to which the executor tunes itself when `fit` sequences fit: DynamicBatchTuner in TensorRT-LLM."""
    for below, size in ((144, 128), (336, 256), (672, 512), (832, 768), (1280, 1024), (1664, 1536)):
        if fit < below:
            return size
    whole = fit // 512 * 512
    return whole if fit < whole + 128 else fit


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
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    groups: dict[str, list[tuple[float, float]]] = defaultdict(list)
    rows: dict[str, dict[str, str]] = defaultdict(dict)
    for point in points():
        predicted = point.predicted()
        before, now = point.earlier / point.published - 1, predicted / point.published - 1
        use = "held out" if point.held_out else "used"
        row = f"{point.release} {point.model[6:]} {point.gpu.removesuffix('-sxm')} {point.precision} tp{point.tp}"
        rows[f"{row}{'' if point.held_out else ' *'}"][f"{point.prompt}/{point.output}"] = f"{before:+.0%} → {now:+.0%}"
        for group in ("all", point.release, f"{point.gpu} {point.precision}", "since 0.14"):
            if group != "since 0.14" or point.release >= "0.14":
                groups[f"{group}, {use}"].append((before, now))
        if point.release >= "0.14" and point.held_out:
            groups[f"{point.gpu} {point.precision} since 0.14, held out"].append((before, now))
        if not (asked.summary or asked.table):
            print(
                f"{point.release:5} {point.model:15} {point.precision:5} {point.gpu:9} tp{point.tp} "
                f"{point.prompt:5}/{point.output:<5} published {point.published:9,.0f}  earlier {before:+7.1%}  "
                f"now {predicted:9,.0f} {now:+7.1%}  {use}"
            )
    if asked.table:
        print_table(rows)
    elif not asked.summary:
        for what, published, milliseconds in first_tokens():
            print(
                f"first token, {what:40} {published:6.1f} ms  {milliseconds:6.1f} {milliseconds / published - 1:+7.1%}"
            )
    if not asked.table:
        for group, errors in sorted(groups.items()):
            earlier, ours = zip(*errors, strict=True)
            print(f"{group:38} {len(errors):4} points   earlier {describe(earlier)}   now {describe(ours)}")


def print_table(rows: dict[str, dict[str, str]]) -> None:
    columns = sorted({c for row in rows.values() for c in row}, key=lambda c: tuple(map(int, c.split("/"))))
    print(f"| release, model, GPU, tp | {' | '.join(columns)} |")
    print("|---" * (len(columns) + 1) + "|")
    for name, row in sorted(rows.items()):
        print(f"| {name} | {' | '.join(row.get(c, '').replace('%', '') for c in columns)} |")


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
