"""Serves one group in the foreground: check, start, supervise, start a starved one again, and leave nothing behind."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from toolkit.config.capabilities import check_can_be_served
from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError
from toolkit.processes import StopRequests, stop_requests
from toolkit.serve import preflight
from toolkit.serve.budget import Budget, startup_budget
from toolkit.serve.command import is_orchestrated
from toolkit.serve.group import Group
from toolkit.serve.group_nodes import GroupNodes, check_nodes, nodes_of, sweep_other_nodes
from toolkit.serve.janitor import ServerRun, sweep
from toolkit.serve.launch import launch, programs
from toolkit.serve.logs import Logs
from toolkit.serve.loopback import LOOPBACK
from toolkit.serve.node_watch import NodeWatch
from toolkit.serve.state import ServerState, exclusive, read_state
from toolkit.serve.supervisor import TICK_S, Starved, Supervisor, note

PAUSES_S = (1.0, 5.0, 20.0)
"""If its Triton gives up a starved process while it loads, a group is started again after each of these, at most."""


def serve_here(deployment: Deployment, verbose: bool = False) -> None:
    """Serve until SIGTERM, SIGHUP or Ctrl-C, then drain.

    A ready line goes to stdout, everything else to stderr. Raises ToolkitError if the deployment cannot be started, is
    already being served, or breaks; then nothing of it remains.
    """
    with exclusive(deployment), stop_requests() as stop:
        clean_up_after(read_state(deployment))
        for pause_s in (*PAUSES_S, None):
            try:
                return _serve_once(deployment, stop, verbose)
            except Starved as error:
                if pause_s is None or stop.count:
                    raise
                note(f"{error.what}. Starting again in {pause_s:g} s")
                again = time.monotonic() + pause_s
                while time.monotonic() < again and not stop.count:
                    time.sleep(TICK_S)
                if stop.count:
                    raise


def _serve_once(deployment: Deployment, stop: StopRequests, verbose: bool) -> None:
    try:
        run = ServerRun.new()
    except OSError as error:
        what = f"cannot make a temporary folder: {error.strerror}"
        raise ToolkitError(what, hint="Set TMPDIR to a folder with room.") from None
    supervisor = Supervisor(deployment, run, stop)
    try:
        supervisor.enter("loading")
        with _started(deployment, run, verbose) as (group, budget):
            outcome = supervisor.serve(group, budget)
    except BaseException as error:
        supervisor.enter("failed", str(error) or type(error).__name__)
        raise
    supervisor.enter("stopped", outcome)
    note(f"stopped: {outcome}")


def clean_up_after(state: ServerState | None) -> None:
    """End the processes of a run whose supervisor and janitor were both killed."""
    if state and (killed := sweep(state.run)):
        note(f"ended {len(killed)} processes that an earlier run (process {state.pid}) left behind")


@contextlib.contextmanager
def _started(deployment: Deployment, run: ServerRun, verbose: bool) -> Iterator[tuple[Group, Budget]]:
    """Start the group for the time of the block, which gets it with its startup budget. Nothing remains at the end."""
    held = contextlib.ExitStack()
    try:
        check_can_be_served(deployment)
        server, mpirun = programs(deployment)
        preflight.check(deployment)
        nodes = nodes_of(deployment)
        if nodes:
            held.callback(sweep_other_nodes, nodes, run)
        watch = held.enter_context(_watch_of(deployment, nodes)) if nodes else None
        start = launch(deployment, server, mpirun, run, nodes, watch.variable if watch else "")
        for line in start.lines:
            note(line)
        orchestrated = is_orchestrated(deployment)
        logs = Logs(deployment.run_dir, deployment.mapping.world_size, note, verbose, orchestrated)
        budget = startup_budget(deployment)
        note(f"startup budget: {budget}")
        ports = deployment.serving.ports().values()
        device = nodes.own.name if nodes and nodes.own else LOOPBACK
        group = Group(start, run, logs, deployment.run_dir, orchestrated, ports, watch, device)
        held.callback(group.end)
        yield group, budget
    finally:
        held.close()
        sweep(run)


def _watch_of(deployment: Deployment, nodes: GroupNodes) -> contextlib.closing[NodeWatch]:
    """Ask the other nodes whether they can serve, and listen for them from now on. Raises ToolkitError."""
    check_nodes(deployment, nodes)
    try:
        return contextlib.closing(NodeWatch(nodes))
    except OSError as error:
        what = f"cannot listen on {nodes.address} for the other nodes: {error.strerror}"
        raise ToolkitError(what, where=deployment.file) from None
