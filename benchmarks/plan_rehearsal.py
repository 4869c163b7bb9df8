"""The planner's prediction of a rehearsal beside real load tests of it: TTFT, TPOT and throughput.

    toolkit sample smollm2 models/smollm2-135m-instruct
    python benchmarks/plan_rehearsal.py build_configs/smollm2-rehearsal.yaml [--tp 2 --pp 4] [--users 16 | --rate 0.3]

Builds the deployment in a folder of its own, times its steps (`toolkit calibrate`), then serves it with the real Triton
and sends it what the plan simulates: as many users or requests a second, prompts of one length whose beginning is the
chat template's, answers of 16 to 48 tokens. Two predictions: from the calibration made before, and from the same with
the slowdowns of the very run, which leaves out what else the machine did between the two. About 8 minutes; run it on a
quiet machine.
"""

from __future__ import annotations

import argparse
import dataclasses
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
Figures = tuple[float, float, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--tp", type=int, default=2)
    parser.add_argument("--pp", type=int, default=4)
    traffic = parser.add_mutually_exclusive_group()
    traffic.add_argument("--users", type=int, default=16, help="closed loop: each asks again when answered")
    traffic.add_argument("--rate", type=float, help="Poisson, requests/s")
    parser.add_argument("--requests", type=int, default=80)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = variant(options, Path(folder))
        for command in ("build", "repo", "calibrate"):
            toolkit(command, file)
        calibration = Path(folder) / "output" / "calibration.json"
        before = predicted(file, calibration)
        rows = [(before, *one_run(file, calibration, Path(folder))) for _ in range(options.runs)]
    show(options, rows)


def one_run(file: Path, calibration: Path, folder: Path) -> tuple[Figures, Figures]:
    """What is predicted from this run's own slowdowns, and what was measured."""
    from toolkit.calibrate.service import read_steps, slowdowns
    from toolkit.steptimes.calibration import load

    os.environ["TOOLKIT_STEPS"] = str(folder / "steps.jsonl")
    toolkit("serve", file, "--detach")
    try:
        measured = load_test(file)
    finally:
        toolkit("stop", file)
    alone = dataclasses.replace(load(calibration).measured_steps, crowding=())
    found = slowdowns(read_steps(folder / "steps.jsonl"), alone)
    content = json.loads(calibration.read_text())
    content["crowding"] = [{"in_flight": number, "slowdown": slowdown} for number, slowdown in found.items()]
    print(f"slowdowns {', '.join(f'{n}: {value:.2f}' for n, value in found.items())}", file=sys.stderr)
    own = folder / "own.json"
    own.write_text(json.dumps(content))
    return predicted(file, own), measured


def predicted(file: Path, calibration: Path) -> Figures:
    prediction = json.loads(toolkit("plan", file, "--json", "--calibration", str(calibration)))["prediction"]
    metrics = prediction["metrics"]
    return metrics["ttft_ms"]["p50"], metrics["tpot_ms"]["p50"], prediction["tokens_per_s"]


def load_test(file: Path) -> Figures:
    """FIGURES of the requests that are judged, by the metric definitions of the load test."""
    from toolkit.client import GenerateRequest, connect
    from toolkit.clock import now
    from toolkit.config.load import load_deployment
    from toolkit.load.exchange import exchange
    from toolkit.model.chat_template import chat_prompt
    from toolkit.slo.metrics import Measured
    from toolkit.workload import traffic_of

    deployment = load_deployment(file)
    traffic, lines, samples = traffic_of(deployment), questions(), {}
    prompts = [chat_prompt(deployment.model.path, line) for line in lines]
    begin, left, lock = now() + 1, iter(range(len(traffic.requests))), threading.Lock()

    def user() -> None:
        with connect(deployment.url("http")) as client:
            while True:
                with lock:
                    number = next(left, None)
                if number is None:
                    return
                planned = traffic.requests[number]
                due = now() if traffic.users else begin + planned.due
                time.sleep(max(0.0, due - now()))
                request = GenerateRequest(prompts[number % len(prompts)], planned.output_tokens)
                samples[number] = exchange(client, request, due=due, protocol="http", deadline_s=120).sample

    threads = [threading.Thread(target=user) for _ in range(traffic.users or len(traffic.requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    measured = Measured([samples[number] for number in sorted(samples)][traffic.warmup :], {})
    assert not measured.failed, measured.errors
    ttft_ms, tpot_ms = (measured.distributions[name].percentile(50) for name in ("ttft_ms", "tpot_ms"))
    assert ttft_ms is not None and tpot_ms is not None
    return ttft_ms, tpot_ms, measured.tokens_per_s


def questions() -> list[str]:
    return [f"Write a very long and detailed story about {thing}." for thing in " ".join(THINGS.split()).split(", ")]


def variant(options: argparse.Namespace, folder: Path) -> Path:
    """The deployment with another split, one prompt length, and its workload as the load test sends it."""
    from toolkit.model.chat_template import chat_prompt

    content = yaml.safe_load(options.config.read_text())
    model = (options.config.parent / content["model"]["path"]).resolve()
    lines = questions()
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    ids = [tokenizer.encode(chat_prompt(model, line)).ids for line in lines]
    shared = next(n for n, tokens in enumerate(zip(*ids, strict=False)) if len(set(tokens)) > 1)
    content |= {"name": "rehearsal", "output": str(folder / "output")}
    content["model"]["path"] = str(model)
    content["parallel"] = {"tp": options.tp, "pp": options.pp}
    open_loop = {"arrivals": "poisson", "rate": options.rate}
    content["workload"] = {
        **(open_loop if options.rate else {"arrivals": "closed", "users": options.users}),
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


def show(options: argparse.Namespace, rows: list[tuple[Figures, Figures, Figures]]) -> None:
    traffic = f"Poisson {options.rate:g}/s" if options.rate else f"{options.users} users"
    print(f"{options.config.stem} tp{options.tp} pp{options.pp}, {traffic}, load average {os.getloadavg()[0]:.1f}")
    print(f"    {'':14s}{'measured':>10s}   {'plan before':>18s}   {'with its own slowdowns':>22s}")
    for index, name in enumerate(FIGURES):
        for before, own, measured in ([figures[index] for figures in row] for row in rows):
            print(f"    {name:14s}{measured:10.1f}   {before:10.1f} {before / measured - 1:+7.0%}", end="")
            print(f"   {own:14.1f} {own / measured - 1:+7.0%}")


if __name__ == "__main__":
    main()
