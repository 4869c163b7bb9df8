"""The planner's closed loops next to NIM's published runs: TTFT and ITL against the number of users.

    python benchmarks/plan_closed_loop.py

Published: "NIM for LLMs: performance", version 1.8.0 of Llama-3.3-70B-Instruct, FP8, TP 2 on two H100 SXM, prompts of
5,000 tokens and answers of 500, all of the same length. The tables give means. They do not give the settings of the
engine: up to 256 sequences, 8,192 tokens a step and 95 % of the memory are assumptions. *Together* is what the planner
said when all users began at the same moment; *apart* is what it says now.
"""

from __future__ import annotations

import statistics
from pathlib import Path

from toolkit.config.deployment import Deployment, with_settings
from toolkit.config.load import load_deployment
from toolkit.plan.predict import predict
from toolkit.simulate import Simulation
from toolkit.workload import traffic_of

FLAGSHIP = Path(__file__).parent.parent / "build_configs/llama3-70b-h100-pp4tp2-fp16.yaml"
PUBLISHED = {1: (406.77, 18.58), 5: (546.7, 21.83), 25: (688.69, 38.75), 50: (834.51, 59.73)}
"""TTFT and ITL in ms."""
SEEDS, ROUNDS = 5, 8


def main() -> None:
    print(f"{'users':>5} {'TTFT':>14} {'together':>14} {'apart, median and range':>36} {'ITL':>8} {'apart':>14}")
    for users, (ttft, itl) in PUBLISHED.items():
        together = mean(run(users, 0, together=True), "ttft_ms")
        runs = [run(users, seed) for seed in range(SEEDS)]
        firsts = sorted(mean(one, "ttft_ms") for one in runs)
        middle, gap = statistics.median(firsts), statistics.median(mean(one, "itl_ms") for one in runs)
        print(
            f"{users:5} {ttft:11.0f} ms {together:5.0f} {together / ttft - 1:+7.0%} "
            f"{middle:9.0f} {middle / ttft - 1:+5.0%}  ({firsts[0]:.0f} to {firsts[-1]:.0f}) "
            f"{itl:9.1f} {gap:7.1f} {gap / itl - 1:+5.0%}"
        )


def run(users: int, seed: int, together: bool = False) -> Simulation:
    prediction = predict(deployment(users, seed))
    return prediction.simulate(traffic_of(prediction.deployment)) if together else prediction.simulation


def mean(simulation: Simulation, metric: str) -> float:
    value = simulation.measured({}).distributions[metric].mean
    assert value is not None
    return value


def deployment(users: int, seed: int) -> Deployment:
    workload = {"prompt_tokens": 5000, "output_tokens": 500, "requests": ROUNDS * users}
    return with_settings(
        load_deployment(FLAGSHIP),
        parallel={"tp": 2, "pp": 1},
        hardware={"gpus": 2, "gpu_memory_limit": 0.95},
        model={"quantization": "fp8"},
        limits={"max_sequences": 256, "max_queue_size": 1000},
        workload={"arrivals": "closed", "users": users, "seed": seed, **workload},
    )


if __name__ == "__main__":
    main()
