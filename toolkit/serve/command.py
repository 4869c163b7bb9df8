"""The command line that starts a group: one mpirun, and the servers that it starts.

NVIDIA's leader mode has one tritonserver per rank. Rank 0 opens the ports and answers. The other ranks load only
`tensorrt_llm`. Its initialisation never returns there, so these ranks never open ports and can have the same port
options. In orchestrator mode one tritonserver starts the ranks as worker processes, by MPI_Comm_spawn. The LLM API
(engine: pytorch) does the same.
Source: launch_triton_server.py of tensorrtllm_backend. These are its command lines without its repeats, and with the
addresses to bind to.
"""

from __future__ import annotations

import math
from pathlib import Path

from toolkit.config.deployment import Deployment
from toolkit.machine.limits import STACK_BYTES
from toolkit.runtime import Part
from toolkit.serve.janitor import RUN_ID, ServerRun
from toolkit.serve.mpirun import Mpirun
from toolkit.serve.tritonserver import TritonServer

LEADER_MODEL = "tensorrt_llm"
REHEARSAL_PORT = "TOOLKIT_REHEARSAL_PORT"
REPLICA = "TOOLKIT_REPLICA"
"""Tells our models which replica they are, for their metrics (triton_repo/shared/latency_metrics.py)."""
TRAFFIC = "TOOLKIT_TRAFFIC"
"""Tells our models where to keep the traffic (triton_repo/shared/kept_traffic.py): BLOCK_TOKENS:FILE."""
ORCHESTRATOR = "TRTLLM_ORCHESTRATOR"
STACK = Part(
    (
        *("sh", "-c"),
        f'umask 077; ulimit -S -s {STACK_BYTES >> 10} 2>/dev/null || ulimit -S -s "$(ulimit -H -s)"; exec "$@"',
        "sh",
    ),
    "64 MiB of stack per thread, or the most that is allowed: with less, one request can end Triton",
)
"""Runs inside the container, if there is one. All ranks inherit the stack limit from mpirun."""
EXIT_MARGIN_S = 10
"""Triton would wait this much longer than the drain, so that the supervisor ends the drain, not Triton."""
REASONS = (
    "--bind-to none: Open MPI binds each rank of a small group to one core, too few for Triton's threads",
    "--oversubscribe: there may be fewer cores than ranks, and an orchestrator starts workers",
    "plm, ras ^slurm: mpirun starts the ranks itself, also in a Slurm job, where srun makes a second group wait",
    "--tag-output: marks every line with its rank, so that each rank has its own log",
    "--model-repository: a copy of what toolkit repo made, in a path that has no special characters of a shell",
    "--model-control-mode, --load-model: ranks above 0 load only the engine, and wait for rank 0",
    "--*-address, --*-port: serving.host and the ports of the YAML",
    "--exit-timeout-secs: serving.drain_timeout_s and a margin, so that the supervisor ends the drain, not Triton",
    "--disable-auto-complete-config: the configs are complete; to complete them Triton would load models twice",
    "--backend-config=python,shm-region-prefix-name: each rank of each run has shared memory of its own",
)
"""Why each option is there; a dry run prints it."""
ORCHESTRATOR_REASONS = (
    "--pinned-memory-pool-byte-size, --enable-peer-access, --cuda-memory-pool-byte-size: only the workers use GPUs",
)


def is_orchestrated(deployment: Deployment) -> bool:
    """Whether one tritonserver starts all ranks."""
    return deployment.serving.mode == "orchestrator" or deployment.kind.one_server


def command_line(deployment: Deployment, server: TritonServer, mpirun: Mpirun, run: ServerRun) -> list[Part]:
    """The command line, in parts. On one node every rank inherits mpirun's environment and limits."""
    parts = [
        STACK,
        Part((str(mpirun.binary), *_mpirun_options(mpirun)), "starts the ranks, and ends them all if one ends"),
    ]
    if is_orchestrated(deployment):
        return [*parts, Part(tuple(_rank_block(deployment, server, run, 0)), "starts the ranks, as its workers")]
    last = deployment.mapping.world_size - 1
    for rank in deployment.mapping.ranks:
        block = _rank_block(deployment, server, run, rank)
        role = "opens the ports and answers" if rank == 0 else "computes its part"
        parts.append(Part((*block, *([":"] if rank < last else [])), f"rank {rank}: {role}"))
    return parts


def environment(
    deployment: Deployment, server: TritonServer, run: ServerRun, rehearsal_port: int | None
) -> dict[str, str]:
    """The variables to start the group with, on top of those of this process.

    `rehearsal_port` is the port where the ranks of a rehearsal meet.
    """
    variables = {**server.environment, RUN_ID: run.id, "TMPDIR": str(run.tmp)}
    if is_orchestrated(deployment) and deployment.kind.vendor_build:
        variables[ORCHESTRATOR] = "1"
    if deployment.replica is not None:
        variables[REPLICA] = str(deployment.replica)
    if deployment.monitoring.traffic is not None:
        variables[TRAFFIC] = f"{deployment.kv_cache.tokens_per_block}:{deployment.monitoring.traffic}"
    if rehearsal_port is not None:
        variables[REHEARSAL_PORT] = str(rehearsal_port)
    return variables


def exit_timeout(deployment: Deployment) -> int:
    """Seconds that Triton may take to end, for its --exit-timeout-secs."""
    return math.ceil(deployment.serving.drain_timeout_s) + EXIT_MARGIN_S


def _mpirun_options(mpirun: Mpirun) -> list[str]:
    options = ["--allow-run-as-root", "--bind-to", "none"]
    new = mpirun.version >= (5, 0)
    # Open MPI 4 called by its path puts its own folder first on PATH, and so a python3 in that folder.
    if not new and mpirun.binary != Path(mpirun.binary.name):
        options.append("--noprefix")
    for framework in ("plm", "ras"):
        options += ["--prtemca" if new else "--mca", framework, "^slurm"]
    if new:
        return [*options, "--map-by", ":OVERSUBSCRIBE", "--output", "tag"]
    return [*options, "--oversubscribe", "--tag-output"]


def trace_options(deployment: Deployment) -> list[str]:
    """Triton's own traces of requests, if a collector is to get them. Its rate is one of so many requests."""
    monitoring = deployment.monitoring
    if not monitoring.otlp:
        return []
    settings = (
        "mode=opentelemetry",
        "level=TIMESTAMPS",
        f"rate={max(1, round(1 / monitoring.trace_share))}",
        f"opentelemetry,url={monitoring.otlp.rstrip('/')}/v1/traces",
        f"opentelemetry,resource=service.name={deployment.name}",
    )
    return [f"--trace-config={setting}" for setting in settings]


def _rank_block(deployment: Deployment, server: TritonServer, run: ServerRun, rank: int) -> list[str]:
    serving = deployment.serving
    block = ["-n", "1", str(server.binary), f"--model-repository={run.models}"]
    if rank > 0:
        block += ["--model-control-mode=explicit", f"--load-model={LEADER_MODEL}"]
    block += [
        f"--http-address={serving.host}",
        f"--http-port={serving.http_port}",
        f"--grpc-address={serving.host}",
        f"--grpc-port={serving.grpc_port}",
        f"--metrics-address={serving.host}",
        f"--metrics-port={serving.metrics_port}",
        f"--exit-timeout-secs={exit_timeout(deployment)}",
        "--disable-auto-complete-config",
    ]
    if rank == 0:
        block += trace_options(deployment)
    if is_orchestrated(deployment):  # leave the GPUs' memory to the workers
        block += ["--pinned-memory-pool-byte-size=0", "--enable-peer-access=false"]
        block += [f"--cuda-memory-pool-byte-size={gpu}:0" for gpu in deployment.mapping.ranks]
    if server.backend_directory:
        block.append(f"--backend-directory={server.backend_directory}")
    return [*block, f"--backend-config=python,shm-region-prefix-name={run.shm_prefix}{rank}-"]
