"""The planner's prediction of a rehearsal beside real load tests of it: TTFT, TPOT and throughput.

    toolkit sample smollm2 models/smollm2-135m-instruct
    python benchmarks/plan_rehearsal.py build_configs/smollm2-rehearsal.yaml [--tp 2 --pp 4] [--rate 0.5] [--runs 2]

Builds the deployment in a folder of its own, times its steps (`toolkit calibrate`), predicts, then serves it with the
real Triton and sends it the same requests at the same times: Poisson, answers of 16 to 48 tokens, prompts of one length
whose beginning is the chat template's. About 7 minutes. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import yaml
from tokenizers import Tokenizer

THINGS = """
a lighthouse, a river, two brothers, an old ship, a mountain village, a lost dog, a clock maker, the first snow, a night
train, a desert, a garden, a painter, a school, a storm, a baker, a library, a bridge, a farm, a musician, an island
"""
FIGURES = ("TTFT P50 ms", "TPOT P50 ms", "tokens/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--tp", type=int, default=2)
    parser.add_argument("--pp", type=int, default=4)
    parser.add_argument("--rate", type=float, default=0.5)
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--runs", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = variant(options, Path(folder))
        for command in ("build", "repo", "calibrate"):
            toolkit(command, file)
        plan = json.loads(toolkit("plan", file, "--json", "--calibration", f"{folder}/output/calibration.json"))
        toolkit("serve", file, "--detach")
        try:
            runs = [load_test(file) for _ in range(options.runs)]
        finally:
            toolkit("stop", file)
    show(options, plan["prediction"], runs)


def load_test(file: Path) -> tuple[float, float, float]:
    """FIGURES of the requests that are judged, by the metric definitions of the load test."""
    from toolkit.client import GenerateRequest, connect
    from toolkit.client.chat import chat_prompt
    from toolkit.config import Deployment
    from toolkit.load.measure import measure
    from toolkit.slo.metrics import Measured
    from toolkit.workload import traffic_of

    deployment = Deployment.load(file)
    traffic, lines, samples = traffic_of(deployment), questions(), {}
    begin = time.time() + 1

    def send(number: int) -> None:
        planned = traffic.requests[number]
        prompt = chat_prompt(deployment.model.path, lines[number % len(lines)])
        client = connect(deployment.url("http"))
        time.sleep(max(0.0, begin + planned.due - time.time()))
        request = GenerateRequest(prompt, planned.output_tokens)
        due = begin + planned.due
        samples[number] = measure(client, request, due=due, protocol="http", deadline_s=120)
        client.close()

    threads = [threading.Thread(target=send, args=(number,)) for number in range(len(traffic.requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    measured = Measured([samples[number] for number in sorted(samples)][traffic.warmup :], {})
    assert not measured.failed, measured.errors
    latencies = (measured.distributions[name].percentile(50) for name in ("ttft_ms", "tpot_ms"))
    return (*latencies, measured.tokens_per_s)


def questions() -> list[str]:
    return [f"Write a very long and detailed story about {thing}." for thing in " ".join(THINGS.split()).split(", ")]


def variant(options: argparse.Namespace, folder: Path) -> Path:
    """The deployment with another split, one prompt length, and its workload as the load test sends it."""
    from toolkit.client.chat import chat_prompt

    content = yaml.safe_load(options.config.read_text())
    model = (options.config.parent / content["model"]["path"]).resolve()
    lines = questions()
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    ids = [tokenizer.encode(chat_prompt(model, line)).ids for line in lines]
    shared = next(n for n, tokens in enumerate(zip(*ids, strict=False)) if len(set(tokens)) > 1)
    content |= {"name": "rehearsal", "output": str(folder / "output")}
    content["model"]["path"] = str(model)
    content["parallel"] = {"tp": options.tp, "pp": options.pp}
    content["workload"] = {
        "arrivals": "poisson",
        "rate": options.rate,
        "requests": options.requests,
        "prompt_tokens": round(statistics.mean(map(len, ids))),
        "shared_prefix_tokens": shared,
        "output_tokens": {"min": 16, "max": 48},
    }
    file = folder / "rehearsal.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def toolkit(command: str, file: Path, *options: str) -> str:
    print(f"toolkit {command} ...", file=sys.stderr, flush=True)
    arguments = [sys.executable, "-m", "toolkit", command, str(file), *options]
    found = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    if found.returncode:
        sys.exit(f"toolkit {command} ended with {found.returncode}")
    return found.stdout


def show(options: argparse.Namespace, prediction: dict, runs: list[tuple[float, float, float]]) -> None:
    metrics = prediction["metrics"]
    predicted = (metrics["ttft_ms"]["p50"], metrics["tpot_ms"]["p50"], prediction["tokens_per_s"])
    name = f"{options.config.stem} tp{options.tp} pp{options.pp}, Poisson {options.rate:g}/s"
    print(f"{name}, load average {os.getloadavg()[0]:.1f}")
    for figure, value, measured in zip(FIGURES, predicted, zip(*runs, strict=True), strict=True):
        middle = statistics.median(measured)
        each = ", ".join(f"{one:.1f}" for one in measured)
        print(f"    {figure:12s} predicted {value:7.1f}   measured {middle:7.1f} ({each})   {value / middle - 1:+.0%}")


if __name__ == "__main__":
    main()
