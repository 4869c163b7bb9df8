"""How a group is started where its deployment runs: a rehearsal on this machine, the others as `runtime` says."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.config.capabilities import check_can_be_served
from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError
from toolkit.machine.limits import STACK_BYTES, most_stack
from toolkit.runtime import Needs, Part, end_by_force, require_runtime, script, wrap
from toolkit.runtime.images import advised
from toolkit.serve.command import (
    EXIT_MARGIN_S,
    ORCHESTRATOR_REASONS,
    REASONS,
    command_line,
    environment,
    exit_timeout,
    is_orchestrated,
)
from toolkit.serve.janitor import RUN_ID, Run
from toolkit.serve.share import Share, share_of
from toolkit.serve.tritonserver import NGC_BINARY, Mpirun, TritonServer, find, find_mpirun

SHEBANG = "#!/usr/bin/env bash\n"
DRY_RUN = Run("dry-run", Path("/toolkit-dry-run"))
"""Its folder stands for one that the script makes."""
IN_THE_IMAGE = TritonServer(NGC_BINARY), Mpirun(Path("mpirun"), (4, 1))


@dataclass(frozen=True)
class Launch:
    """A process to start, with its whole environment.

    `by_force` ends what ending that process does not (`toolkit.runtime.end_by_force`); `lines` are for people.
    """

    arguments: list[str]
    environ: Mapping[str, str]
    by_force: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()


def programs(deployment: Deployment) -> tuple[TritonServer, Mpirun]:
    """Those of this machine, looked for; in a container those of the image, where they are known to be."""
    if deployment.kind.on_gpus and deployment.runtime.kind != "host":
        return IN_THE_IMAGE
    return find(deployment.kind, image=advised(deployment)), find_mpirun()


def launch(deployment: Deployment, server: TritonServer, mpirun: Mpirun, run: Run) -> Launch:
    """What starts the group. Raises ToolkitError for what the runtime lacks, and for too few GPUs or cores."""
    _fill(run, deployment, server)
    server = server.linked(run.tmp)
    command = command_line(deployment, server, mpirun, run)
    if not deployment.kind.on_gpus:
        variables = environment(deployment, server, run, _free_port())
        return Launch(_arguments(command), {**os.environ, **variables}, lines=_stack_warning(deployment))
    share = share_of(deployment)
    needs = _needs(deployment, server, run, share)
    require_runtime(deployment, needs)
    wrapped = wrap(deployment, command, needs)
    # Docker's client, too, is a process of the run.
    environ = {**wrapped.environ(), RUN_ID: run.id}
    by_force, lines = end_by_force(deployment, needs) or (), (*share.lines, *_stack_warning(deployment))
    return Launch(wrapped.arguments, environ, tuple(by_force), lines)


def _fill(run: Run, deployment: Deployment, server: TritonServer) -> None:
    """Put into the folder of the run what Triton sees. Raises ToolkitError."""
    try:
        shutil.copytree(deployment.repository_dir, run.models)
        for link, target in server.links(run.tmp).items():
            link.symlink_to(target)
    except OSError as error:
        why = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror
        what = f"the model repository cannot be copied here: {why}"
        raise ToolkitError(what, where=run.tmp, hint="Set TMPDIR to a folder with room.") from None


def dry_run(deployment: Deployment) -> str:
    """What `toolkit serve` would start, as text that a shell runs as it stands; all replicas, where there are several.

    Without the NGC image it is shown as it is run there. The run id and the rehearsal's port, which are
    new for each run, are shown as `dry-run` and 0. The script makes a folder of its own, and leaves it.
    """
    if len(replicas := deployment.per_replica()) > 1:
        each = (f"(  # replica {one.replica}\n{dry_run(one).removeprefix(SHEBANG)}\n) &" for one in replicas)
        return "\n\n".join([SHEBANG.rstrip(), *each, "wait"])
    check_can_be_served(deployment)
    run = DRY_RUN
    if not deployment.kind.on_gpus:
        server, mpirun = programs(deployment)
        linked = server.linked(run.tmp)
        start = shell_text(environment(deployment, linked, run, 0), command_line(deployment, linked, mpirun, run))
        return f"{SHEBANG}set -euo pipefail\n{_in_a_new_folder(start, deployment, server)}"
    try:
        server, mpirun = programs(deployment)
    except ToolkitError:
        server, mpirun = IN_THE_IMAGE
    share, linked = share_of(deployment), server.linked(run.tmp)
    text = script(deployment, command_line(deployment, linked, mpirun, run), _needs(deployment, linked, run, share))
    shebang, _, rest = text.partition("\n")
    reasons = (*REASONS, *(ORCHESTRATOR_REASONS if is_orchestrated(deployment) else ()))
    header = ["# Where the ranks run:", *(f"#   {line}" for line in share.lines)]
    header += ["# Where each option of Triton and mpirun comes from:", *(f"#   {line}" for line in reasons)]
    text = rest.replace(f"mkdir -p -- {run.tmp}\n", "")
    beginning, set_, text = text.partition("set -euo pipefail\n")
    text = _in_a_new_folder(text.strip("\n"), deployment, server)
    return "\n".join([shebang, *header, f"{beginning}{set_}\n{text}"])


def _in_a_new_folder(text: str, deployment: Deployment, server: TritonServer) -> str:
    """The text of a script that uses DRY_RUN's folder, as one that makes a folder and fills it first."""
    lines = [
        'run=$(mktemp -d "${TMPDIR:-/tmp}/toolkit-run-XXXXXXXX")  # for this start alone; remove it when it has ended',
        f'cp -r -- {shlex.quote(str(deployment.repository_dir))} "$run/models"',
    ]
    for link, target in server.links(DRY_RUN.tmp).items():
        lines.append(f'ln -s -- {shlex.quote(str(target))} "$run/{link.name}"')
    return "\n".join([*lines, text.replace(str(DRY_RUN.tmp), '"$run"')])


def _needs(deployment: Deployment, server: TritonServer, run: Run, share: Share) -> Needs:
    """With engines the tokenizer is in the repository, of which the run has a copy. The LLM API reads the model."""
    replica = "" if deployment.replica is None else f"-{deployment.replica}"
    serving = deployment.serving
    return Needs(
        reads=(deployment.engine_dir if deployment.kind.engine_files else deployment.model.path,),
        writes=(run.tmp,),
        gpus=share.gpus,
        cores=share.cores,
        nodes=share.nodes,
        ports=(serving.http_port, serving.grpc_port, serving.metrics_port),
        environment=environment(deployment, server, run, None),
        name=f"toolkit-{deployment.name}-serve{replica}",
        memory_gb=deployment.hardware.host_memory_gb / deployment.parallel.replicas,
        stop_s=exit_timeout(deployment) + EXIT_MARGIN_S,
    )


def _stack_warning(deployment: Deployment) -> tuple[str, ...]:
    """A warning if the hard limit is below the stack that Triton needs. Docker sets its own limits."""
    most, in_docker = most_stack(), deployment.kind.on_gpus and deployment.runtime.kind == "docker"
    if most is None or most >= STACK_BYTES or in_docker:
        return ()
    what = f"warning: stack: the hard limit is {most >> 10} KiB, Triton needs {STACK_BYTES >> 10} KiB: one request of "
    what += "many small chunks or brackets can end it. Raise it as root: ulimit -H -s unlimited"
    return (what,)


def _arguments(command: Sequence[Part]) -> list[str]:
    return [argument for part in command for argument in part.arguments]


def shell_text(variables: Mapping[str, str], command: Sequence[Part]) -> str:
    """The command and its variables, as text for a shell."""
    lines = [["env", *(f"{name}={value}" for name, value in variables.items())]]
    return " \\\n  ".join(shlex.join(line) for line in (*lines, *(part.arguments for part in command)))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
