"""Runs a long program: its output goes to a log file, line by line to whoever reads it, and it ends with us."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from toolkit.engine.tensorrt.log import BuildLog
from toolkit.errors import ToolkitError
from toolkit.files.file_lock import FileLock
from toolkit.processes import ended_by_signals
from toolkit.runtime import Wrapped

STALL_S = 1800.0
"""Without a line and without a byte written for so long, it hangs. A rank's kernels are chosen within minutes."""
LOOK_S = 1.0
GRACE_S = 10.0
"""What a program gets to end when it is asked to."""


def run(
    command: Wrapped,
    work: Path,
    log_path: Path,
    tell: Callable[[BuildLog], None],
    by_force: list[str] | None = None,
    lock: FileLock | None = None,
    stall_s: float = STALL_S,
) -> tuple[BuildLog, int]:
    """Run it in `work` to its end; what it said and its exit status, below 0 for a signal.

    `by_force` is a further command that ends what the process alone does not (`toolkit.runtime.end_by_force`).
    `tell` is called after each line and about once a second. Whatever is raised here, by `tell`, by Ctrl-C or SIGTERM,
    ends the program and all that it started. SIGKILL leaves it running, and then it holds `lock` until it ends. Raises
    ToolkitError when it hangs or cannot be started.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    try:
        process = subprocess.Popen(
            command.arguments,
            cwd=work,
            env=command.environ(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            pass_fds=[lock.descriptor] if lock else (),
        )
    except OSError as error:
        raise ToolkitError(f"{command.arguments[0]} cannot be started: {error.strerror}") from None
    try:
        if lock:
            lock.share(process.pid)
        with ended_by_signals(), log_path.open("w", encoding="utf-8") as keep:
            log = _follow(process, lambda line: print(line, file=keep, flush=True), work, tell, stall_s)
        return log, process.wait()
    finally:
        if by_force and process.poll() is None:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(by_force, stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
        _end(process)


def _follow(
    process: subprocess.Popen[str],
    keep: Callable[[str], None],
    work: Path,
    tell: Callable[[BuildLog], None],
    stall_s: float,
) -> BuildLog:
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(process, lines), daemon=True).start()
    log, moved, size = BuildLog(), time.monotonic(), _bytes(work)
    while True:
        try:
            line = lines.get(timeout=LOOK_S)
        except queue.Empty:
            if (now := _bytes(work)) != size:
                moved, size = time.monotonic(), now
            elif time.monotonic() - moved > stall_s:
                what = f"the build said and wrote nothing for {stall_s / 60:.0f} minutes, and was ended"
                hint = "Build fewer ranks at once: engine.workers; nvidia-smi and dmesg may tell more."
                raise ToolkitError(what, hint=hint) from None
        else:
            if line is None:
                return log
            moved = time.monotonic()
            keep(line)
            log.take(line)
        tell(log)


def _read(process: subprocess.Popen[str], lines: queue.SimpleQueue[str | None]) -> None:
    assert process.stdout
    with contextlib.suppress(ValueError):
        for line in process.stdout:
            lines.put(line.rstrip("\n"))
    lines.put(None)


def _end(process: subprocess.Popen[str]) -> None:
    """End the program's whole session: its workers outlive it otherwise."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        until = time.monotonic() + GRACE_S
        while _alive(process) and time.monotonic() < until:
            time.sleep(0.05)
    process.wait()


def _alive(process: subprocess.Popen[str]) -> bool:
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.engine"))
