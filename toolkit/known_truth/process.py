"""The server in a process of its own, for those who measure: its clock must not wait for their interpreter."""

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
    """Starts the server on entering and ends it on leaving; it ends with this process, too.

    `http` and `grpc` are its URLs. Without a file in `settings.record` it records into a temporary one.
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
        """What was sent so far, in the order in which the answers ended, on the clock of this process.

        Waits until `count` answers have ended; raises ToolkitError when they have not within 10 s.
        """
        end = time.monotonic() + RECORD_WAIT_S
        while True:
            found = list(read_records(self._file))
            if len(found) >= count:
                return found
            if time.monotonic() > end:
                raise ToolkitError(f"{len(found)} answers have ended, expected {count}", where=self.http)
            time.sleep(0.01)

    def __enter__(self) -> KnownTruth:
        self._folder = tempfile.TemporaryDirectory(prefix="known-truth-")
        self._file = Path(self.settings.record or Path(self._folder.name) / "record.jsonl")
        self._file.touch()
        self._said = Path(self._folder.name) / "stderr"
        settings = json.dumps(asdict(replace(self.settings, record=str(self._file))))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "toolkit.known_truth", settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said.open("w", encoding="utf-8"),
            text=True,
            start_new_session=True,  # Ctrl-C is for those who measure, and ends this when they leave
        )
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._process.communicate()
            said = self._said.read_text(encoding="utf-8").strip()[-500:]
            self._folder.cleanup()
            raise ToolkitError(f"the server of known truth did not start: {said}")
        urls = json.loads(line)
        self.http, self.grpc = urls["http"], urls["grpc"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            said, _ = self._process.communicate(timeout=END_WAIT_S)  # closes its stdin, which ends it
        except subprocess.TimeoutExpired:
            self._process.kill()
            said, _ = self._process.communicate()
        self.summary = json.loads(said) if said.strip() else {}
        self._folder.cleanup()
