from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from toolkit.cli.common import json_option, note, print_json
from toolkit.cli.progress import progress
from toolkit.processes import ended_by_signals

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("model_dir", type=PATH)
@click.option("--output", type=PATH, metavar="FILE", help="Default: MODEL-HARDWARE.yaml in this folder.")
@click.option("--gpus", type=click.IntRange(min=1), default=8, show_default=True, help="Number of GPUs.")
@click.option("--hardware", default="h100-sxm", show_default=True, metavar="NAME", help="Which GPU.")
@click.option(
    "--workload",
    default="chat-1k",
    show_default=True,
    metavar="NAME",
    help="Prompt and output tokens: chat-1k 1024/128, chat-2k 2048/256, code-1k 1024/512, rag-4k 4096/256, "
    "summary-7k 7168/512, short 128/128.",
)
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Requests/s. Default: the SLO's.")
@click.option(
    "--quantization",
    type=click.Choice(["none", "fp8"]),
    help="Precision of the layers. Default: none, or fp8 if the model fits only with it.",
)
@click.option(
    "--max-sequences",
    type=click.IntRange(min=1),
    help="Most sequences in flight over all replicas. Default: what serves best, up to 512.",
)
@click.option(
    "--max-seq-len",
    type=click.IntRange(min=1),
    help="Most tokens of prompt and answer together. Default: 8192, or the model's context length if that is less.",
)
@click.option(
    "--slo",
    multiple=True,
    metavar="NAME=VALUE",
    help="A target, for example ttft_ms.p99=800. Default: TTFT P99 1500 ms, TPOT P50 50 and P99 100 ms, prefill P50 "
    "500 and P99 1000 ms, 8 requests/s, 99 % of requests inside all limits.",
)
@click.option(
    "--objective",
    type=click.Choice(["slo", "latency", "throughput", "cost"]),
    default="slo",
    show_default=True,
    help="What chooses the layout.",
)
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@json_option
def init(model_dir: Path, force: bool, as_json: bool, **options: Any) -> None:
    """Write a first YAML for a model, with comments and the layout that serves the workload best.

    Only the model's config.json is needed. Layout and batch limits are the best ones of toolkit plan --compare.
    """
    from toolkit.plan.show.data import comparison_data
    from toolkit.plan.show.report import comparison_text
    from toolkit.plan.show.wording import layout_in_words
    from toolkit.plan.starter import Wanted, start

    with ended_by_signals(), progress("simulating layouts", "layouts") as report:
        started = start(Wanted(model_dir, **options), force, report)
    if as_json:
        print_json({"file": str(started.file), "comparison": comparison_data(started.comparison)})
    else:
        from toolkit.reports.terminal import Terminal

        Terminal(width=100).print(comparison_text(started.comparison))
        best = started.comparison.best
        click.echo(f"\n{started.file}: {best.name}, {layout_in_words(best.deployment)}; {started.why}")
    note(f"next: toolkit plan {started.file}")
