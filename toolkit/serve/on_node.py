"""Starts a rank on another node of a group: `python -m toolkit.serve.on_node HOST ... -- TRITONSERVER ...`.

mpirun starts this in place of the server. The first rank of a node makes what the first node has: the run's folder with
a copy of the model repository, and the links to the server's parts. It also leaves a process that watches the first
node. When that is lost, or has ended the group, the process ends everything of the run here and removes its files.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from toolkit.config.engine_kind import KINDS
from toolkit.errors import ToolkitError
from toolkit.files import artifacts
from toolkit.files.atomic import make_private
from toolkit.machine.limits import STACK_BYTES
from toolkit.serve.command import NODE_WATCH, REHEARSAL_ADDRESS
from toolkit.serve.group_nodes import interface_of
from toolkit.serve.heartbeat import watch
from toolkit.serve.janitor import RUN_ID, ServerRun, members, sweep
from toolkit.serve.loopback import keep_local
from toolkit.serve.tritonserver import find_tritonserver

READY = "node-ready"
"""A file in the run's folder: the node's first rank has made it."""
FIRST_RANK_S = 300
DAEMONS = ("prted", "orted")
DAEMON_ENDS_S = 3.0


def main(*arguments: str) -> int:
    """Become the server, check that this node can, or sweep up after it. Returns the exit code of a failure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--sweep", default="", metavar="RUN_ID")
    parser.add_argument("--engine", default="")
    parser.add_argument("--interface", default="")
    parser.add_argument("--repository", type=Path)
    parser.add_argument("--tmp", type=Path)
    parser.add_argument("--made", action="append", default=[])
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:end])
    try:
        if options.check:
            _check(options)
            return 0
        if options.sweep:
            sweep(ServerRun(options.sweep, options.tmp))
            return 0
        _serve(options, arguments[end + 1 :])
    except ToolkitError as error:
        print(error, file=sys.stderr)
    return 1


def _check(options: argparse.Namespace) -> None:
    """Raise a ToolkitError if a rank could not start here, or would serve something else."""
    interface_of(options.host, options.interface)
    for made in options.made:
        digest, _, place = made.partition("=")
        lock = artifacts.read_lock(Path(place))
        if lock is None or lock.digest != digest:
            what = "is not what the first node has" if lock else "is not here"
            raise ToolkitError(what, where=place, hint="Share its disk, or copy it to the same path.")
    find_tritonserver(KINDS[options.engine])


def _serve(options: argparse.Namespace, command: Sequence[str]) -> None:
    """Become the server."""
    own = interface_of(options.host, options.interface)
    run = ServerRun(os.environ[RUN_ID], options.tmp)
    if os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK", "0") == "0":
        _prepare(run, options)
        _leave_watcher(run, options.host, own.name)
        (run.tmp / READY).touch()
    else:
        _await(run)
    os.environ[REHEARSAL_ADDRESS] = own.address
    os.umask(0o077)
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    soft = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))
    os.execvp(command[0], [*command])


def _prepare(run: ServerRun, options: argparse.Namespace) -> None:
    if not run.is_ours:
        raise ToolkitError("is not a folder of a run", where=run.tmp)
    server = find_tritonserver(KINDS[options.engine])
    try:
        make_private(run.tmp)  # in a Slurm job mpirun's daemon has the same TMPDIR, and has made it
        shutil.copytree(options.repository, run.models)
        for link, target in server.links(run.tmp).items():
            link.symlink_to(target)
    except OSError as error:
        what = f"cannot make the run's folder: {error.strerror or error}"
        raise ToolkitError(what, where=run.tmp, hint="It needs room, and the same TMPDIR as the first node.") from None


def _await(run: ServerRun) -> None:
    """Wait for the first rank of this node."""
    deadline = time.monotonic() + FIRST_RANK_S
    while not (run.tmp / READY).exists():
        if time.monotonic() > deadline:
            raise ToolkitError("the first rank of this node has not made it", where=run.tmp)
        time.sleep(0.1)


def _leave_watcher(run: ServerRun, host: str, device: str) -> None:
    """Connect to the first node, and leave a process behind that holds this connection.

    Raises ToolkitError if the first node cannot be reached. Without NODE_WATCH nobody is there to be watched.
    """
    if not (where := os.environ.pop(NODE_WATCH, "")):
        return
    address, port, token = where.split(":")
    daemon = os.getppid()
    try:
        connection = socket.create_connection((address, int(port)), timeout=30)
        connection.sendall(f"{token} {host}\n".encode())
    except OSError as error:
        what = f"cannot reach the first node at {address}:{port}: {error.strerror or error}"
        raise ToolkitError(what, hint="A firewall between the nodes must let all TCP ports through.") from None
    connection.settimeout(None)
    if os.fork():
        connection.close()
        return
    try:
        _leave_terminal()
        watch(connection, _kept_closed(run, daemon, device))
        sweep(run)
        _end_daemon(daemon)
    finally:
        os._exit(0)


def _leave_terminal() -> None:
    """Go on without mpirun's pipes, which would never end, and without its signals."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nothing, descriptor)


def _kept_closed(run: ServerRun, daemon: int, device: str) -> Callable[[], bool]:
    """Each second: let only the network between the nodes reach what listens everywhere."""

    def look() -> bool:
        keep_local([daemon, *(member.pid for member in members(run))], (), device)
        return True

    return look


def _end_daemon(pid: int) -> None:
    """End mpirun's daemon, which without its cable would stay for a quarter of an hour. It first removes its files."""
    with contextlib.suppress(OSError):
        for number in (signal.SIGTERM, signal.SIGKILL):
            end = time.monotonic() + DAEMON_ENDS_S
            while Path(f"/proc/{pid}/comm").read_text().strip() in DAEMONS and time.monotonic() < end:
                os.kill(pid, number)
                time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
