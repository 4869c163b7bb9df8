"""The command line that starts a group: one mpirun, and what it starts.

NVIDIA's leader mode is one tritonserver a rank. Rank 0 opens the ports and answers. The others load only
`tensorrt_llm`, whose initialisation never returns there, so they can be given the same ports. In orchestrator mode
one tritonserver starts the ranks itself, as worker processes, by MPI_Comm_spawn; so does the LLM API (engine: pytorch).
Source: launch_triton_server.py of tensorrtllm_backend, whose command lines these are, with addresses to bind to and
without its repeats.
"""

from __future__ import annotations

import math
from pathlib import Path

from toolkit.config.deployment import Deployment
from toolkit.machine.limits import STACK_BYTES
from toolkit.runtime import Part
from toolkit.serve.janitor import RUN_ID, Run
from toolkit.serve.tritonserver import Mpirun, TritonServer

LEADER_MODEL = "tensorrt_llm"
REHEARSAL_PORT = "TOOLKIT_REHEARSAL_PORT"
ORCHESTRATOR = "TRTLLM_ORCHESTRATOR"
STACK = Part(
    (
        *("sh", "-c"),
        f'umask 077; ulimit -S -s {STACK_BYTES >> 10} 2>/dev/null || ulimit -S -s "$(ulimit -H -s)"; exec "$@"',
        "sh",
    ),
    "64 MiB of stack a thread, or the most that is allowed: one request can end a Triton that has less",
)
"""Inside the container where there is one. All ranks inherit it from mpirun."""
EXIT_MARGIN_S = 10
"""How much longer than the drain Triton itself would wait: the supervisor ends the drain, not Triton."""
REASONS = (
    "--bind-to none: Open MPI binds small groups to one core a rank, which would starve Triton's threads",
    "--oversubscribe: also where there are fewer cores than ranks, and for an orchestrator's workers",
    "--tag-output: every line with its rank, so that each has its own log",
    "--model-repository: a copy of what toolkit repo made, under a path without characters that a shell would read",
    "--model-control-mode, --load-model: ranks above 0 load the engine alone and wait for rank 0",
    "--*-address, --*-port: serving.host and the ports of the YAML",
    "--exit-timeout-secs: serving.drain_timeout_s and a margin, so that the drain is not Triton's to end",
    "--disable-auto-complete-config: the configs are whole; guessing loads models twice",
    "--backend-config=python,shm-region-prefix-name: shared memory of its own for each rank and run",
)
"""Where the options are from, as a dry run tells it."""
ORCHESTRATOR_REASONS = (
    "--pinned-memory-pool-byte-size, --enable-peer-access, --cuda-memory-pool-byte-size: the GPUs are the workers'",
)


def is_orchestrated(deployment: Deployment) -> bool:
    """Whether one server starts all ranks."""
    return deployment.serving.mode == "orchestrator" or deployment.kind.one_server


def command_line(deployment: Deployment, server: TritonServer, mpirun: Mpirun, run: Run) -> list[Part]:
    """What starts the group. On one node every rank inherits mpirun's environment and limits."""
    parts = [STACK, Part((str(mpirun.binary), *_mpirun_options(mpirun)), "starts the ranks, and ends them all")]
    if is_orchestrated(deployment):
        return [*parts, Part(tuple(_rank_block(deployment, server, run, 0)), "starts the ranks, as its workers")]
    last = deployment.mapping.world_size - 1
    for rank in deployment.mapping.ranks:
        block = _rank_block(deployment, server, run, rank)
        role = "opens the ports and answers" if rank == 0 else "computes its part"
        parts.append(Part((*block, *([":"] if rank < last else [])), f"rank {rank}: {role}"))
    return parts


def environment(deployment: Deployment, server: TritonServer, run: Run, rehearsal_port: int | None) -> dict[str, str]:
    """The variables to start it with, on top of those of this process.

    `rehearsal_port` is where the ranks of a rehearsal meet.
    """
    variables = {**server.environment, RUN_ID: run.id, "TMPDIR": str(run.tmp)}
    if is_orchestrated(deployment) and deployment.kind.vendor_build:
        variables[ORCHESTRATOR] = "1"
    if rehearsal_port is not None:
        variables[REHEARSAL_PORT] = str(rehearsal_port)
    return variables


def exit_timeout(deployment: Deployment) -> int:
    """Seconds that Triton may take to end."""
    return math.ceil(deployment.serving.drain_timeout_s) + EXIT_MARGIN_S


def _mpirun_options(mpirun: Mpirun) -> list[str]:
    # Open MPI binds small groups to one core a rank, which would starve Triton's threads.
    options = ["--allow-run-as-root", "--bind-to", "none"]
    new = mpirun.version >= (5, 0)
    # Called by its path, an older one would put its folder, and a python3 there, first on PATH.
    if not new and mpirun.binary != Path(mpirun.binary.name):
        options.append("--noprefix")
    if new:
        return [*options, "--map-by", ":OVERSUBSCRIBE", "--output", "tag"]
    return [*options, "--oversubscribe", "--tag-output"]


def _rank_block(deployment: Deployment, server: TritonServer, run: Run, rank: int) -> list[str]:
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
    if is_orchestrated(deployment):  # the GPUs' memory is for the workers
        block += ["--pinned-memory-pool-byte-size=0", "--enable-peer-access=false"]
        block += [f"--cuda-memory-pool-byte-size={gpu}:0" for gpu in deployment.mapping.ranks]
    if server.backend_directory:
        block.append(f"--backend-directory={server.backend_directory}")
    return [*block, f"--backend-config=python,shm-region-prefix-name={run.shm_prefix}{rank}-"]
