"""Readings of metrics pages during a load test, and their sum: of the servers, and of the exporter if it runs.

The exporter knows the GPU of each rank, and in a rehearsal what stands for it. Without it, what Triton says of GPUs
counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from toolkit.slo.server_metrics import NO_GPUS, GpuSeen, ServerSeen, Value, highest, mean, parse

KEPT = (
    "nv_gpu_",
    "nv_trt_llm_",
    "toolkit_gpu_utilisation_ratio",
    "toolkit_gpu_memory_",
    "toolkit_gpus_not_watched",
    "toolkit_pipeline_empty_ratio",
)
REHEARSAL = "rehearsal"
"""The exporter's label `source` of what stands for a GPU."""


@dataclass(frozen=True)
class Reading:
    """The GPU and engine values of one page at one time."""

    time: float
    """Seconds since the Unix epoch."""
    server: int
    values: tuple[Value, ...]

    @classmethod
    def of(cls, text: str, time: float, server: int) -> Reading:
        """From a metrics page."""
        return cls(time, server, tuple(value for value in parse(text) if value.name.startswith(KEPT)))


def summed_up(readings: Sequence[Reading]) -> ServerSeen:
    """Means of utilisations and of empty micro-batches, peaks of the rest."""
    values = [value for reading in readings for value in reading.values]
    gpus = tuple(_exported(values)) or tuple(_of_triton(values))
    active: dict[int, list[float]] = {}
    for reading in readings:
        active.setdefault(reading.server, []).extend(_engine(reading, "request", "active"))
    peaks = [max(counts) for counts in active.values() if counts]
    return ServerSeen(
        gpus=gpus,
        readings=len(readings),
        kv_cache_used=highest(share for reading in readings for share in _kv_shares(reading)),
        requests_active=sum(peaks) if peaks else None,
        unseen="the server's metrics do not say how busy the GPUs are" if gpus else NO_GPUS,
        gpus_not_watched=int(sum(_not_watched(values).values())),
        pipeline_empty=mean([value.value for value in values if value.name == "toolkit_pipeline_empty_ratio"]),
    )


def _not_watched(values: Sequence[Value]) -> dict[str, float]:
    """GPUs that the exporter does not see, by node."""
    return {value.labels["node"]: value.value for value in values if value.name == "toolkit_gpus_not_watched"}


def _exported(values: Sequence[Value]) -> Iterator[GpuSeen]:
    """Each rank's GPU, as the exporter shows it. A GPU that the deployment does not use has no rank."""
    series: dict[tuple[int, int], dict[str, list[float]]] = {}
    sources: dict[tuple[int, int], tuple[str, str]] = {}
    for value in values:
        labels = value.labels
        if value.name.startswith("toolkit_gpu_") and labels.get("rank", "").isdecimal():
            rank = int(labels["replica"]), int(labels["rank"])
            sources[rank] = labels["gpu"], labels["source"]
            series.setdefault(rank, {}).setdefault(value.name, []).append(value.value)
    for rank, of in sorted(series.items()):
        gpu, source = sources[rank]
        stand_in = source == REHEARSAL
        yield GpuSeen(
            f"replica {rank[0]} rank {rank[1]}, {'CPU' if stand_in else f'GPU {gpu}'}",
            mean(of.get("toolkit_gpu_utilisation_ratio", ())),
            highest(of.get("toolkit_gpu_memory_used_bytes", ())),
            highest(of.get("toolkit_gpu_memory_total_bytes", ())),
            stand_in,
        )


def _of_triton(values: Sequence[Value]) -> Iterator[GpuSeen]:
    """Each GPU that Triton names. Servers on one machine report the same GPUs."""
    for uuid in sorted({value.labels["gpu_uuid"] for value in values if "gpu_uuid" in value.labels}):

        def named(name: str, uuid: str = uuid) -> list[float]:
            return [value.value for value in values if value.name == name and value.labels.get("gpu_uuid") == uuid]

        yield GpuSeen(
            uuid,
            mean(named("nv_gpu_utilization")),
            highest(named("nv_gpu_memory_used_bytes")),
            highest(named("nv_gpu_memory_total_bytes")),
        )


def _kv_shares(reading: Reading) -> Iterator[float]:
    used, most = _engine(reading, "kv_cache_block", "used"), _engine(reading, "kv_cache_block", "max")
    if used and most and max(most) > 0:
        yield max(used) / max(most)


def _engine(reading: Reading, family: str, kind: str) -> list[float]:
    """The values of one kind in the family nv_trt_llm_{family}_metrics."""
    name, label = f"nv_trt_llm_{family}_metrics", f"{family}_type"
    return [value.value for value in reading.values if value.name == name and value.labels.get(label) == kind]
