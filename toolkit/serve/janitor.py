"""Ends every process of a run and removes its files, whichever process was killed and how.

Each process of a run has TOOLKIT_RUN_ID in its environment. Each shared-memory segment has the run's prefix in its
name. The supervisor sweeps whenever it ends, except after its own SIGKILL. For that case there is a janitor process in
a session of its own, which holds a pipe from the supervisor. End of file means that the supervisor is gone.

The janitor runs this file as a script, with the standard library only, so that it starts at once and depends on
nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RUN_ID = "TOOLKIT_RUN_ID"
"""Environment variable that marks every process of a run."""
FORCE_S = 30
SHARED_MEMORY = Path("/dev/shm")
FOLDER_PREFIX = "toolkit-run-"
DRAINING = "draining"
"""A file in the run's folder. While it exists, the models of triton_repo/ refuse new requests."""
FAILING = "failing"
"""A file in the run's folder. In a rehearsal, the share of the requests that fail while it exists, as `0.25`."""
_ID = re.compile(r"[0-9a-f]{8}")


@dataclass(frozen=True)
class ServerRun:
    """One start of a server group: the id and the folder by which its processes and files are recognised."""

    id: str
    tmp: Path
    """TMPDIR of the run's processes, for Open MPI's session files and the models' temporary files."""

    @classmethod
    def new(cls) -> ServerRun:
        """A run with an id and a temporary folder of its own."""
        run_id, folder = secrets.token_hex(4), tempfile.gettempdir()
        if not re.fullmatch(r"[A-Za-z0-9._/+-]+", folder):  # Triton passes paths below it to a shell
            folder = "/tmp"
        return cls(run_id, Path(tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}{run_id}-", dir=folder)))

    @property
    def models(self) -> Path:
        """The copy of the model repository that Triton reads. Its path has no special characters of a shell.

        The copy stays as it is when the repository is made again.
        """
        return self.tmp / "models"

    @property
    def is_ours(self) -> bool:
        """Whether the id and the folder can come from `new`. A state file may name others, which must not be removed.

        True also if the folder is gone. Never follows a link.
        """
        if not _ID.fullmatch(self.id) or not self.tmp.is_absolute():
            return False
        if not self.tmp.name.startswith(f"{FOLDER_PREFIX}{self.id}-"):
            return False
        try:
            status = self.tmp.lstat()
        except OSError:
            return True
        return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()

    @property
    def shm_prefix(self) -> str:
        return f"toolkit-{self.id}-"

    def segments(self) -> list[Path]:
        """The run's shared-memory segments."""
        return list(SHARED_MEMORY.glob(f"{self.shm_prefix}*"))

    def close_to_others(self) -> None:
        """Let only this user read the run's segments. They hold prompts, and Triton makes them readable to all."""
        for segment in self.segments():
            with contextlib.suppress(OSError):
                segment.chmod(0o600)

    def refuse_requests(self) -> None:
        """Make our models refuse new requests: they look for this file in their TMPDIR."""
        with contextlib.suppress(OSError):  # a full disk
            (self.tmp / DRAINING).touch()


@dataclass(frozen=True)
class Member:
    """A running process of a run. `rank` is Open MPI's; None for mpirun and its parents."""

    pid: int
    parent: int
    rank: int | None
    command: tuple[str, ...]

    @property
    def model(self) -> str:
        """The Triton model whose Python process this is (argv: stub, MODEL/1/model.py, ...), else ''."""
        script = next((part for part in self.command[1:] if part.endswith("/model.py")), None)
        return Path(script).parents[1].name if script else ""

    @property
    def suspended(self) -> bool:
        """Whether SIGSTOP has stopped it."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        except (OSError, IndexError):
            return False

    @property
    def server(self) -> bool:
        """Whether it is a tritonserver, not a worker that a tritonserver started."""
        return any(Path(part).name.startswith("tritonserver") for part in self.command[:2])


def of_ranks(members: list[Member]) -> list[Member]:
    """The members that mpirun itself started, on the host or in a container: the parent of each has no rank."""
    with_rank = {member.pid for member in members if member.rank is not None}
    return [m for m in members if m.rank is not None and m.parent not in with_rank and not m.model]


def members(run: ServerRun) -> list[Member]:
    """The run's processes that run now; zombies are left out."""
    return list(_members(f"{RUN_ID}={run.id}".encode()))


def _members(mark: bytes) -> Iterator[Member]:
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        # The process may end meanwhile, or belong to another user.
        with contextlib.suppress(OSError, IndexError, ValueError):
            environment = (folder / "environ").read_bytes().split(b"\0")
            if mark not in environment:
                continue
            rank = next((part for part in environment if part.startswith(b"OMPI_COMM_WORLD_RANK=")), None)
            yield Member(
                pid=int(folder.name),
                parent=int((folder / "stat").read_text().rpartition(")")[2].split()[1]),
                rank=int(rank.partition(b"=")[2]) if rank else None,
                command=tuple(os.fsdecode(part) for part in (folder / "cmdline").read_bytes().split(b"\0")),
            )


def sweep(run: ServerRun, by_force: tuple[str, ...] = (), timeout_s: float = 10) -> list[int]:
    """Kill the run's processes and remove its segments and temporary files. Returns the pids killed.

    If it killed any, it also runs the command `by_force`, which ends a container that a daemon may still hold. It does
    nothing for a run that `ServerRun.new` did not make.
    """
    if not run.is_ours:
        return []
    killed: dict[int, None] = {}
    deadline = time.monotonic() + timeout_s
    # A process may fork during a scan. The next scan finds its child, so only two empty scans in a row mean the end.
    empty = 0
    while empty < 2 and time.monotonic() < deadline:
        alive = [member.pid for member in members(run)]
        empty = 0 if alive else empty + 1
        for pid in alive:
            killed[pid] = None
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    if killed and by_force:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(by_force, stdin=subprocess.DEVNULL, capture_output=True, timeout=FORCE_S)
    for segment in run.segments():
        segment.unlink(missing_ok=True)
    shutil.rmtree(run.tmp, ignore_errors=True)
    return list(killed)


class Janitor:
    """The janitor process of a run, watched by the supervisor."""

    def __init__(self, run: ServerRun, by_force: tuple[str, ...] = ()) -> None:
        self._run, self._by_force = run, by_force
        self._start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def keep_alive(self) -> None:
        """Start it again if someone killed it, and wake it if someone suspended it."""
        if self._process.poll() is not None:
            self.dismiss()
            self._start()
        elif Member(self.pid, os.getpid(), None, ()).suspended:
            self._process.send_signal(signal.SIGCONT)

    def dismiss(self) -> None:
        """Make it sweep and end, and wait for that."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.send_signal(signal.SIGCONT)  # a suspended janitor would never end
        self._process.wait()

    def _start(self) -> None:
        command = [sys.executable, "-IS", __file__, self._run.id, str(self._run.tmp), *self._by_force]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def main() -> None:
    """Wait until stdin is closed, then end the run and remove what it left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    sweep(ServerRun(sys.argv[1], Path(sys.argv[2])), tuple(sys.argv[3:]))


if __name__ == "__main__":
    main()
