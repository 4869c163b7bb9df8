"""Runs the server in a process of its own, so that the work of the measuring process does not delay its tokens."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType

from toolkit.errors import ToolkitError
from toolkit.known_truth.record import Record, read_records
from toolkit.known_truth.settings import Settings

RECORD_WAIT_S = 10.0
END_WAIT_S = 10.0


class KnownTruth:
    """A context manager: starts the server on entry and ends it on exit. It also ends with this process.

    `http` and `grpc` are its URLs. Without `settings.record` it records into a temporary file.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.http = self.grpc = ""
        self.summary: dict[str, float | None] = {}
        """After leaving: requests, tokens, seconds, cpu_cores, late_p50_ms and late_p99_ms (see the documentation)."""

    def url(self, protocol: str) -> str:
        """`protocol` is http or grpc."""
        return {"http": self.http, "grpc": self.grpc}[protocol]

    @property
    def pid(self) -> int:
        return self._process.pid

    def records(self, count: int = 0) -> list[Record]:
        """The records so far, in the order in which the answers ended, on the clock of this process.

        Waits until `count` answers have ended. Raises ToolkitError after 10 s.
        """
        end = time.monotonic() + RECORD_WAIT_S
        while True:
            records = list(read_records(self._file))
            if len(records) >= count:
                return records
            if time.monotonic() > end:
                raise ToolkitError(f"{len(records)} answers have ended, expected {count}", where=self.http)
            time.sleep(0.01)

    def __enter__(self) -> KnownTruth:
        self._folder = tempfile.TemporaryDirectory(prefix="known-truth-")
        self._file = Path(self.settings.record or Path(self._folder.name) / "record.jsonl")
        self._file.touch()
        self._stderr = Path(self._folder.name) / "stderr"
        settings = json.dumps(asdict(replace(self.settings, record=str(self._file))))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "toolkit.known_truth", settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr.open("w", encoding="utf-8"),
            text=True,
            start_new_session=True,  # Ctrl-C reaches the measuring process only, which then ends this one
        )
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._process.communicate()
            errors = self._stderr.read_text(encoding="utf-8").strip()[-500:]
            self._folder.cleanup()
            raise ToolkitError(f"the server of known truth did not start: {errors}")
        urls = json.loads(line)
        self.http, self.grpc = urls["http"], urls.get("grpc", "")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            summary, _ = self._process.communicate(timeout=END_WAIT_S)  # closes its stdin, which ends it
        except subprocess.TimeoutExpired:
            self._process.kill()
            summary, _ = self._process.communicate()
        self.summary = json.loads(summary) if summary.strip() else {}
        self._folder.cleanup()
