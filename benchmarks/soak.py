"""Memory of a served group over many requests: a row of the table every 200.

    toolkit serve --detach CONFIG
    python benchmarks/soak.py CONFIG [--requests 2000] [--clients 16]

The requests are of all kinds: streamed and whole, over HTTP and gRPC, through tensorrt_llm_bls and ensemble,
greedy and sampled, with stop words, refused ones, and clients that leave after a few tokens. Results are in
benchmarks/soak.md.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from toolkit.client import Client, GenerateRequest, ServerRefused, connect
from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.serve import status

EVERY = 200
SHOWN = ("tensorrt_llm", "tensorrt_llm_bls", "preprocessing", "postprocessing")
LINES = ("Shall I compare thee", "A tiny baker", "床前明月光", "Tyger Tyger", "I met a traveller", "Eight ranks")
MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=16)
    options = parser.parse_args()
    deployment = load_deployment(options.config)
    processes = processes_of_rank_0(deployment)
    print(f"{os.cpu_count()} cores, load average before {os.getloadavg()[0]:.1f}")
    print(f"| requests | seconds | {' | '.join(f'{name} MiB' for name in processes)} | KV blocks used | tokens |")
    print("|---|" + "---|" * (len(processes) + 3))
    start = time.monotonic()
    with connect(deployment.url("http")) as http, connect(deployment.url("grpc")) as grpc:
        for done in range(0, options.requests + 1, EVERY):
            if done:
                with ThreadPoolExecutor(options.clients) as pool:
                    numbers = range(done - EVERY, done)
                    list(pool.map(lambda number: ask((http, grpc)[number % 2], number), numbers))
            elapsed = time.monotonic() - start
            used, tokens = at_rest(deployment)
            memory = " | ".join(f"{process.memory_info().rss / MIB:.1f}" for process in processes.values())
            print(f"| {done} | {elapsed:.0f} | {memory} | {used} | {tokens} |", flush=True)
    print(f"load average after {os.getloadavg()[0]:.1f}")


def ask(client: Client, number: int) -> None:
    """Request `number` of the soak: what it is follows from the number alone."""
    chance = random.Random(number)
    prompt, tokens, kind = chance.choice(LINES) * chance.randint(1, 5), chance.randint(1, 60), number // 2 % 6
    if kind == 0:
        for _ in client.generate_stream(GenerateRequest(prompt, tokens, id=f"soak{number}", model="ensemble")):
            pass
    elif kind == 1:
        for _ in client.generate_stream(GenerateRequest(prompt, tokens, sampling={"return_log_probs": True})):
            pass
    elif kind == 2:
        sampling = {"top_k": 9, "temperature": 1.5, "seed": number, "stop_words": ["the"]}
        for _ in client.generate_stream(GenerateRequest(prompt, tokens, sampling=sampling)):
            pass
    elif kind == 3:
        events = client.generate_stream(GenerateRequest(prompt, 300, sampling={"end_id": -1}))
        for _ in range(3):
            next(events)
        events.close()
    elif kind == 4:
        client.generate(GenerateRequest(prompt, tokens))
    else:
        try:
            client.generate(GenerateRequest(prompt, 0))
        except ServerRefused:
            return
        raise AssertionError("max_tokens 0 was not refused")


def processes_of_rank_0(deployment: Deployment) -> dict[str, psutil.Process]:
    """tritonserver and the Python processes of its models, by name."""
    family = psutil.Process(status(deployment).pid).children(recursive=True)
    rank_0 = [process for process in family if process.environ().get("OMPI_COMM_WORLD_RANK") == "0"]
    found = {}
    for process in rank_0:
        scripts = [Path(part).parts[-3] for part in process.cmdline() if part.endswith("/1/model.py")]
        if scripts and scripts[0] in SHOWN:
            found[scripts[0]] = process
        elif not scripts and "tritonserver" in process.name():
            found["tritonserver"] = process
    return dict(sorted(found.items()))


def at_rest(deployment: Deployment) -> tuple[int, int]:
    """(KV blocks used, tokens generated) half a second after no request was active any more."""
    while _value(metrics(deployment), "active"):
        time.sleep(0.1)
    time.sleep(0.5)
    text = metrics(deployment)
    return _value(text, "used"), _value(text, "total_output_tokens")


def metrics(deployment: Deployment) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{deployment.serving.metrics_port}/metrics") as answer:
        page: bytes = answer.read()
    return page.decode()


def _value(text: str, label: str) -> int:
    found = re.search(rf'^nv_\w*(?:metrics|_sum){{.*"{label}".*}} (\d+)$', text, re.MULTILINE)
    assert found, label
    return int(found[1])


if __name__ == "__main__":
    main()
