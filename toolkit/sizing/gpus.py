"""The GPUs that the planner knows: data-sheet figures, and the shares of them that kernels reach.

Data-sheet figures are dense rates at boost clock, from NVIDIA's product briefs. The rates were fitted by
`python benchmarks/plan_fit.py` to kernel times that NVIDIA measured (the database of aiconfigurator-core
0.12.0, TensorRT-LLM 1.3.0rc20, Llama-3-70B shapes at TP 1, 2, 4 and 8; benchmarks/plan.md has the errors).
Point-to-point rates are estimates. Memory is what nvidia-smi reports for such a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import ToolkitError, shown


@dataclass(frozen=True)
class Rates:
    """What kernels reach: shares of the rates on the data sheet, and seconds that every call costs at any size."""

    linear_flops: float
    """Matrix products with weights, share of the 16-bit peak."""
    linear_flops_fp8: float
    """The same in FP8, share of the FP8 peak."""
    weight_bytes: float
    """Weights streamed from memory, share of its bandwidth."""
    knee: float
    """A product takes (a**knee + m**knee) ** (1/knee), where a and m are its times for arithmetic and for memory."""
    linear_s: float
    """Seconds per matrix product."""
    linear_fp8_s: float
    """Seconds per FP8 matrix product, with the quantisation of its input."""
    elementwise_bytes: float
    """Norms, residuals and activations, share of bandwidth."""
    elementwise_s: float
    context_flops: float
    """Attention for prompts (causal half of the square), share of the 16-bit peak."""
    context_flops_fp8: float
    """The same with weights and KV cache in FP8, share of the FP8 peak."""
    context_bytes: float
    """Moving the queries, keys and values of prompts before attention, share of bandwidth."""
    context_s: float
    """Attention for prompts, seconds per layer."""
    key_bytes: float
    """Reading keys and values in a decode step, share of bandwidth."""
    extra_keys: float
    """The cost per sequence in a decode step, expressed as additional keys."""
    generation_s: float
    """Attention in a decode step, seconds per layer."""
    generation_fp8_s: float
    """The same with keys and values in FP8."""
    one_shot_link: float
    """All-reduce where each rank reads from all others (small messages), share of the link's one-way rate."""
    all_reduce_s: float
    """Its floor, seconds."""
    ring_link: float
    """All-reduce that moves each byte once or twice (large messages), share of the link's one-way rate."""
    ring_hop_s: float
    """Seconds for each of its 2 (tp - 1) hops."""
    hop_link: float = 0.8
    """Point-to-point between stages, share of the link's one-way rate."""
    hop_s: float = 10e-6
    """Its floor, seconds."""


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU. FLOP/s are dense, bytes/s are decimal, rates of links are one-way."""

    name: str
    memory_gib: float
    """GiB, as the driver shows it."""
    bandwidth: float
    flops: float
    """FP16 and BF16."""
    flops_fp8: float | None
    """None where there are no FP8 tensor cores."""
    nvlink: float
    """0 where there is none."""
    nvlink_gpus: int
    """How many GPUs it joins."""
    sharp: bool
    """Whether the NVLink switches add up the data of the ranks (NVLink SHARP)."""
    pcie: float
    rates: Rates
    measured: bool
    """Whether the rates were fitted to times of this GPU. If not, the shares are those of the H100 SXM."""

    def joined(self, gpus: int) -> bool:
        """Whether NVLink joins `gpus` GPUs."""
        return gpus <= self.nvlink_gpus

    def link(self, gpus: int) -> float:
        """The bytes/s that one of `gpus` GPUs can send to another."""
        return self.nvlink if self.joined(gpus) else self.pcie


_H100 = Rates(
    linear_flops=0.775, linear_flops_fp8=0.673, weight_bytes=0.839, knee=5.35, linear_s=3.69e-6,
    linear_fp8_s=13.6e-6, elementwise_bytes=0.8, elementwise_s=3e-6, context_flops=0.539, context_flops_fp8=0.362,
    context_bytes=0.34, context_s=28.2e-6, key_bytes=0.907, extra_keys=30.7, generation_s=10.4e-6,
    generation_fp8_s=6.76e-6, one_shot_link=0.612, all_reduce_s=2.85e-6, ring_link=0.579, ring_hop_s=2.81e-6,
)  # fmt: skip
_H200 = Rates(
    linear_flops=0.773, linear_flops_fp8=0.686, weight_bytes=0.844, knee=4.43, linear_s=4.03e-6,
    linear_fp8_s=13.7e-6, elementwise_bytes=0.8, elementwise_s=3e-6, context_flops=0.532, context_flops_fp8=0.364,
    context_bytes=0.25, context_s=28.2e-6, key_bytes=0.896, extra_keys=100, generation_s=11.1e-6,
    generation_fp8_s=7.11e-6, one_shot_link=0.629, all_reduce_s=2.79e-6, ring_link=0.57, ring_hop_s=2.13e-6,
)  # fmt: skip
_A100 = Rates(
    linear_flops=0.834, linear_flops_fp8=0.629, weight_bytes=0.813, knee=2.19, linear_s=8.74e-6, linear_fp8_s=14e-6,
    elementwise_bytes=0.8, elementwise_s=3e-6, context_flops=0.433, context_flops_fp8=0.3, context_bytes=0.274,
    context_s=29.9e-6, key_bytes=0.904, extra_keys=30.5, generation_s=13.6e-6, generation_fp8_s=7.65e-6,
    one_shot_link=0.532, all_reduce_s=4.96e-6, ring_link=0.586, ring_hop_s=3.56e-6,
)  # fmt: skip
_L40S = Rates(
    linear_flops=0.591, linear_flops_fp8=0.545, weight_bytes=0.795, knee=2.79, linear_s=1e-9, linear_fp8_s=5.3e-6,
    elementwise_bytes=0.8, elementwise_s=3e-6, context_flops=0.397, context_flops_fp8=0.4, context_bytes=0.855,
    context_s=26.7e-6, key_bytes=0.781, extra_keys=0.905, generation_s=6.81e-6, generation_fp8_s=10.8e-6,
    one_shot_link=0.342, all_reduce_s=6.92e-6, ring_link=0.644, ring_hop_s=4e-6,
)  # fmt: skip
_B200 = Rates(
    linear_flops=0.665, linear_flops_fp8=0.601, weight_bytes=0.791, knee=3.2, linear_s=3.48e-6, linear_fp8_s=16.3e-6,
    elementwise_bytes=0.8, elementwise_s=3e-6, context_flops=0.456, context_flops_fp8=0.293, context_bytes=0.224,
    context_s=31.5e-6, key_bytes=0.999, extra_keys=0.001, generation_s=9.31e-6, generation_fp8_s=9.87e-6,
    one_shot_link=0.611, all_reduce_s=4.77e-6, ring_link=0.43, ring_hop_s=2.38e-6,
)  # fmt: skip

GPUS = {
    gpu.name: gpu
    for gpu in (
        #    name      GiB shown  bytes/s   FLOP/s   in FP8  NVLink, of  SHARP PCIe  rates  measured
        Gpu("h100-sxm", 79.6, 3.35e12, 989e12, 1979e12, 450e9, 8, True, 64e9, _H100, True),
        Gpu("h100-pcie", 79.6, 2.00e12, 756e12, 1513e12, 0, 1, False, 64e9, _H100, False),
        Gpu("h100-nvl", 93.6, 3.90e12, 835e12, 1671e12, 300e9, 2, False, 64e9, _H100, False),
        Gpu("h200-sxm", 139.8, 4.80e12, 989e12, 1979e12, 450e9, 8, True, 64e9, _H200, True),
        Gpu("a100-sxm", 79.3, 2.039e12, 312e12, None, 300e9, 8, False, 32e9, _A100, True),
        Gpu("l40s", 44.5, 0.864e12, 362e12, 733e12, 0, 1, False, 32e9, _L40S, True),
        Gpu("b200-sxm", 178.4, 7.70e12, 2250e12, 4500e12, 900e9, 8, True, 128e9, _B200, True),
    )
}


def gpu_named(name: str, where: Path | None = None) -> Gpu:
    """A GPU of the table. Raises ToolkitError for another name."""
    if name not in GPUS:
        what = f"hardware.gpu: {shown(name)} is not in the planner's table"
        raise ToolkitError(what, where=where, hint=f"Use {', '.join(GPUS)}.")
    return GPUS[name]
