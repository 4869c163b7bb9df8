"""The planner's saturated throughput beside NVIDIA's published tables: output tokens/s of one group of H100 SXM.

    python benchmarks/plan_published.py

Published: TensorRT-LLM's performance overview of release 0.17 (Llama-3.x-70B, FP8 weights and KV cache, one group,
all requests at once, request counts not given). Settings that the tables do not give are guesses: up to 1,024
sequences, 8,192 tokens a step, 95 % of free memory for the KV cache, no chunked context.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path

from toolkit.config import Deployment, with_settings
from toolkit.plan.predict import predict
from toolkit.simulate import simulate
from toolkit.simulate.capacity import middle_throughput
from toolkit.workload import traffic_of

FLAGSHIP = Path(__file__).parent.parent / "build_configs/llama3-70b-h100-pp4tp2-fp16.yaml"
PUBLISHED = {
    (2, 128, 128): 6377,
    (2, 500, 2000): 4914,
    (2, 1000, 1000): 4227,
    (2, 2048, 128): 749,
    (4, 128, 128): 9619,
    (4, 1000, 1000): 7727,
}
SEQUENCES = 1024


def main() -> None:
    ratios = []
    for (tp, prompt, output), published in PUBLISHED.items():
        predicted = throughput(tp, prompt, output)
        ratios.append(predicted / published)
        print(f"tp{tp} {prompt:5}/{output:<5} published {published:6,}  predicted {predicted:7,.0f}  {ratios[-1]:.2f}")
    print(f"median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")


def throughput(tp: int, prompt: int, output: int) -> float:
    """Output tokens/s in the middle half of a run of four times as many requests as fit."""
    sizes = {"prompt_tokens": prompt, "output_tokens": output, "requests": 4 * SEQUENCES}
    deployment = with_settings(
        Deployment.load(FLAGSHIP),
        parallel={"tp": tp, "pp": 1},
        hardware={"gpus": tp, "gpu_memory_limit": 0.95},
        model={"quantization": "fp8"},
        limits={"max_sequences": SEQUENCES, "max_queue_size": 4 * SEQUENCES, "max_seq_len": prompt + output},
        scheduler={"chunked_context": False, "policy": "max_utilization"},
        workload=sizes,
    )
    prediction = predict(deployment)
    together = replace(traffic_of(deployment).at(1e6), users=None)
    return middle_throughput(simulate(together, prediction.scheduling, prediction.times)) * output


if __name__ == "__main__":
    main()
