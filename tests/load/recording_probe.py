"""The probe of tests/client, which also remembers when it sent each token of each request.

python recording_probe.py TTFT_S ITL_S      prints one line of JSON with the ports, then serves until stdin closes
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.client import probe


@dataclass
class Recorded(probe.Seen):
    token_ns: list[int] = field(default_factory=list)

    def outputs(self, text: str) -> dict[str, Any]:
        found = super().outputs(text)
        self.token_ns.append(found["last_token_time_ns"])
        return found


@dataclass
class Running:
    process: subprocess.Popen[str]
    http: int
    grpc: int

    def url(self, protocol: str) -> str:
        return f"{protocol}://127.0.0.1:{getattr(self, protocol)}"

    def requests(self) -> dict[str, dict[str, Any]]:
        """What the server saw, by request id; times in ns of the clock that time.perf_counter() reads."""
        log = probe.RunningProbe(self.url("http"), "").log()
        return {seen["inputs"]["id"]: seen for seen in log}


@contextlib.contextmanager
def running(ttft_s: float, itl_s: float) -> Iterator[Running]:
    command = [sys.executable, __file__, str(ttft_s), str(itl_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        yield Running(process, **json.loads(process.stdout.readline()))
        process.stdin.close()


if __name__ == "__main__":
    probe.Seen = Recorded  # type: ignore[misc]
    asyncio.run(probe.serve(*map(float, sys.argv[1:])))
