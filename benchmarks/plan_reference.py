"""Writes what the planner's step times are held against: Llama-3-70B by NVIDIA's measured kernels.

    pip install aiconfigurator-core==0.12.0
    python benchmarks/plan_reference.py kernels > benchmarks/data/kernel_times.csv     # one row a part of a layer
    python benchmarks/plan_reference.py steps > benchmarks/data/step_times.csv         # whole steps on 8 H100 SXM

Needs no GPU: aiconfigurator-core (Apache-2.0) carries NVIDIA's measurements for H100, H200, B200, L40S (TensorRT-LLM
1.3.0rc20) and A100 (1.0.0).
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import aiconfigurator_core
from aiconfigurator_core.sdk import EngineHandle

LAYERS = 80
Row = tuple[Any, ...]
SYSTEMS = {
    "h100-sxm": ("h100_sxm", "1.3.0rc20"),
    "h200-sxm": ("h200_sxm", "1.3.0rc20"),
    "a100-sxm": ("a100_sxm", "current"),
    "l40s": ("l40s", "1.3.0rc20"),
    "b200-sxm": ("b200_sxm", "1.3.0rc20"),
}
DTYPES = {
    "16": {"gemm_quant_mode": "bfloat16"},
    "fp8": {"gemm_quant_mode": "fp8", "kvcache_quant_mode": "fp8", "fmha_quant_mode": "fp8"},
}
PRODUCTS = ("qkv_gemm", "proj_gemm", "gate_ffn1_gemm", "ffn2_gemm")
ELEMENTWISE = ("add_norm_1", "add_norm_2", "act_gate")


PRECISIONS = {("16", "16"): DTYPES["16"], ("fp8", "fp8"): DTYPES["fp8"], ("fp8", "16"): {"gemm_quant_mode": "fp8"}}
"""Of weights and KV cache."""
LAYOUTS = {(2, 4): 16, (4, 2): 32, (8, 1): 64, (1, 8): 8, (4, 1): 32, (2, 1): 16, (2, 2): 16}
"""(tp, pp): the largest micro-batch. Replicas of a group do not change its steps."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("kernels", "steps"))
    what = parser.parse_args().what
    configs = Path(aiconfigurator_core.__file__).parent / "model_configs"
    with tempfile.TemporaryDirectory() as model:
        config = (configs / "meta-llama--Meta-Llama-3.1-70B_config.json").read_text()
        Path(model, "config.json").write_text(config)
        table = {"kernels": kernels, "steps": steps}[what](model)
        csv.writer(sys.stdout, lineterminator="\n").writerows(table)


def compiled(model: str, gpu: str, tp: int, pp: int, modes: dict[str, str]) -> EngineHandle:
    system, version = SYSTEMS[gpu]
    return EngineHandle.compile(model, system, "trtllm", backend_version=version, tp_size=tp, pp_size=pp, **modes)


def kernels(model: str) -> Iterator[Row]:
    yield "gpu", "dtype", "tp", "part", "tokens", "context", "us"
    for gpu in SYSTEMS:
        for dtype, modes in DTYPES.items():
            if (gpu, dtype) != ("a100-sxm", "fp8"):
                for tp in (1, 2, 4, 8):
                    yield from ((gpu, dtype, tp, *row) for row in rows(compiled(model, gpu, tp, 1, modes), dtype))


def steps(model: str) -> Iterator[Row]:
    yield "tp", "pp", "weights", "kv", "phase", "sequences", "context", "ms"
    for precision, modes in PRECISIONS.items():
        for (tp, pp), most in LAYOUTS.items():
            engine = compiled(model, "h100-sxm", tp, pp, modes)
            for prompt in (1024, 2048, 4096):
                ms = engine.predict_prefill_latency(1, prompt)
                yield tp, pp, *precision, "prefill", 1, prompt, round(ms, 3)
                for answer, power in itertools.product((128, 256), range(most.bit_length())):
                    # The tool takes the middle of the answer for the context of a decode step.
                    ms = engine.decode_step_latency(2**power, prompt, answer)
                    yield tp, pp, *precision, "decode", 2**power, prompt + answer // 2, round(ms, 3)


def rows(engine: EngineHandle, dtype: str) -> Iterator[Row]:
    """(part, tokens, context, microseconds a layer); FP8 rows only of the parts that FP8 changes."""
    for tokens in (128, 256, 512, 1024, 2048, 4096, 8192):
        us = micros(engine.run_static_per_op(batch_size=1, isl=tokens, osl=2)[0])
        yield from dense(us, tokens, dtype)
        yield "context", tokens, tokens, us["attention"]
    for sequences in (1, 4, 16, 32, 64, 128, 256, 512, 1024):
        for context in (256, 1024, 4096):
            us = micros(engine.decode_step_per_op(sequences, context, 2))
            if context == 1024 and sequences < 128:  # 128 and more rows are in the contexts above
                yield from dense(us, sequences, dtype)
            yield "generation", sequences, context + 1, us["attention"]


def dense(us: dict[str, float], tokens: int, dtype: str) -> Iterator[Row]:
    yield "linear", tokens, 0, round(sum(us[name] for name in PRODUCTS), 3)
    if dtype == "16":
        yield "elementwise", tokens, 0, round(sum(us[name] for name in ELEMENTWISE), 3)
        if us["ar_1"]:
            yield "all_reduce", tokens, 0, us["ar_1"]


def micros(operations: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Microseconds a layer of each operation, without the phase in its name."""
    return {operation[0].split("_", 1)[1]: round(operation[1] * 1e3 / LAYERS, 3) for operation in operations}


if __name__ == "__main__":
    main()
