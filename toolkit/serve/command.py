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
import sys
from pathlib import Path

from toolkit.config.deployment import Deployment
from toolkit.machine.limits import STACK_BYTES
from toolkit.runtime import Part
from toolkit.serve.group_nodes import ON_NODE, GroupNodes
from toolkit.serve.janitor import RUN_ID, ServerRun
from toolkit.serve.mpirun import Mpirun
from toolkit.serve.tritonserver import TritonServer

LEADER_MODEL = "tensorrt_llm"
REHEARSAL_PORT = "TOOLKIT_REHEARSAL_PORT"
REHEARSAL_LEADER, REHEARSAL_ADDRESS = "TOOLKIT_REHEARSAL_LEADER", "TOOLKIT_REHEARSAL_ADDRESS"
"""Of several nodes: the address of rank 0's node, and that of this node (toolkit/engine/rehearsal/comm.py)."""
NODE_WATCH = "TOOLKIT_NODE_WATCH"
"""Where the other nodes report: ADDRESS:PORT:TOKEN."""
SRUN_OVERLAP = "SLURM_OVERLAP"
"""Lets mpirun's srun share the job's nodes with the srun of another replica, for which it would wait (man srun)."""
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
NODE_REASONS = (
    "--host, before each rank: whole pipeline stages on each node, in the order of cluster.hosts",
    "-x: what the ranks on other nodes get of this environment; mpirun hands on nothing else",
    "plm: what starts mpirun's daemon on another node: cluster.launch_agent or ssh, in a Slurm job srun",
    "if_include: the network between the nodes, for mpirun's and MPI's messages",
    "toolkit.serve.on_node: makes the run's folder on another node, and ends what is there when this node is lost",
)
"""The same for a group over several nodes."""
ORCHESTRATOR_REASONS = (
    "--pinned-memory-pool-byte-size, --enable-peer-access, --cuda-memory-pool-byte-size: only the workers use GPUs",
)


def is_orchestrated(deployment: Deployment) -> bool:
    """Whether one tritonserver starts all ranks."""
    return deployment.serving.mode == "orchestrator" or deployment.kind.one_server


def command_line(
    deployment: Deployment, server: TritonServer, mpirun: Mpirun, run: ServerRun, nodes: GroupNodes | None = None
) -> list[Part]:
    """The command line, in parts. On one node every rank inherits mpirun's environment and limits."""
    options = _mpirun_options(mpirun, nodes)
    if nodes:
        options += _handed_on(deployment, server, run, nodes)
    parts = [STACK, Part((str(mpirun.binary), *options), "starts the ranks, and ends them all if one ends")]
    if is_orchestrated(deployment):
        return [*parts, Part(tuple(_rank_block(deployment, server, run, 0)), "starts the ranks, as its workers")]
    last = deployment.mapping.world_size - 1
    for rank in deployment.mapping.ranks:
        block = _rank_block(deployment, server, run, rank, nodes)
        role = "opens the ports and answers" if rank == 0 else "computes its part"
        place = f" on {nodes.hosts[rank // deployment.mapping.ranks_per_node]}" if nodes else ""
        parts.append(Part((*block, *([":"] if rank < last else [])), f"rank {rank}{place}: {role}"))
    return parts


def environment(
    deployment: Deployment,
    server: TritonServer,
    run: ServerRun,
    rehearsal_port: int | None,
    nodes: GroupNodes | None = None,
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
    if nodes:
        variables |= _of_nodes(nodes, rehearsal_port is not None)
    return variables


def _of_nodes(nodes: GroupNodes, rehearsal: bool) -> dict[str, str]:
    """The variables that keep the messages between ranks on the network between the nodes.

    toolkit.serve.launch fills in NODE_WATCH; without it nobody watches, as in a dry run.
    """
    variables = {NODE_WATCH: ""}
    if nodes.in_slurm:
        variables[SRUN_OVERLAP] = "1"
    if rehearsal:
        return variables | {REHEARSAL_LEADER: nodes.address, REHEARSAL_ADDRESS: nodes.address}
    if nodes.own:
        variables["OMPI_MCA_btl_tcp_if_include"] = nodes.own.network
    if nodes.interface and nodes.own:
        variables["NCCL_SOCKET_IFNAME"] = f"={nodes.own.name}"
    return variables


def _handed_on(deployment: Deployment, server: TritonServer, run: ServerRun, nodes: GroupNodes) -> list[str]:
    """mpirun's options for the variables that the ranks on other nodes need."""
    port = None if deployment.kind.on_gpus else 0
    names = {*environment(deployment, server, run, port, nodes)}
    if deployment.kind.on_gpus:
        names |= {"CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES"}
    return [word for name in sorted(names) for word in ("-x", name)]


def exit_timeout(deployment: Deployment) -> int:
    """Seconds that Triton may take to end, for its --exit-timeout-secs."""
    return math.ceil(deployment.serving.drain_timeout_s) + EXIT_MARGIN_S


def _mpirun_options(mpirun: Mpirun, nodes: GroupNodes | None) -> list[str]:
    options = ["--allow-run-as-root", "--bind-to", "none"]
    new = mpirun.version >= (5, 0)
    # Open MPI 4 called by its path puts its own folder first on PATH, and so a python3 in that folder.
    if not new and mpirun.binary != Path(mpirun.binary.name):
        options.append("--noprefix")
    if nodes is None or not nodes.in_slurm:
        for framework in ("plm", "ras"):
            options += ["--prtemca" if new else "--mca", framework, "^slurm"]
    if nodes and nodes.own:
        setting = ("--prtemca", "prte_if_include") if new else ("--mca", "oob_tcp_if_include")
        options += [*setting, nodes.own.network]
    if nodes and nodes.agent:
        options += ["--prtemca", "plm_ssh_agent"] if new else ["--mca", "plm_rsh_agent"]
        options.append(str(nodes.agent))
    if new:
        return [*options, "--map-by", ":OVERSUBSCRIBE", "--output", "tag"]
    return [*options, "--oversubscribe", "--tag-output"]


def _on_its_node(deployment: Deployment, run: ServerRun, rank: int, nodes: GroupNodes | None) -> list[str]:
    """What puts a rank on its node. On another one than this the server starts by toolkit.serve.on_node."""
    if nodes is None:
        return []
    node = rank // deployment.mapping.ranks_per_node
    host = ["--host", nodes.hosts[node]]
    if node == 0:
        return host
    start = [sys.executable, *ON_NODE, nodes.hosts[node], "--engine", deployment.engine]
    start += ["--interface", nodes.interface] if nodes.interface else []
    return [*host, *start, "--repository", str(deployment.repository_dir), "--tmp", str(run.tmp), "--"]


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


def _rank_block(
    deployment: Deployment, server: TritonServer, run: ServerRun, rank: int, nodes: GroupNodes | None = None
) -> list[str]:
    serving = deployment.serving
    block = ["-n", "1", *_on_its_node(deployment, run, rank, nodes)]
    block += [str(server.binary), f"--model-repository={run.models}"]
    if rank > 0:
        block += ["--model-control-mode=explicit", f"--load-model={LEADER_MODEL}"]
    block += [
        f"--http-address={serving.host}",
        f"--http-port={serving.http_port}",
        f"--grpc-address={serving.host}",
        f"--grpc-port={serving.grpc_port}",
        f"--metrics-address={serving.metrics_host or serving.host}",
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
