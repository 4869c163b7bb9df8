"""Ends every process of a run and removes what it left, whichever process was killed and how.

Each process of a run has TOOLKIT_RUN_ID in its environment, and each shared-memory segment the run's
prefix. The supervisor sweeps at every end. For the one end where it cannot, its own SIGKILL, a janitor
in a session of its own holds a pipe from it: end of file means that the supervisor is gone.

Run as a script, with the standard library only, so that it starts at once and depends on nothing.
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
"""The file of a run's folder that tells the models of triton_repo/ to refuse new requests."""
_ID = re.compile(r"[0-9a-f]{8}")


@dataclass(frozen=True)
class Run:
    """What tells one run's processes and files from everything else on the machine."""

    id: str
    tmp: Path
    """TMPDIR of the run's processes: Open MPI's session files and whatever the models put there."""

    @classmethod
    def new(cls) -> Run:
        """A run with an id and a temporary folder of its own."""
        run_id, folder = secrets.token_hex(4), tempfile.gettempdir()
        if not re.fullmatch(r"[A-Za-z0-9._/+-]+", folder):  # Triton hands paths in it to a shell
            folder = "/tmp"
        return cls(run_id, Path(tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}{run_id}-", dir=folder)))

    @property
    def models(self) -> Path:
        """The model repository that Triton sees: a copy, whose path has no character that a shell takes for its own,
        and in which nothing changes when the repository is made again."""
        return self.tmp / "models"

    @property
    def is_ours(self) -> bool:
        """Whether the id and the folder are such as `new` makes: what else a state file names is not removed.

        True also when the folder is gone. Never follows a link.
        """
        if not _ID.fullmatch(self.id) or not self.tmp.is_absolute():
            return False
        if not self.tmp.name.startswith(f"{FOLDER_PREFIX}{self.id}-"):
            return False
        try:
            found = self.tmp.lstat()
        except OSError:
            return True
        return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()

    @property
    def shm_prefix(self) -> str:
        return f"toolkit-{self.id}-"

    def segments(self) -> list[Path]:
        """The shared-memory segments that the run has now."""
        return list(SHARED_MEMORY.glob(f"{self.shm_prefix}*"))

    def close_to_others(self) -> None:
        """Let only this user read its segments, which hold prompts: Triton makes them readable to all."""
        for segment in self.segments():
            with contextlib.suppress(OSError):
                segment.chmod(0o600)

    def refuse_requests(self) -> None:
        """Tell our models, which look for this file in their TMPDIR, to refuse new requests."""
        with contextlib.suppress(OSError):  # a full disk
            (self.tmp / DRAINING).touch()


@dataclass(frozen=True)
class Member:
    """A living process of a run. `rank` is Open MPI's, None for mpirun itself and whatever started it."""

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
        """Whether a signal keeps it from running (SIGSTOP)."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        except (OSError, IndexError):
            return False

    @property
    def server(self) -> bool:
        """Whether it is a tritonserver, and not a worker that one started."""
        return any(Path(part).name.startswith("tritonserver") for part in self.command[:2])


def of_ranks(found: list[Member]) -> list[Member]:
    """Those of a run that mpirun started, wherever mpirun itself runs: their parent is of no rank."""
    inside = {member.pid for member in found if member.rank is not None}
    return [m for m in found if m.rank is not None and m.parent not in inside and not m.model]


def members(run: Run) -> list[Member]:
    """The run's processes that are alive now; zombies are not."""
    return list(_members(f"{RUN_ID}={run.id}".encode()))


def _members(mark: bytes) -> Iterator[Member]:
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        # A process may end, or belong to another user, while we look at it.
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


def sweep(run: Run, by_force: tuple[str, ...] = (), timeout_s: float = 10) -> list[int]:
    """Kill the run's processes and remove its segments and temporary files. Returns the pids killed.

    If there were any, `by_force` is run as well: it ends a container, which a daemon may hold. Does nothing for a run
    that `Run.new` did not make.
    """
    if not run.is_ours:
        return []
    killed: dict[int, None] = {}
    deadline = time.monotonic() + timeout_s
    # A process forked while we looked is found by the next look, so only two empty looks mean the end.
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

    def __init__(self, run: Run, by_force: tuple[str, ...] = ()) -> None:
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
        """Let it sweep and end."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.send_signal(signal.SIGCONT)  # one that is suspended would never end
        self._process.wait()

    def _start(self) -> None:
        command = [sys.executable, "-IS", __file__, self._run.id, str(self._run.tmp), *self._by_force]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def main() -> None:
    """Wait until stdin is closed, then end the run and remove what it left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    sweep(Run(sys.argv[1], Path(sys.argv[2])), tuple(sys.argv[3:]))


if __name__ == "__main__":
    main()
