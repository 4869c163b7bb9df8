"""Tokens a second through Triton, pre- and post-processing: what benchmarks/engine.py measures without them.

    toolkit serve --detach CONFIG
    python benchmarks/serving.py CONFIG [--streams 1 16] [--tokens 32] [--repeat 3] [--protocol http]

Prompts of 16 words, greedy, no end; the median of `repeat` runs, after one to warm up. A run counts from
the first request to the last token; all requests of a run are sent at once, each by a thread.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import threading
import time
from pathlib import Path

from toolkit.client import Client, GenerateRequest, connect
from toolkit.config import Deployment

WORDS = ("river", "stone", "lamp", "garden", "winter", "paper", "bridge", "seven", "yellow", "quiet", "morning", "song")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--protocol", choices=("http", "grpc"), default="http")
    options = parser.parse_args()
    deployment = Deployment.load(options.config)
    with connect(deployment.url(options.protocol)) as client:
        for streams in options.streams:
            run(client, streams, options.tokens)
            rates = [run(client, streams, options.tokens) for _ in range(options.repeat)]
            print(
                f"{deployment.name} {options.protocol} {streams} streams: {statistics.median(rates):.1f} tok/s "
                f"({min(rates):.1f} to {max(rates):.1f}), load average {os.getloadavg()[0]:.1f}",
                flush=True,
            )


def run(client: Client, streams: int, tokens: int) -> float:
    """Tokens a second of `streams` requests sent at once. Raises RuntimeError when a token is missing."""
    counts: list[int] = []

    def ask() -> None:
        prompt = " ".join(random.choices(WORDS, k=16))
        request = GenerateRequest(prompt, tokens, sampling={"end_id": -1})
        counts.append(sum(1 for _ in client.generate_stream(request)))

    threads = [threading.Thread(target=ask) for _ in range(streams)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    if sum(counts) != streams * tokens:
        raise RuntimeError(f"{sum(counts)} events came for {streams * tokens} tokens")
    return streams * tokens / seconds


if __name__ == "__main__":
    main()
