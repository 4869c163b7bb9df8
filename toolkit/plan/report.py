"""The plan as a person reads it and as a machine does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toolkit.model import DTYPE_BYTES
from toolkit.plan.memory import GIB, MemoryPlan, plan_memory

if TYPE_CHECKING:
    from rich.console import RenderableType

    from toolkit.config import Deployment


def plan_data(deployment: Deployment) -> dict[str, Any]:
    """Every figure of the plan, in bytes, tokens and counts, as JSON-ready data."""
    shape, memory = deployment.shape, plan_memory(deployment)
    return {
        "name": deployment.name,
        "engine": deployment.engine,
        "model": {
            "path": str(deployment.model.path),
            "dtype": deployment.model.dtype,
            "parameters": shape.parameters,
            "bytes": shape.parameters * DTYPE_BYTES[deployment.model.dtype],
            "layers": shape.num_hidden_layers,
        },
        "parallel": {
            "tp": deployment.parallel.tp,
            "pp": deployment.parallel.pp,
            "world_size": deployment.mapping.world_size,
        },
        "max_batch_size_per_micro_batch": deployment.max_batch_size,
        "stages": [
            {
                "stage": stage.stage,
                "gpus": list(stage.gpus),
                "layers": [stage.layers.start, stage.layers.stop - 1],
                "num_layers": len(stage.layers),
                "weight_bytes_per_gpu": stage.weight_bytes,
                "kv_bytes_per_token_per_gpu": stage.kv_bytes_per_token,
                "kv_bytes_per_gpu": stage.kv_bytes_per_token * memory.wanted_tokens,
                "used_bytes_per_gpu": memory.used_bytes(stage),
            }
            for stage in memory.stages
        ],
        "memory": _memory_data(deployment, memory),
    }


def _memory_data(deployment: Deployment, memory: MemoryPlan) -> dict[str, Any]:
    common = {"workspace_bytes": memory.workspace_bytes, "kv_tokens_wanted": memory.wanted_tokens}
    if deployment.engine == "rehearsal":
        return {**common, "host_bytes": memory.all_bytes}
    return {
        **common,
        "gpu_bytes": memory.gpu_bytes,
        "limit_bytes": memory.limit_bytes,
        "kv_token_capacity": memory.token_capacity,
        "full_sequences": memory.token_capacity // deployment.limits.max_seq_len,
        "headroom_bytes": memory.headroom_bytes,
        "fits": memory.headroom_bytes >= 0,
    }


def plan_text(deployment: Deployment) -> RenderableType:
    """The plan for a terminal of 100 columns."""
    from rich.console import Group
    from rich.table import Table

    shape, memory, limits = deployment.shape, plan_memory(deployment), deployment.limits
    parallel, size = deployment.parallel, DTYPE_BYTES[deployment.model.dtype]
    heading = "\n".join(
        [
            f"[bold]{deployment.name}[/bold]  engine {deployment.engine}",
            f"parameters  {shape.parameters:,} = {_gb(shape.parameters * size)} "
            f"({_gib(shape.parameters * size)}) as {deployment.model.dtype}",
            f"world size  {deployment.mapping.world_size} = pp {parallel.pp} x tp {parallel.tp}, one rank a GPU",
            f"in flight   {limits.max_sequences} sequences = {parallel.pp} micro-batches x "
            f"{deployment.max_batch_size}; a step computes up to {limits.max_num_tokens:,} tokens",
        ]
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="dim")
    one = "rank" if deployment.engine == "rehearsal" else "GPU"
    for column in ("stage", f"{one}s", "layers", f"weights/{one}", f"KV/token/{one}", f"KV/{one}", f"in all/{one}"):
        table.add_column(column, justify="left" if column in ("stage", f"{one}s") else "right", no_wrap=True)
    for stage in memory.stages:
        table.add_row(
            str(stage.stage),
            ", ".join(map(str, stage.gpus)),
            f"{stage.layers.start}-{stage.layers.stop - 1} ({len(stage.layers)})",
            _gib(stage.weight_bytes),
            f"{stage.kv_bytes_per_token:,} B",
            _gib(stage.kv_bytes_per_token * memory.wanted_tokens),
            _gib(memory.used_bytes(stage)),
        )
    return Group(heading, "", table, "", _memory_lines(deployment, memory))


def _memory_lines(deployment: Deployment, memory: MemoryPlan) -> str:
    limits, hardware = deployment.limits, deployment.hardware
    if deployment.engine == "rehearsal":
        blocks, size = deployment.kv_blocks, deployment.kv_cache.tokens_per_block
        return "\n".join(
            [
                f"KV pool     {memory.wanted_tokens:,} tokens = {blocks:,} blocks of {size}, for all sequences",
                f"process     {_gib(memory.workspace_bytes)} a rank for Triton, Python and PyTorch",
                f"host memory {_gib(memory.all_bytes)} for the {deployment.mapping.world_size} ranks, in float32",
            ]
        )
    full = memory.token_capacity // limits.max_seq_len
    lines = [
        f"KV wanted   {memory.wanted_tokens:,} tokens = {limits.max_sequences} sequences x {limits.max_seq_len:,}",
        f"workspace   {_gib(memory.workspace_bytes)} a GPU for the CUDA context, NCCL and activations (estimate)",
        f"KV capacity {memory.token_capacity:,} tokens = {full:,} full sequences (the fullest GPU decides)",
        f"limit       {hardware.gpu_memory_limit:.0%} of {hardware.gpu_memory_gib} GiB = {_gib(memory.limit_bytes)}",
    ]
    if memory.headroom_bytes >= 0:
        lines.append(f"headroom    {_gib(memory.headroom_bytes)} left under the limit on the fullest GPU")
    else:
        lines.append(f"[red]too full    {_gib(-memory.headroom_bytes)} over the limit on the fullest GPU[/red]")
    return "\n".join(lines)


def _gib(size: int) -> str:
    return f"{size / GIB:.3f} GiB" if abs(size) >= GIB / 10 else f"{size / 2**20:.1f} MiB"


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
