"""The command line that starts a group: NVIDIA's leader mode, one mpirun with one tritonserver a rank.

Rank 0 opens the ports and answers. The others load only `tensorrt_llm`, whose initialisation never
returns there, so they can be given the same ports. Source: launch_triton_server.py of
tensorrtllm_backend, whose command lines these are, with addresses to bind to and without its repeats.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path

from toolkit.config import Deployment
from toolkit.errors import ToolkitError
from toolkit.serve.janitor import RUN_ID, Run
from toolkit.serve.tritonserver import NGC_BINARY, Mpirun, TritonServer, find, find_mpirun

LEADER_MODEL = "tensorrt_llm"
REHEARSAL_PORT = "TOOLKIT_REHEARSAL_PORT"
EXIT_MARGIN_S = 10
"""How much longer than the drain Triton itself would wait: the supervisor ends the drain, not Triton."""


def command_line(deployment: Deployment, server: TritonServer, mpirun: Mpirun, run: Run) -> list[str]:
    """The arguments that start the group. On one node every rank inherits mpirun's environment."""
    arguments = [str(mpirun.binary), *_mpirun_options(deployment, mpirun)]
    for rank in deployment.mapping.ranks:
        arguments += [*_rank_block(deployment, server, run, rank), ":"]
    return arguments[:-1]


def environment(server: TritonServer, run: Run, rehearsal_port: int | None) -> dict[str, str]:
    """The variables to start it with, on top of those of this process.

    `rehearsal_port` is where the ranks of a rehearsal meet.
    """
    variables = {**server.environment, RUN_ID: run.id, "TMPDIR": str(run.tmp)}
    if rehearsal_port is not None:
        variables[REHEARSAL_PORT] = str(rehearsal_port)
    return variables


def dry_run(deployment: Deployment) -> str:
    """The command line as text for a shell, one rank block a line; of each replica, where there are several.

    Without the NGC image it is shown as it is run there. The run id and the rehearsal's port, which are
    new for each run, are shown as `dry-run` and 0.
    """
    if len(replicas := deployment.apart()) > 1:
        return "\n".join(f"# replica {one.replica}\n{dry_run(one)}" for one in replicas)
    run = Run("dry-run", Path("/tmp/toolkit-dry-run"))
    rehearsal = deployment.engine == "rehearsal"
    try:
        server, mpirun = find(deployment.engine), find_mpirun()
    except ToolkitError:
        if rehearsal:
            raise
        server, mpirun = TritonServer(NGC_BINARY), Mpirun(Path("mpirun"), (4, 1))
    variables = environment(server, run, 0 if rehearsal else None)
    return _shell_text(variables, command_line(deployment, server, mpirun, run))


def _shell_text(variables: Mapping[str, str], arguments: list[str]) -> str:
    lines = [["env", *(f"{name}={value}" for name, value in variables.items())], []]
    for argument in arguments:
        if argument == "-n":
            lines.append([])
        lines[-1].append(argument)
    return " \\\n  ".join(shlex.join(line) for line in lines)


def _mpirun_options(deployment: Deployment, mpirun: Mpirun) -> list[str]:
    # Open MPI binds small groups to one core a rank, which would starve Triton's threads.
    options = ["--allow-run-as-root", "--bind-to", "none"]
    new = mpirun.version >= (5, 0)
    if not new:  # called by its path, it would put its folder, and a python3 there, first on PATH
        options.append("--noprefix")
    if deployment.engine == "rehearsal":  # usually more ranks than cores
        options += ["--map-by", ":OVERSUBSCRIBE"] if new else ["--oversubscribe"]
    return options + (["--output", "tag"] if new else ["--tag-output"])


def _rank_block(deployment: Deployment, server: TritonServer, run: Run, rank: int) -> list[str]:
    serving = deployment.serving
    exit_timeout = math.ceil(serving.drain_timeout_s) + EXIT_MARGIN_S
    block = ["-n", "1", str(server.binary), f"--model-repository={deployment.repository_dir}"]
    if rank > 0:
        block += ["--model-control-mode=explicit", f"--load-model={LEADER_MODEL}"]
    block += [
        f"--http-address={serving.host}",
        f"--http-port={serving.http_port}",
        f"--grpc-address={serving.host}",
        f"--grpc-port={serving.grpc_port}",
        f"--metrics-address={serving.host}",
        f"--metrics-port={serving.metrics_port}",
        f"--exit-timeout-secs={exit_timeout}",
        "--disable-auto-complete-config",
    ]
    if server.backend_directory:
        block.append(f"--backend-directory={server.backend_directory}")
    return [*block, f"--backend-config=python,shm-region-prefix-name={run.shm_prefix}{rank}-"]
