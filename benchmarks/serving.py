"""Tokens a second through Triton, pre- and post-processing, beside the same engine without them.

    python benchmarks/serving.py CONFIG [--tp 1 --pp 1] [--streams 1 16] [--tokens 48] [--rounds 2] [--protocol http]

Each round drives the engine directly, then serves it and drives tensorrt_llm_bls, with the load of
benchmarks/closed_loop.py and the same prompts.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from closed_loop import measure
from engine import start, variant

from toolkit.client import GenerateRequest, connect
from toolkit.config.load import load_deployment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--tp", type=int)
    parser.add_argument("--pp", type=int)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--protocol", choices=("http", "grpc"), default="http")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = variant(options.config, Path(folder), options.tp, options.pp)
        for _ in range(options.rounds):
            direct = of_engine(config, options.streams, options.tokens)
            served = of_server(config, options.streams, options.tokens, options.protocol)
            for streams, alone, through in zip(options.streams, direct, served, strict=True):
                print(f"{streams} streams: Triton / engine = {through / alone:.2f}", flush=True)


def of_engine(config: Path, streams: list[int], tokens: int) -> list[float]:
    """Tokens a second without Triton, for each number of streams."""
    from tokenizers import Tokenizer

    from toolkit.engine.rehearsal.engine import Event
    from toolkit.engine.request import GenerationRequest

    engine, workers = start(config)
    tokenizer = Tokenizer.from_file(str(load_deployment(config).model.path / "tokenizer.json"))

    def ask(prompt: str, length: int, count: Callable[[], None]) -> None:
        done = threading.Event()

        def deliver(event: Event) -> None:
            count()
            if event.finished:
                done.set()

        engine.submit([GenerationRequest(input_ids=tokenizer.encode(prompt).ids, request_output_len=length)], deliver)
        done.wait()

    rates = [say("engine", *measure(ask, number, tokens)) for number in streams]
    engine.close()
    for worker in workers:
        worker.join()
    return rates


def of_server(config: Path, streams: list[int], tokens: int, protocol: str) -> list[float]:
    """Tokens a second of tensorrt_llm_bls, for each number of streams."""
    toolkit(["repo"], config)
    toolkit(["serve", "--detach"], config)
    try:
        with connect(load_deployment(config).url(protocol)) as client:

            def ask(prompt: str, length: int, count: Callable[[], None]) -> None:
                for _ in client.generate_stream(GenerateRequest(prompt, length, sampling={"end_id": -1})):
                    count()

            return [say(f"Triton, {protocol}", *measure(ask, number, tokens)) for number in streams]
    finally:
        toolkit(["stop"], config)


def toolkit(command: list[str], config: Path) -> None:
    subprocess.run([sys.executable, "-m", "toolkit", *command, str(config)], check=True, capture_output=True)


def say(what: str, rate: float, line: str) -> float:
    print(f"{what}, {line}", flush=True)
    return rate


if __name__ == "__main__":
    main()
