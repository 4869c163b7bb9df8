"""Builds the process that starts a group, where `runtime` says.

In a container a rehearsal has the tritonserver and the Python of this machine, mounted at their own places.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.config.capabilities import check_can_be_served
from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError
from toolkit.machine.limits import STACK_BYTES, most_stack
from toolkit.processes import free_port
from toolkit.runtime import Needs, Part, end_by_force, require_runtime, script, wrap
from toolkit.runtime.images import advised
from toolkit.serve.command import (
    EXIT_MARGIN_S,
    NODE_REASONS,
    NODE_WATCH,
    ORCHESTRATOR_REASONS,
    REASONS,
    command_line,
    environment,
    exit_timeout,
    is_orchestrated,
)
from toolkit.serve.group_nodes import GroupNodes, nodes_of
from toolkit.serve.janitor import RUN_ID, ServerRun
from toolkit.serve.model_python import this_python
from toolkit.serve.mpirun import Mpirun, find_mpirun
from toolkit.serve.share import SeenGpus, Share, look_at_gpus_here, share_of
from toolkit.serve.tritonserver import NGC_BINARY, TritonServer, find_tritonserver
from toolkit.serve.user_folders import user_cache

SHEBANG = "#!/usr/bin/env bash\n"
DRY_RUN = ServerRun("dry-run", Path("/toolkit-dry-run"))
"""Stands for the run in the script of a dry run, which makes a folder of its own in place of this one."""
IN_THE_IMAGE = TritonServer(NGC_BINARY), Mpirun(Path("mpirun"), (4, 1))


@dataclass(frozen=True)
class Launch:
    """A process to start, with its whole environment.

    `by_force` is a command that ends what outlives that process (`toolkit.runtime.end_by_force`). `lines` are to be
    shown to the user.
    """

    arguments: list[str]
    environ: Mapping[str, str]
    by_force: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()


def programs(deployment: Deployment) -> tuple[TritonServer, Mpirun]:
    """tritonserver and mpirun: found on this machine, or for a container at their places in the image."""
    if deployment.kind.on_gpus and deployment.runtime.kind != "host":
        return IN_THE_IMAGE
    return find_tritonserver(deployment.kind, image=advised(deployment)), find_mpirun()


def launch(
    deployment: Deployment,
    server: TritonServer,
    mpirun: Mpirun,
    run: ServerRun,
    nodes: GroupNodes | None = None,
    node_watch: str = "",
) -> Launch:
    """The process that starts the group. Raises ToolkitError for a runtime that cannot start it, or too few GPUs.

    `node_watch` is where the other of several `nodes` report.
    """
    watched = {NODE_WATCH: node_watch} if nodes else {}
    _fill(run, deployment, server)
    server = server.linked(run.tmp)
    command = command_line(deployment, server, mpirun, run, nodes)
    share = _share(deployment)
    variables = environment(deployment, server, run, None if deployment.kind.on_gpus else free_port(), nodes)
    needs = _needs(deployment, variables, run, share)
    require_runtime(deployment, needs)
    wrapped = wrap(deployment, command, needs)
    # Docker's client is a process of the run too.
    environ = {**wrapped.environ(), RUN_ID: run.id, **watched}
    by_force, lines = end_by_force(deployment, needs) or (), (*share.lines, *_stack_warning(deployment))
    return Launch(wrapped.arguments, environ, tuple(by_force), lines)


def _fill(run: ServerRun, deployment: Deployment, server: TritonServer) -> None:
    """Copy the model repository, and link the server's parts, into the run's folder. Raises ToolkitError."""
    try:
        shutil.copytree(deployment.repository_dir, run.models)
        for link, target in server.links(run.tmp).items():
            link.symlink_to(target)
    except OSError as error:
        why = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror
        what = f"cannot copy the model repository to here: {why}"
        raise ToolkitError(what, where=run.tmp, hint="Set TMPDIR to a folder with room.") from None


def dry_run(deployment: Deployment, seen: SeenGpus | None = None) -> str:
    """What `toolkit serve` would start, as a script that a shell can run; it starts all replicas.

    On a machine without tritonserver the script has the paths of the NGC image. The run id and the rehearsal's port,
    which differ between runs, are `dry-run` and 0. The script makes a folder and does not remove it. `seen` are the
    GPUs, if they were looked at already.
    """
    check_can_be_served(deployment)
    if seen is None and deployment.kind.on_gpus:
        seen = look_at_gpus_here()
    if len(replicas := deployment.per_replica()) > 1:
        scripts = {replica.replica: dry_run(replica, seen).removeprefix(SHEBANG) for replica in replicas}
        each = (f"(  # replica {number}\n{text}\n) &" for number, text in scripts.items())
        return "\n\n".join([SHEBANG.rstrip(), *each, "wait"])
    run, nodes = DRY_RUN, nodes_of(deployment, anywhere=True)
    if not deployment.kind.on_gpus and deployment.runtime.kind == "host":
        server, mpirun = programs(deployment)
        linked = server.linked(run.tmp)
        command = command_line(deployment, linked, mpirun, run, nodes)
        start = shell_text(environment(deployment, linked, run, 0, nodes), command)
        return f"{SHEBANG}set -euo pipefail\n{_in_a_new_folder(start, deployment, server)}"
    try:
        server, mpirun = programs(deployment)
    except ToolkitError:
        if not deployment.kind.on_gpus:
            raise
        server, mpirun = IN_THE_IMAGE
    share, linked = _share(deployment, seen), server.linked(run.tmp)
    variables = environment(deployment, linked, run, None if deployment.kind.on_gpus else 0, nodes)
    command = command_line(deployment, linked, mpirun, run, nodes)
    text = script(deployment, command, _needs(deployment, variables, run, share))
    shebang, _, rest = text.partition("\n")
    reasons = (
        *REASONS,
        *(ORCHESTRATOR_REASONS if is_orchestrated(deployment) else ()),
        *(NODE_REASONS if nodes else ()),
    )
    header = ["# Where the ranks run:", *(f"#   {line}" for line in share.lines)]
    header += ["# Where each option of Triton and mpirun comes from:", *(f"#   {line}" for line in reasons)]
    text = rest.replace(f"mkdir -p -- {run.tmp}\n", "")
    beginning, set_, text = text.partition("set -euo pipefail\n")
    text = _in_a_new_folder(text.strip("\n"), deployment, server)
    return "\n".join([shebang, *header, f"{beginning}{set_}\n{text}"])


def _in_a_new_folder(text: str, deployment: Deployment, server: TritonServer) -> str:
    """The script `text`, which names DRY_RUN's folder, changed so that it first makes a new folder and fills it."""
    lines = [
        'run=$(mktemp -d "${TMPDIR:-/tmp}/toolkit-run-XXXXXXXX")  # for this start alone; remove it when it has ended',
        f'cp -r -- {shlex.quote(str(deployment.repository_dir))} "$run/models"',
    ]
    for link, target in server.links(DRY_RUN.tmp).items():
        lines.append(f'ln -s -- {shlex.quote(str(target))} "$run/{link.name}"')
    return "\n".join([*lines, text.replace(str(DRY_RUN.tmp), '"$run"')])


def _share(deployment: Deployment, seen: SeenGpus | None = None) -> Share:
    return share_of(deployment, seen) if deployment.kind.on_gpus else Share(gpus=())


def _needs(deployment: Deployment, variables: Mapping[str, str], run: ServerRun, share: Share) -> Needs:
    """What the group needs of the runtime.

    An engine's tokenizer is in the repository, and the run has a copy of that. The LLM API reads the model's folder.
    """
    replica = "" if deployment.replica is None else f"-{deployment.replica}"
    serving, traffic = deployment.serving, deployment.monitoring.traffic
    own = () if deployment.kind.on_gpus or deployment.runtime.kind == "host" else (*this_python(), user_cache())
    return Needs(
        reads=(deployment.engine_dir if deployment.kind.engine_files else deployment.model.path, *own),
        writes=(run.tmp, *((traffic.parent,) if traffic else ())),
        gpus=share.gpus,
        cores=share.cores,
        nodes=share.nodes,
        ports=(serving.http_port, serving.grpc_port, serving.metrics_port),
        environment=variables,
        name=f"toolkit-{deployment.name}-serve{replica}",
        memory_gb=deployment.hardware.host_memory_gb / deployment.parallel.replicas,
        stop_s=exit_timeout(deployment) + EXIT_MARGIN_S,
    )


def _stack_warning(deployment: Deployment) -> tuple[str, ...]:
    """A warning if the hard limit is below the stack that Triton needs; none with docker, which sets its own limits."""
    most = most_stack()
    if most is None or most >= STACK_BYTES or deployment.runtime.kind == "docker":
        return ()
    return (
        f"warning: stack: the hard limit is {most >> 10} KiB, Triton needs {STACK_BYTES >> 10} KiB. With less, one "
        "request of many small chunks or brackets can end Triton. Raise the limit as root: ulimit -H -s unlimited",
    )


def shell_text(variables: Mapping[str, str], command: Sequence[Part]) -> str:
    """The command and its variables, as text for a shell."""
    lines = [["env", *(f"{name}={value}" for name, value in variables.items())]]
    return " \\\n  ".join(shlex.join(line) for line in (*lines, *(part.arguments for part in command)))
