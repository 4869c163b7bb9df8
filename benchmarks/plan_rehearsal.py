"""The planner's prediction of a rehearsal beside load tests of it: TTFT, TPOT and throughput.

    toolkit sample smollm2 models/smollm2-135m-instruct
    python benchmarks/plan_rehearsal.py build_configs/smollm2-rehearsal.yaml [--tp 2 --pp 4] [--users 8] [--runs 3]

Builds the deployment in a folder of its own, times its steps (`toolkit calibrate`), predicts, then serves it with the
real Triton and load-tests it with the same workload: prompts of one length, of which the beginning is shared as the chat
template makes it, and answers that never end before --tokens. About 6 minutes. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from tokenizers import Tokenizer

THINGS = [
    "a lighthouse",
    "a river",
    "two brothers",
    "an old ship",
    "a mountain village",
    "a lost dog",
    "a clock maker",
    "the first snow",
    "a night train",
    "a desert",
    "a garden",
    "a painter",
    "a school",
    "a storm",
    "a baker",
    "a library",
    "a bridge",
    "a farm",
    "a musician",
    "an island",
]
FIGURES = {"TTFT P50 ms": "time_to_first_token", "TPOT P50 ms": "time_per_output_token"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--tp", type=int, default=2)
    parser.add_argument("--pp", type=int, default=4)
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = variant(options, Path(folder))
        for command in ("build", "repo", "calibrate"):
            toolkit(command, file)
        plan = json.loads(toolkit("plan", file, "--json", "--calibration", f"{folder}/output/calibration.json"))
        toolkit("serve", file, "--detach")
        try:
            runs = [json.loads(toolkit("loadtest", file, "--json")) for _ in range(options.runs)]
        finally:
            toolkit("stop", file)
    show(options, plan["prediction"], runs)


def variant(options: argparse.Namespace, folder: Path) -> Path:
    """The deployment with another split, one prompt length, and its workload as the load test sends it."""
    from toolkit.client.chat import chat_prompt

    content = yaml.safe_load(options.config.read_text())
    model = (options.config.parent / content["model"]["path"]).resolve()
    lines = [f"Write a very long and detailed story about {thing}." for thing in THINGS]
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    ids = [tokenizer.encode(chat_prompt(model, line)).ids for line in lines]
    shared = next(n for n, tokens in enumerate(zip(*ids, strict=False)) if len(set(tokens)) > 1)
    (folder / "prompts.txt").write_text("\n".join(lines) + "\n")
    users, requests = options.users, 8 * options.users
    content |= {"name": "rehearsal", "output": str(folder / "output")}
    content["model"]["path"] = str(model)
    content["parallel"] = {"tp": options.tp, "pp": options.pp}
    content["loadtest"] = {"users": users, "requests": requests, "warmup_requests": users, "max_tokens": options.tokens}
    content["loadtest"]["prompts"] = str(folder / "prompts.txt")
    content["workload"] = {
        "arrivals": "closed",
        "users": users,
        "requests": requests + users,
        "prompt_tokens": round(statistics.mean(map(len, ids))),
        "shared_prefix_tokens": shared,
        "output_tokens": options.tokens,
    }
    file = folder / "rehearsal.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def toolkit(command: str, file: Path, *options: str) -> str:
    print(f"toolkit {command} ...", file=sys.stderr, flush=True)
    arguments = [sys.executable, "-m", "toolkit", command, str(file), *options]
    found = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    if found.returncode not in (0, 1):  # 1: the load test missed a target, which is not the question here
        sys.exit(f"toolkit {command} ended with {found.returncode}")
    return found.stdout


def show(options: argparse.Namespace, prediction: dict, runs: list[dict]) -> None:
    predicted = {
        "TTFT P50 ms": prediction["metrics"]["ttft_ms"]["p50"],
        "TPOT P50 ms": prediction["metrics"]["tpot_ms"]["p50"],
        "tokens/s": prediction["tokens_per_s"],
    }
    name = f"{options.config.stem} tp{options.tp} pp{options.pp}, {options.users} users"
    print(f"{name}, load average {os.getloadavg()[0]:.1f}")
    for figure, value in predicted.items():
        measured = [measured_of(figure, run) for run in runs]
        middle = statistics.median(measured)
        each = ", ".join(f"{one:.1f}" for one in measured)
        print(f"    {figure:12s} predicted {value:7.1f}   measured {middle:7.1f} ({each})   {value / middle - 1:+.0%}")


def measured_of(figure: str, run: dict) -> float:
    if figure == "tokens/s":
        return run["metrics"]["output_token_throughput"]["avg"]
    return run["metrics"][FIGURES[figure]]["p50"]


if __name__ == "__main__":
    main()
