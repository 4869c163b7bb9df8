"""KV cache blocks that are reused when many prompts share prefixes: the front end's choice of a replica, and Envoy's.

    toolkit up --detach CONFIG
    python benchmarks/prefix.py CONFIG --prefixes 32 --each 6

The same prompts in the same order, in turns through OpenAI's API (by cached prefix and load) and through Triton's HTTP
(least requests). Prefixes are new in each turn. They fit into the KV pools of all replicas together, not into one.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import string
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment

REUSED = re.compile(
    r'^nv_trt_llm_kv_cache_block_metrics\{[^}]*kv_cache_block_type="reused"[^}]*\} ([\d.e+]+)', re.MULTILINE
)


def reused(deployment: Deployment) -> float:
    """Blocks that all replicas have reused so far."""
    total = 0.0
    for replica in deployment.per_replica():
        with urllib.request.urlopen(f"http://127.0.0.1:{replica.serving.metrics_port}/metrics") as page:
            total += sum(map(float, REUSED.findall(page.read().decode())))
    return total


def ask(deployment: Deployment, openai: bool, prompt: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", deployment.gateway.port, timeout=60)
    body = {"text_input": prompt, "max_tokens": 2}
    path = "/v2/models/ensemble/generate"
    if openai:
        body = {"model": deployment.served_name, "prompt": prompt, "max_tokens": 2, "temperature": 0}
        path = "/v1/completions"
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    assert answer.status == 200, text


def turn(deployment: Deployment, openai: bool, options: argparse.Namespace, seed: int) -> float:
    draw = random.Random(seed)
    prefixes = ["".join(draw.choices(string.ascii_letters, k=options.characters)) for _ in range(options.prefixes)]
    prompts = [
        f"{prefix} {number}" for number in range(options.each) for prefix in draw.sample(prefixes, len(prefixes))
    ]
    before = reused(deployment)
    with ThreadPoolExecutor(options.clients) as pool:
        list(pool.map(lambda prompt: ask(deployment, openai, prompt), prompts))
    return reused(deployment) - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    for name, default in (("prefixes", 32), ("each", 6), ("characters", 300), ("clients", 4), ("turns", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    deployment = load_deployment(options.config)
    for number in range(options.turns):
        ours, least = (turn(deployment, openai, options, 2 * number + openai) for openai in (True, False))
        print(
            f"turn {number}: reused blocks {ours:.0f} by prefix and load, {least:.0f} by least requests: "
            f"{ours / max(least, 1):.2f} x; load average {os.getloadavg()[0]:.1f}"
        )


if __name__ == "__main__":
    main()
