"""The memory of a plan as text for a terminal of 100 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolkit.plan.layouts import layout_name
from toolkit.plan.show.wording import layout_in_words
from toolkit.sizing.host import plan_host
from toolkit.sizing.memory import GIB, MemoryPlan, model_bytes, plan_memory
from toolkit.sizing.precision import stored_precision

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from toolkit.config.deployment import Deployment


def memory_text(deployment: Deployment) -> RenderableType:
    """Everything that is known without a prediction: ranks, layers, memory of each GPU, what fits."""
    from rich.console import Group

    memory = plan_memory(deployment)
    return Group(_heading(deployment), "", _stages(deployment, memory), "", _memory_lines(deployment, memory))


def _heading(deployment: Deployment) -> str:
    shape, limits, parallel = deployment.shape, deployment.limits, deployment.parallel
    size = model_bytes(shape, stored_precision(deployment))
    replicas = f"{parallel.replicas} replicas x " if parallel.replicas > 1 else ""
    dtype = deployment.model.dtype
    stored = f"with layers in FP8, the rest as {dtype}" if deployment.model.quantization == "fp8" else f"as {dtype}"
    return "\n".join(
        [
            f"[bold]{deployment.name}[/bold]  engine {deployment.engine}",
            f"parameters  {shape.parameters:,} = {size / 1e9:.2f} GB ({gib(size)}) {stored}",
            f"layout      {layout_name(deployment)}: {layout_in_words(deployment)}",
            f"world size  {deployment.mapping.world_size} = pp {parallel.pp} x tp {parallel.tp}, one rank per GPU"
            + (f"; {parallel.replicas} replicas" if replicas else ""),
            *_nodes(deployment),
            f"in flight   {limits.max_sequences} sequences = {replicas}{parallel.pp} micro-batches x "
            f"{deployment.max_batch_size}; a step computes up to {limits.max_num_tokens:,} tokens",
        ]
    )


def _nodes(deployment: Deployment) -> list[str]:
    """Where the ranks are, if they are on several nodes."""
    mapping = deployment.mapping
    if mapping.nodes == 1:
        return []
    hosts = deployment.cluster.hosts or [str(node) for node in range(mapping.nodes)]
    stages = mapping.pp // mapping.nodes
    placed = []
    for node in range(mapping.nodes):
        ranks, first = mapping.ranks_on(node), node * stages
        own = f"stage {first}" if stages == 1 else f"stages {first}-{first + stages - 1}"
        placed.append(f"{hosts[node]}: ranks {ranks.start}-{ranks.stop - 1} ({own})")
    return [f"nodes       {mapping.nodes}: {'; '.join(placed)}"]


def _stages(deployment: Deployment, memory: MemoryPlan) -> Table:
    table = plain_table()
    one = "rank" if not deployment.kind.on_gpus else "GPU"
    for column in ("stage", f"{one}s", "layers", f"weights/{one}", f"KV/token/{one}", f"KV/{one}", f"in all/{one}"):
        table.add_column(column, justify="left" if column in ("stage", f"{one}s") else "right", no_wrap=True)
    for stage in memory.stages:
        table.add_row(
            str(stage.stage),
            ", ".join(map(str, stage.gpus)),
            f"{stage.layers.start}-{stage.layers.stop - 1} ({len(stage.layers)})",
            gib(stage.weight_bytes),
            f"{stage.kv_bytes_per_token:,} B",
            gib(stage.kv_bytes_per_token * memory.wanted_tokens),
            gib(memory.used_bytes(stage)),
        )
    return table


def _memory_lines(deployment: Deployment, memory: MemoryPlan) -> str:
    if not deployment.kind.on_gpus:
        blocks, size = deployment.kv_blocks, deployment.kv_cache.tokens_per_block
        return "\n".join(
            [
                f"KV pool     {memory.wanted_tokens:,} tokens = {blocks:,} blocks of {size}, for all sequences",
                f"process     {gib(memory.workspace_bytes)} a rank for Triton, Python and PyTorch",
                f"host memory {gib(memory.all_bytes)} for the {deployment.mapping.world_size} ranks, in float32",
            ]
        )
    limits, hardware = deployment.limits, deployment.hardware
    wanted = memory.wanted_tokens // limits.max_seq_len
    lines = [
        f"KV wanted   {memory.wanted_tokens:,} tokens = {wanted} sequences x {limits.max_seq_len:,}",
        f"workspace   {gib(memory.workspace_bytes)} a GPU: {gib(memory.context_bytes)} CUDA and NCCL, "
        f"{gib(memory.activation_bytes)} activations and logits (estimates)",
        f"KV capacity {memory.pool_tokens:,} tokens = {memory.full_sequences:,} full sequences = "
        f"{memory.pool_tokens // deployment.kv_cache.tokens_per_block:,} blocks; the fullest GPU decides",
        f"limit       {hardware.gpu_memory_limit:.0%} of {hardware.gpu_memory_gib} GiB = {gib(memory.limit_bytes)}; "
        f"kv_cache_free_gpu_mem_fraction {memory.kv_fraction:g}",
    ]
    if memory.headroom_bytes >= 0:
        lines.append(f"headroom    {gib(memory.headroom_bytes)} left under the limit on the fullest GPU")
    else:
        lines.append(f"[red]too full    {gib(-memory.headroom_bytes)} over the limit on the fullest GPU[/red]")
    return "\n".join([*lines, *_balance_lines(deployment, memory), *_host_lines(deployment)])


def _balance_lines(deployment: Deployment, memory: MemoryPlan) -> list[str]:
    if len(memory.stages) == 1:
        return []
    line = f"balance     (max - min) / mean: {memory.spread:.1%} in all, {memory.weight_spread:.1%} weights"
    if deployment.parallel.tp > 1:
        sharded = plan_memory(deployment, parallel_embedding=True)
        line += f" ({sharded.weight_spread:.1%} with parallel embedding)"
    return [line]


def _host_lines(deployment: Deployment) -> list[str]:
    plan = plan_host(deployment)
    if not deployment.kind.vendor_build:
        return []
    ranks = deployment.mapping.world_size
    workers = f"--workers {plan.workers}" if plan.workers else "[red]not even one rank at a time[/red]"
    return [
        f"disk        {plan.checkpoint_bytes / 1e9:.0f} GB for the checkpoint, about the same for the engines",
        f"build       {plan.build_rank_bytes / 1e9:.0f} GB of host memory a rank (estimate): of {ranks} ranks, "
        f"{deployment.hardware.host_memory_gb:g} GB allow {workers}",
    ]


def plain_table() -> Table:
    """Columns without lines."""
    from rich.table import Table

    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")


def gib(size: int) -> str:
    """Bytes as GiB or MiB."""
    return f"{size / GIB:.3f} GiB" if abs(size) >= GIB / 10 else f"{size / 2**20:.1f} MiB"
