"""Records the finished jobs of a conversion, one line each, so that a conversion that was cut off can continue.

The first line identifies the conversion. A journal of another conversion is not used. Data that a killed process wrote
is safe in the kernel, but lost if the machine went down. So the lines of an earlier boot are checked against the files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAME = "journal.jsonl"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

Result = dict[str, Any]


class Journal:
    """The results of the finished jobs, by job."""

    def __init__(self, directory: Path, identity: str) -> None:
        self.path = directory / NAME
        self._head = {"identity": identity, "boot": _boot()}
        self.results: dict[str, Result] = {}

    def resume(self, check: Callable[[str, Result], bool]) -> bool:
        """Read the results of an earlier attempt. False if there is none of the same conversion.

        `check` decides whether a result of an earlier boot still holds.
        """
        lines = _read(self.path)
        if not lines or lines[0].get("identity") != self._head["identity"]:
            return False
        results = {line["job"]: line["result"] for line in lines[1:]}
        same_boot = lines[0].get("boot") == self._head["boot"]
        self.results = {job: result for job, result in results.items() if same_boot or check(job, result)}
        self.begin()
        return True

    def begin(self) -> None:
        """Write a new journal with the known results. After that `add` may be called."""
        draft = self.path.with_suffix(".new")
        lines: list[object] = [self._head, *({"job": job, "result": result} for job, result in self.results.items())]
        draft.write_text("".join(map(_line, lines)), encoding="utf-8")
        draft.replace(self.path)
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)

    def add(self, job: str, result: Result) -> None:
        self.results[job] = result
        os.write(self._descriptor, _line({"job": job, "result": result}).encode())

    def remove(self) -> None:
        os.close(self._descriptor)
        self.path.unlink()


def _line(value: object) -> str:
    return json.dumps(value) + "\n"


def _read(path: Path) -> list[dict[str, Any]]:
    """The lines before the first incomplete one."""
    lines: list[dict[str, Any]] = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            lines.append(json.loads(line))
    except (FileNotFoundError, ValueError):
        pass
    return lines


def _boot() -> str:
    return BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""
