"""A running group: mpirun, one tritonserver per rank, and the Python processes of their models."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from toolkit.serve.command import LEADER_MODEL
from toolkit.serve.janitor import Janitor, Member, ServerRun, members, of_ranks, sweep
from toolkit.serve.launch import Launch
from toolkit.serve.logs import ORCHESTRATOR, Logs, name_of
from toolkit.serve.loopback import LOOPBACK, keep_local
from toolkit.serve.node_watch import REPORT_S, NodeWatch

PR_SET_CHILD_SUBREAPER = 36
"""<linux/prctl.h>"""
MPIRUN_ENDS_S = 0.6
"""When a signal ends mpirun, it kills the ranks and ends within this time after them (measured: 0.26 s)."""
MPIRUN_REPORT_S = 3.0
"""After a rank's death mpirun has this long to report how the rank died, and to end."""


@dataclass(frozen=True)
class Death:
    """How the process that broke the group ended. `rank` is None for mpirun, which alone has an exit `code`."""

    rank: int | None
    how: str
    code: int | None = None
    node: str = ""
    """The host of a node that was lost, with all its ranks."""

    @property
    def killed(self) -> bool:
        return "killed by" in self.how

    def __str__(self) -> str:
        return f"node {self.node} {self.how}" if self.node else f"{name_of(self.rank)} {self.how}"


class Group:
    """Starts the processes, knows the rank of each, and reports which one ended first."""

    def __init__(
        self,
        launch: Launch,
        run: ServerRun,
        logs: Logs,
        cwd: Path,
        orchestrated: bool = False,
        public_ports: Collection[int] = (),
        nodes: NodeWatch | None = None,
        device: str = LOOPBACK,
    ) -> None:
        """`nodes` hears the other nodes of the group, if there are any; `device` is the interface between them."""
        self._nodes, self._device = nodes, device
        self.logs = logs
        self._public_ports = public_ports
        self.open_ports: dict[int, str] = {}
        """Ports, other than the public ones, that other machines can reach; and the error that keeps them open."""
        self._run, self._by_force, self._janitor = run, launch.by_force, Janitor(run, launch.by_force)
        self._orchestrated = orchestrated
        self._ended = False
        _adopt_orphans()
        # In a session of its own: Ctrl-C in the terminal reaches only the supervisor, which then drains.
        self._mpirun = subprocess.Popen(
            launch.arguments,
            env=dict(launch.environ),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        assert self._mpirun.stdout
        logs.follow(self._mpirun.stdout)
        self._selector = selectors.DefaultSelector()
        self._watched: dict[int, Member] = {}
        self._ranks: dict[int | None, Member] = {}
        self._watch(Member(self._mpirun.pid, os.getpid(), None, tuple(launch.arguments)))

    def look(self, models: bool = False) -> int:
        """Watch the ranks' processes that run now, with `models` also those of the models. Keep their ports local.

        Returns how many ranks run. Watch the model processes only after the group is ready: while it loads, a model
        that cannot load ends its own server, and the server then says why.
        """
        running = members(self._run)
        self.open_ports = keep_local([member.pid for member in running], self._public_ports, self._device)
        for member in of_ranks(running):
            if self._ranks.setdefault(self._key(member), member) is member:
                self._watch(member)
        for member in running if models else []:
            if member.model:
                self._watch(member)
        return sum(rank != ORCHESTRATOR for rank in self._ranks)

    def wait(self, timeout_s: float) -> Death | None:
        """The death that breaks the group, as soon as it happens; None if there is none within `timeout_s`.

        Each death is reported once.
        """
        self._janitor.keep_alive()
        keys = [key for key, _ in self._selector.select(timeout_s)]
        ended = [key.data for key in keys]
        for key in keys:
            self._selector.unregister(key.fd)
            os.close(key.fd)
        for member in ended:
            self._end_rest_of(member)
        return self._culprit(ended) if ended else self.lost_node()

    def lost_node(self, wait_s: float = 0.0) -> Death | None:
        """The other node that was lost, if one was or is within `wait_s`."""
        lost = self._nodes.lost(wait_s) if self._nodes else None
        return Death(None, lost[1], node=lost[0]) if lost else None

    def resident_bytes(self) -> int:
        """Memory of all processes of the group. A page that several share is counted for each."""
        total = 0
        for member in members(self._run):
            with contextlib.suppress(OSError, IndexError):
                total += int(Path(f"/proc/{member.pid}/statm").read_text().split()[1])
        return total * os.sysconf("SC_PAGE_SIZE")

    def end_leader(self) -> None:
        """Ask only the server that answers to end. A signal to mpirun would end all ranks at once."""
        if leader := self._leader():
            with contextlib.suppress(ProcessLookupError):
                os.kill(leader.pid, signal.SIGTERM)

    def _end_rest_of(self, ended: Member) -> None:
        """If a server above rank 0 has ended, end its Python processes, so that the other ranks notice at once.

        These processes would end by themselves within a second. But mpirun ends rank 0 sooner than that, and rank 0
        would have no time to send errors to its clients.
        """
        if ended.rank and not ended.model:
            for member in members(self._run):
                if member.rank == ended.rank and member.model:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(member.pid, signal.SIGKILL)

    def let_engine_end(self, timeout_s: float) -> None:
        """After the loss of another rank, wait until rank 0's engine process has ended. NVIDIA's engine has none."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and any(
            member.rank == 0 and member.model == LEADER_MODEL for member in members(self._run)
        ):
            time.sleep(0.05)

    def leader_is_alive(self) -> bool:
        leader = self._leader()
        return leader is not None and any(member.pid == leader.pid for member in members(self._run))

    def end(self) -> None:
        """Kill the processes that remain and remove their files. Returns when nothing remains. Idempotent."""
        if self._ended:
            return
        self._ended = True
        killed = sweep(self._run, self._by_force)
        self._janitor.dismiss()
        self._mpirun.wait()
        self.logs.finish()
        _collect({*killed, *self._watched})
        for key in list(self._selector.get_map().values()):
            os.close(key.fd)
        self._selector.close()

    def _watch(self, member: Member) -> None:
        if member.pid in self._watched:
            return
        # It may have ended. If the group needed it, mpirun ends too, and mpirun is watched.
        with contextlib.suppress(ProcessLookupError):
            self._selector.register(os.pidfd_open(member.pid), selectors.EVENT_READ, member)
            self._watched[member.pid] = member

    def _leader(self) -> Member | None:
        return self._ranks.get(ORCHESTRATOR if self._orchestrated else 0)

    def _key(self, member: Member) -> int | None:
        """The deployment's rank of a process. An orchestrator has none, although Open MPI calls it rank 0."""
        is_orchestrator = self._orchestrated and member.rank is not None and member.server
        return ORCHESTRATOR if is_orchestrator else member.rank

    def _culprit(self, ended: list[Member]) -> Death:
        """The process that broke the group, of several that ended at the same time: the one that was killed."""
        models = [member for member in ended if member.model]
        deaths = [Death(self._key(m), f"lost its {m.model} process {m.pid}: {_how(m.pid)}") for m in models]
        # On another node the death of a rank is seen here as that of rank 0's engine, and then in mpirun's report.
        if (self._nodes or len(models) < len(ended)) and (report := self._mpirun_report(ended)):
            deaths.insert(0, report)
        elif lost := self.lost_node(REPORT_S):
            return lost
        elif self._mpirun_got_a_signal():
            return Death(None, f"was told to end by a signal, and ended its ranks ({_describe(self._mpirun.wait())})")
        if deaths:
            return next((death for death in deaths if death.killed), deaths[0])
        member = min(ended, key=lambda member: -1 if member.rank is None else member.rank)
        if member.rank is None:
            code = self._mpirun.wait()
            return Death(None, _describe(code), code)
        return Death(self._key(member), f"(process {member.pid}) ended; mpirun did not say how")

    def _mpirun_got_a_signal(self) -> bool:
        """Whether mpirun ends because of a signal, not because of a rank. It then kills the ranks silently."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._mpirun.wait(MPIRUN_ENDS_S) > 0 and not self.logs.last(None)
        return False

    def _mpirun_report(self, ended: list[Member]) -> Death | None:
        """What mpirun, their parent, prints about the exit status of one of these processes."""
        known = {member.rank: self._key(member) for member in ended}
        deadline = time.monotonic() + MPIRUN_REPORT_S
        while True:
            is_complete = self._mpirun.poll() is not None
            if is_complete:
                self.logs.finish(0.5)
            text = " ".join(" ".join(self.logs.last(None)).split())
            if match := re.search(r"process rank (\d+) with PID (\d+) .*?exited on signal (\d+)", text):
                return Death(known.get(int(match[1]), int(match[1])), _describe(-int(match[3])))
            if match := re.search(r"Process name: \[.*?,(\d+)\] Exit code: (\d+)", text):
                return Death(known.get(int(match[1]), int(match[1])), _describe(int(match[2])))
            if is_complete or time.monotonic() > deadline:
                return None
            time.sleep(0.05)


def _adopt_orphans() -> None:
    """Become the parent of descendants whose parent ends. Otherwise init does, which a container may not have."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _collect(pids: set[int]) -> None:
    """Collect the exit status of ended processes that are now our children, so that no zombie stays."""
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def _how(pid: int) -> str:
    """How a process ended, if its parent has not yet collected its exit status."""
    try:
        status = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[-1])
        return _describe(os.waitstatus_to_exitcode(status))
    except (OSError, ValueError, IndexError):
        return "ended by itself"


def _describe(code: int) -> str:
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
