"""A process that `toolkit up` keeps running: how it starts, and its state."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.files.atomic import make_private, private
from toolkit.gateway.door import PartState
from toolkit.up.backoff import Backoff

LAST_LINES = 3
LAST_BYTES = 8192
LONGEST_CAUSE = 300


@dataclass(frozen=True)
class Start:
    """How a part is started."""

    command: Sequence[str]
    environ: Mapping[str, str]
    log: Path
    """The file for its output. The output of the run before is kept next to it."""


class Part:
    """One part, through all its restarts."""

    def __init__(self, name: str, backoff: Backoff) -> None:
        self.name, self.backoff = name, backoff
        self.phase, self.message, self.since, self.restarts = "waiting", "", time.time(), 0
        self.process: subprocess.Popen[bytes] | None = None
        self._started = self.again_at = 0.0
        self._log: Path | None = None

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self.process is not None and self.process.poll() is None

    @property
    def ran_s(self) -> float:
        """How long its newest process has run."""
        return time.monotonic() - self._started

    def enter(self, phase: str, message: str = "") -> bool:
        """Change the phase. False if it was this phase already."""
        if (phase, message) == (self.phase, self.message):
            return False
        self.phase, self.message, self.since = phase, message, time.time()
        return True

    def start(self, start: Start) -> None:
        """Start its process. Standard input is a pipe: when it closes, the process knows that we are gone."""
        self.close()
        make_private(start.log.parent)
        if start.log.exists():
            start.log.replace(start.log.with_suffix(".previous.log"))
        with open(start.log, "ab", opener=private) as output:  # for appending: up/logs.py may empty it
            self.process = subprocess.Popen(
                start.command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(start.environ),
                start_new_session=True,  # Ctrl-C reaches us alone
            )
        self._started, self._log = time.monotonic(), start.log

    def said(self, beginning: str) -> str | None:
        """The rest of the first line of its output that begins with this text."""
        lines = (line for line in self._text().splitlines() if line.startswith(beginning))
        return next((line.removeprefix(beginning).strip() for line in lines), None)

    def ended_with(self, code: int) -> bool:
        """Whether its process ended with this exit code."""
        return self.process is not None and self.process.poll() == code

    def cause(self) -> str:
        """Why its process ended: how it exited, with its last error or last lines."""
        assert self.process
        code = self.process.poll()
        how = f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        errors = [line for line in self._text().splitlines() if line.startswith("error: ")]
        lines = [line.strip() for line in self._text().splitlines() if line.strip()][-LAST_LINES:]
        words = errors[-1].removeprefix("error: ") if errors else " / ".join(lines)
        return f"{how}: {words[-LONGEST_CAUSE:]}" if words and code != -9 else how

    def tell(self, line: str) -> None:
        """Write a line to its standard input."""
        if self.process and self.process.stdin:
            with contextlib.suppress(OSError):
                os.write(self.process.stdin.fileno(), f"{line}\n".encode())

    def ask_to_end(self) -> None:
        """SIGTERM."""
        if self.process and self.alive:
            self.process.terminate()

    def reload(self) -> None:
        """SIGHUP: some programs then read their files again."""
        if self.process and self.alive:
            self.process.send_signal(signal.SIGHUP)

    def kill(self) -> None:
        """SIGKILL."""
        if self.process and self.alive:
            self.process.kill()

    def close(self) -> None:
        """Close the pipes of a process that has ended."""
        if self.process and self.process.stdin:
            with contextlib.suppress(OSError):
                self.process.stdin.close()

    def state(self) -> PartState:
        """The part, for the state file."""
        pid = self.process.pid if self.process and self.alive else None
        return PartState(self.name, self.phase, self.since, pid, self.restarts, self.message)

    def _text(self) -> str:
        if self._log is None:
            return ""
        with contextlib.suppress(OSError), self._log.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - LAST_BYTES))
            return stream.read().decode("utf-8", "replace")
        return ""
