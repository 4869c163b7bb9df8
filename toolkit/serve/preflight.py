"""Checks before a group starts: seconds here, instead of an error after minutes of loading."""

from __future__ import annotations

import contextlib
import importlib.metadata
import shutil
import socket
from pathlib import Path

from toolkit import repository
from toolkit.config.deployment import Deployment
from toolkit.config.sections import PORTS
from toolkit.errors import ToolkitError
from toolkit.files import artifacts, distribution
from toolkit.files.atomic import check_writable
from toolkit.files.json_file import read_json
from toolkit.machine.limits import available_memory
from toolkit.serve.command import LEADER_MODEL
from toolkit.serve.janitor import SHARED_MEMORY

MIB = 1 << 20
REHEARSAL_SEGMENT_BYTES = 4 * MIB
"""Each Python model process has a region of 1 MiB (measured, Triton 2.51). Large tensors make it grow."""
GPU_SHARED_MEMORY_BYTES = 1024 * MIB
"""For NCCL's transports and Open MPI. NVIDIA starts its containers with --shm-size=2g."""
REHEARSAL_RANK_BYTES = 250 * MIB
"""Python, PyTorch and Triton of one rank, without its weights (measured: 2 GB for eight ranks)."""
REHEARSAL_MODEL_BYTES = 30 * MIB
"""One process of a Python model other than the engine, without the pages that it shares."""


def check(deployment: Deployment) -> None:
    """Raise a ToolkitError for the first thing that keeps the deployment, with all its replicas, from serving."""
    if not deployment.kind.on_gpus:
        distribution.require("rehearsal", "torch")
    check_made(deployment)
    check_ports(deployment)
    check_traffic(deployment)
    check_shared_memory(deployment)
    if not deployment.kind.on_gpus:
        check_memory(deployment)


def check_made(deployment: Deployment) -> None:
    """Check that engine and repository are whole, and made for this deployment and by one release."""
    check_repository(deployment)
    if deployment.kind.vendor_build:
        check_version(deployment)


def check_repository(deployment: Deployment) -> None:
    """Check that the repository is whole, and made for this deployment from the current engine or model."""
    engine_settings, remake = {"engine": deployment.engine}, deployment.command("repo")
    if deployment.kind.engine_files:
        engine = artifacts.require(deployment.engine_dir, "engine", engine_settings, deployment.command("build"))
        source, place, digest = "engine", deployment.engine_dir, engine.digest
    lock = artifacts.require(deployment.repository_dir, "repository", repository.settings(deployment), remake)
    if not deployment.kind.engine_files:
        source, place, digest = "model", deployment.model.path, repository.model_digest(deployment)
    if lock.inputs.get(source) != digest:
        what = f"was made from another {source} than the one in {place}"
        raise ToolkitError(what, where=deployment.repository_dir, hint=f"Run: {remake}")


def check_version(deployment: Deployment) -> None:
    """Check that the release that built the engine will run it. TensorRT-LLM finds a mismatch only after minutes."""
    config, release = deployment.engine_dir / "config.json", deployment.engine_options.version
    built_by, again = read_json(config).get("version"), f"Run: {deployment.command('build')}"
    if built_by != release:
        what = f"was built by TensorRT-LLM {built_by}, engine.version says {release}"
        raise ToolkitError(what, where=config, hint=f"{again}; or correct engine.version.")
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # it may be only in the container
        installed = importlib.metadata.version("tensorrt-llm")
        if deployment.runtime.kind == "host" and installed != built_by:
            what = f"was built by TensorRT-LLM {built_by}, but {installed} is installed here and cannot run it"
            raise ToolkitError(
                what, where=config, hint=f"Use the image of {built_by}, or build again with {installed}."
            )


def check_traffic(deployment: Deployment) -> None:
    """Check that the file of the kept traffic can be written."""
    if file := deployment.monitoring.traffic:
        try:
            check_writable(file)
        except ToolkitError as error:
            hint = "Use a file in a folder that exists and that this user can write to."
            raise ToolkitError(f"monitoring.traffic: {error}", where=deployment.file, hint=hint) from None


def check_ports(deployment: Deployment) -> None:
    """Raise a ToolkitError if a port of a replica is taken."""
    for replica in deployment.per_replica():
        for name in PORTS:
            check_port(replica, name)


def check_port(deployment: Deployment, name: str) -> None:
    """Raise a ToolkitError if the port with this name, one of `PORTS`, is taken."""
    serving = deployment.serving
    port, host = getattr(serving, name), serving.host
    if name == "metrics_port":
        host = serving.metrics_host or host
    replica = "" if deployment.replica is None else f"replica {deployment.replica} "
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # Servers set this too: a port counts as free although its last connection has just ended.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ToolkitError(
                f"serving.{name}: {replica}cannot listen on {host}:{port}: {_why(error, port)}",
                where=deployment.file,
                hint="Stop that process or change the port." if _listener(port) else "Change the port.",
            ) from None


def shared_memory_needed(deployment: Deployment) -> int:
    """Bytes of /dev/shm for all replicas. Without a repository this counts the ranks, not the other models."""
    groups = len(deployment.per_replica())
    if deployment.kind.on_gpus:
        return groups * GPU_SHARED_MEMORY_BYTES
    return groups * (deployment.mapping.ranks_per_node + model_processes(deployment)) * REHEARSAL_SEGMENT_BYTES


def check_shared_memory(deployment: Deployment, folder: Path = SHARED_MEMORY) -> None:
    """Raise a ToolkitError if /dev/shm has too little room for the group."""
    needed, free = shared_memory_needed(deployment), shutil.disk_usage(folder).free
    if free < needed:
        raise ToolkitError(
            f"{free // MIB} MiB are free, {deployment.ranks_here} ranks need {needed // MIB} MiB",
            where=folder,
            hint="Remove old files there, or make it larger (docker run --shm-size=2g).",
        )


def check_memory(deployment: Deployment, available: int | None = None) -> None:
    """Check a rehearsal's memory. Its ranks compute in 32 bits, so weights of 16 bits take twice their size."""
    stored = sum(path.stat().st_size for path in deployment.engine_dir.glob("rank*.engine"))
    widened = 1 if deployment.model.dtype == "float32" else 2
    stored //= deployment.parallel.nodes
    needed = stored * widened + deployment.mapping.ranks_per_node * REHEARSAL_RANK_BYTES
    needed += model_processes(deployment) * REHEARSAL_MODEL_BYTES
    needed *= len(deployment.per_replica())
    available = available_memory() if available is None else available
    if available < needed:
        raise ToolkitError(
            f"{deployment.ranks_here} ranks need about {needed / 2**30:.1f} GiB of memory, "
            f"{available / 2**30:.1f} GiB are available",
            where=deployment.file,
            hint="Stop other programs, rehearse with fewer ranks, or with a smaller model.",
        )


def model_processes(deployment: Deployment) -> int:
    """The number of rank 0's Python processes without its engine: one per instance of its other models."""
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    count = 0
    for path in deployment.repository_dir.glob("*/config.pbtxt"):
        config = text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
        if config.backend == "python" and config.name != LEADER_MODEL:
            count += sum(group.count for group in config.instance_group)
    return count


def _why(error: OSError, port: int) -> str:
    return _listener(port) or str(error.strerror).lower()


def _listener(port: int) -> str:
    """ "taken by process 123 (name)" for the process that listens on a port; "" if none is visible."""
    import psutil

    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections(kind="tcp"):
            own_port = connection.laddr[1] if connection.laddr else None
            if connection.status == psutil.CONN_LISTEN and own_port == port and connection.pid:
                return f"taken by process {connection.pid} ({psutil.Process(connection.pid).name()})"
    return ""
