"""The device to time on: one GPU, by its own clock, or else this machine's cores."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from toolkit.engine.rehearsal.worker import WORTH_SHARING

Call = Callable[[], Any]
REPEATS = 7
"""Timed runs. Their median counts."""
FEWEST, LONG_S = 3, 0.5
"""On a CPU this many runs are enough if together they take this long: other programs may use the cores."""
GRAPH_S = 2e-3
"""A CUDA graph has enough calls to take about this long, so that its start does not count."""
GRAPH_CALLS = 200


def pick() -> torch.device:
    """The first GPU, or the CPU if there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def describe(device: torch.device) -> dict[str, Any]:
    """Name, memory in bytes and cores; for a CPU the usable cores, and the threads of PyTorch."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return {
            "kind": "cuda",
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "cores": properties.multi_processor_count,
        }
    return {**describe_cpu(), "threads": torch.get_num_threads()}


def describe_cpu() -> dict[str, Any]:
    """The CPU, as a calibration file records it."""
    memory = psutil.virtual_memory().total
    return {"kind": "cpu", "name": _cpu_name(), "memory_bytes": memory, "cores": len(os.sched_getaffinity(0))}


def free_bytes(device: torch.device) -> int:
    """Memory that can be used: what is free now, and what PyTorch holds in reserve."""
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserve
    return psutil.virtual_memory().available


def cache_bytes(device: torch.device) -> int:
    """The L2 cache of a GPU. 0 for a CPU, which only tries small matrices out."""
    if device.type != "cuda":
        return 0
    return getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 64 << 20)


@contextlib.contextmanager
def threads_for(device: torch.device, hidden_size: int) -> Iterator[None]:
    """As many threads as the rehearsal engine would use for a model of this size."""
    before = torch.get_num_threads()
    if device.type == "cpu" and hidden_size < WORTH_SHARING:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def seconds(device: torch.device, calls: Sequence[Call]) -> float:
    """Seconds of one call: the median of several runs through all calls, divided by their number."""
    return _on_cuda(calls) if device.type == "cuda" else _on_cpu(calls)


def _on_cpu(calls: Sequence[Call]) -> float:
    _run(calls)
    rounds = max(1, min(GRAPH_CALLS, round(GRAPH_S / max(_timed(lambda: _run(calls)), 1e-7))))
    taken = list[float]()
    while len(taken) < FEWEST or (len(taken) < REPEATS and sum(taken) < LONG_S):
        taken.append(_timed(lambda: _run([*calls] * rounds)))
    return statistics.median(taken) / rounds / len(calls)


def _on_cuda(calls: Sequence[Call]) -> float:
    """Times a CUDA graph: launching a small kernel from Python takes longer than the kernel itself.

    Served engines start their decode kernels without Python too.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # cuBLAS and compiled kernels set themselves up here: a graph cannot record that
        _run(calls[:1])
        first = _elapsed(lambda: _run(calls))
    torch.cuda.current_stream().wait_stream(stream)
    rounds = max(1, min(GRAPH_CALLS // len(calls), round(GRAPH_S / max(first, 1e-6))))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            _run(calls)
    graph.replay()
    taken = [_elapsed(graph.replay) for _ in range(REPEATS)]
    return statistics.median(taken) / rounds / len(calls)


def _elapsed(run: Call) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e-3


def _timed(run: Call) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def _run(calls: Sequence[Call]) -> None:
    for call in calls:
        call()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
