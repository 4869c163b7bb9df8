"""Lock files: one process at a time does something, and others can read which process it is.

The file holds the pid of the process. The kernel drops the lock when the last process that has it ends, however it
ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from toolkit.errors import ToolkitError

TRIES, BETWEEN_S = 5, 0.05
"""`lock_holder` takes the lock for an instant, and a new holder writes its pid an instant after it has the lock."""
Opener = Callable[[str, int], int]


@dataclass(frozen=True)
class FileLock:
    """A lock file that this process holds, with every process that inherits the descriptor."""

    stream: IO[str]

    @classmethod
    def acquire(cls, file: Path, opener: Opener | None = None) -> FileLock:
        """Take the lock. Raises BlockingIOError if another process holds it, OSError if `file` cannot be written."""
        stream = open(file, "a+", encoding="utf-8", opener=opener)  # noqa: SIM115
        try:
            _lock(stream)
            stream.truncate(0)
            stream.write(f"{os.getpid()}\n")
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError):  # closing writes again, and a full disk is still full
                stream.close()
            raise
        return cls(stream)

    @property
    def descriptor(self) -> int:
        return self.stream.fileno()

    def share(self, group: int) -> None:
        """Write down the process group that inherited the descriptor: it may outlive this process."""
        self.stream.write(f"-{group}\n")
        self.stream.flush()


@contextlib.contextmanager
def file_lock(file: Path, doing: str) -> Iterator[FileLock]:
    """Hold a lock file. Raises ToolkitError ("`doing` process 123") if another process holds it."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock.acquire(file)
    except BlockingIOError:
        raise _held(file, doing) from None
    except OSError as error:
        raise ToolkitError(f"cannot be written: {error.strerror}", where=file) from None
    with contextlib.closing(lock.stream):
        yield lock


def lock_holder(file: Path) -> int | None:
    """The pid of the process that holds a lock file, else None. Raises PermissionError."""
    for _ in range(TRIES):
        try:
            with file.open(encoding="utf-8") as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    if lines := stream.read().split():
                        return int(lines[0])
                else:
                    return None
        except PermissionError:
            raise
        except (OSError, ValueError):
            return None
        time.sleep(BETWEEN_S)
    return None


def _lock(stream: IO[str]) -> None:
    for tries_left in reversed(range(TRIES)):
        try:
            return fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not tries_left:
                raise
        time.sleep(BETWEEN_S)


def _held(file: Path, doing: str) -> ToolkitError:
    """The error that names the process, or the process group, that holds the lock and is still there."""
    holders = file.read_text(encoding="utf-8").split()
    running = [pid for pid in holders if _lives(pid)]
    name = f"process {running[0].removeprefix('-')}" if running else "another process"
    hint = f"Wait for it, or end it: kill -- {running[0]}" if running else "Wait for it."
    return ToolkitError(f"{doing} {name}", where=file.parent, hint=hint)


def _lives(pid: str) -> bool:
    """Whether a process is there or, for a negative number, any process of that group: its leader may have ended."""
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (OSError, ValueError, OverflowError):
        return False
    return True
