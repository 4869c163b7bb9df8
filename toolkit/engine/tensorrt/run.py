"""Runs a long program: follows its output, keeps that in a log file, and ends the program with this process."""

from __future__ import annotations

import contextlib
import queue
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from toolkit.engine.tensorrt.log import BuildLog
from toolkit.errors import ToolkitError
from toolkit.files.file_lock import FileLock
from toolkit.processes import end_session, ended_by_signals
from toolkit.runtime import Wrapped

STALL_S = 1800.0
"""A program that prints no line and writes no byte for this long hangs. The kernels of a rank are chosen in minutes."""
LOOK_S = 1.0
GRACE_S = 10.0
"""How long a program may take to end when it is asked to."""


def run(
    command: Wrapped,
    work: Path,
    log_path: Path,
    tell: Callable[[BuildLog], None],
    by_force: list[str] | None = None,
    lock: FileLock | None = None,
    stall_s: float = STALL_S,
) -> tuple[BuildLog, int]:
    """Run a command in the folder `work` to its end. Returns its log and its exit status, below 0 for a signal.

    `tell` is called after each line, and about once a second. An exception ends the program and all that it started,
    be it from `tell`, Ctrl-C or SIGTERM. `by_force` is a command that ends what else goes on
    (`toolkit.runtime.end_by_force`). SIGKILL leaves the program running, and then it holds `lock` until it ends.
    Raises ToolkitError when the program hangs or cannot be started.
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
        end_session(process, GRACE_S)


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
                what = f"the build printed and wrote nothing for {stall_s / 60:.0f} minutes, so it was ended"
                hint = "Build fewer ranks at once: engine.workers. nvidia-smi and dmesg may tell more."
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


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.engine"))
