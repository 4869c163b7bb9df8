"""Tokens a second of the rehearsal engine driven directly, without Triton: one line for each case.

    python benchmarks/engine.py CONFIG [--tp 1 --pp 1] [--streams 1 16] [--tokens 48] [--repeat 3]
                                       [--prompt 16] [--max-num-tokens N]

CONFIG is converted and built if it is not. Prompts of 16 random tokens, greedy, no end, all submitted at
once; the median of `repeat` runs, after one to warm up. A run counts from the first submission to the
last token. The first token is that of the median stream.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import socket
import statistics
import tempfile
import threading
import time
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from toolkit.engine.rehearsal.engine import Event, RehearsalEngine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--tp", type=int)
    parser.add_argument("--pp", type=int)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--max-num-tokens", type=int)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        engine, workers = start(variant(options.config, Path(folder), options.tp, options.pp, options.max_num_tokens))
        mapping = engine.settings.mapping
        for streams in options.streams:
            run(engine, streams, options.prompt, options.tokens)
            runs = [run(engine, streams, options.prompt, options.tokens) for _ in range(options.repeat)]
            rates, firsts = zip(*runs, strict=True)
            print(
                f"{options.config.stem} tp{mapping.tp} pp{mapping.pp} {streams} streams: "
                f"{statistics.median(rates):.1f} tok/s ({min(rates):.1f} to {max(rates):.1f}), first token "
                f"{statistics.median(firsts):.0f} ms ({min(firsts):.0f} to {max(firsts):.0f}), "
                f"load average {os.getloadavg()[0]:.1f}",
                flush=True,
            )
        engine.close()
        for worker in workers:
            worker.join()


def variant(config: Path, folder: Path, tp: int | None, pp: int | None, max_num_tokens: int | None = None) -> Path:
    """The config itself, or a copy in the folder with what is changed, and an output of its own."""
    layout = {name: value for name, value in (("tp", tp), ("pp", pp)) if value}
    if not (layout or max_num_tokens):
        return config
    content = yaml.safe_load(config.read_text())
    content["parallel"] |= layout
    if max_num_tokens:
        content.setdefault("limits", {})["max_num_tokens"] = max_num_tokens
    content["model"]["path"] = str((config.parent / content["model"]["path"]).resolve())
    mapping = content["parallel"]
    content |= {"name": f"{config.stem}-tp{mapping['tp']}pp{mapping['pp']}", "output": str(folder / "output")}
    file = folder / "variant.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def start(config: Path) -> tuple[RehearsalEngine, list[SpawnProcess]]:
    """The engine of a config, and its worker processes."""
    from toolkit.checkpoint import convert
    from toolkit.config.load import load_deployment
    from toolkit.engine import build
    from toolkit.engine.rehearsal.engine import RehearsalEngine
    from toolkit.engine.rehearsal.worker import work
    from toolkit.engine.settings import EngineSettings

    deployment = load_deployment(config)
    convert(deployment)
    build(deployment)
    settings = EngineSettings(
        gpt_model_path=deployment.engine_dir,
        max_tokens_in_paged_kv_cache=deployment.kv_blocks * deployment.kv_cache.tokens_per_block,
        enable_kv_cache_reuse=False,
        enable_chunked_context=deployment.scheduler.chunked_context,
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    processes = multiprocessing.get_context("spawn")
    ranks = range(1, settings.mapping.world_size)
    workers = [processes.Process(target=work, args=(settings, rank, port)) for rank in ranks]
    for worker in workers:
        worker.start()
    return RehearsalEngine(settings, port), workers


def run(engine: RehearsalEngine, streams: int, prompt: int, tokens: int) -> tuple[float, float]:
    """Tokens a second of `streams` requests submitted at once, and the ms to the first token of the median one."""
    from toolkit.engine.request import GenerationRequest

    rnd, done = random.Random(streams), threading.Semaphore(0)
    firsts: dict[Any, float] = {}
    size = engine.settings.model["vocab_size"]
    prompts = [[rnd.randrange(size) for _ in range(prompt)] for _ in range(streams)]
    start = time.perf_counter()

    def note(event: Event) -> None:
        firsts.setdefault(event.sequence, time.perf_counter() - start)
        if event.finished:
            done.release()

    for ids in prompts:
        engine.submit([GenerationRequest(input_ids=ids, request_output_len=tokens)], note)
    for _ in range(streams):
        done.acquire()
    return streams * tokens / (time.perf_counter() - start), statistics.median(firsts.values()) * 1e3


if __name__ == "__main__":
    main()
