"""The requests that replicas have served, from the file of `monitoring.traffic`, while it grows.

Each is a sample like those of a load test, so the same statistics judge both. Its clock starts when the replica got it.
A line has the mean time per output token, and no single gaps: ITL of one request is its TPOT here.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from toolkit.slo.sample import Sample

LONGEST_TAIL = 4 << 20
"""Bytes before the end of the file that `KeptRequests` begins with, if asked to: some thousand requests."""


@dataclass(frozen=True)
class Refusal:
    """A request that its replica refused as wrong. `arrival`: seconds since 1970."""

    arrival: float
    replica: int | None


class KeptRequests:
    """Reads the lines that are added to the file. Follows it when a new file takes its place."""

    def __init__(self, file: Path, past: bool = False) -> None:
        """`past`: begin with the newest lines that are there already."""
        self._file, self._half = file, b""
        self.refused: list[Refusal] = []
        """The requests that were refused since the last `read`: no latencies count, and they are no samples."""
        self._stream: IO[bytes] | None = self._opened()
        if self._stream:
            end = self._stream.seek(0, os.SEEK_END)
            if past and end:
                self._stream.seek(max(0, end - LONGEST_TAIL))
                if end > LONGEST_TAIL:
                    self._stream.readline()

    def read(self) -> list[Sample]:
        """The requests that ended since the last call, without those whose latencies do not count."""
        rows = [row for line in self._lines() if (row := _row(line))]
        self.refused = [Refusal(row["timestamp"] / 1e3, row.get("replica")) for row in rows if row.get("refused")]
        return [sample for row in rows if (sample := _sample(row))]

    def close(self) -> None:
        """Close the file."""
        if self._stream:
            self._stream.close()

    def _lines(self) -> list[bytes]:
        data = self._half + (self._stream.read() if self._stream else b"")
        if self._was_replaced():
            self.close()
            self._stream = self._opened()
            data += self._stream.read() if self._stream else b""
        *lines, self._half = data.split(b"\n")
        return lines

    def _opened(self) -> IO[bytes] | None:
        with contextlib.suppress(OSError):
            return self._file.open("rb")
        return None

    def _was_replaced(self) -> bool:
        with contextlib.suppress(OSError):
            return self._stream is None or not os.path.samestat(self._file.stat(), os.fstat(self._stream.fileno()))
        return False


def sample_of(line: bytes) -> Sample | None:
    """The request of a line; None for one without latencies, and for a damaged line."""
    row = _row(line)
    return _sample(row) if row else None


def _row(line: bytes) -> dict[str, Any] | None:
    """The line; None for a damaged one."""
    try:
        row: dict[str, Any] = json.loads(line)
        return row if math.isfinite(row["timestamp"]) else None
    except (ValueError, KeyError, TypeError, OverflowError):
        return None


def _sample(row: dict[str, Any]) -> Sample | None:
    try:
        arrival, count = row["timestamp"] / 1e3, int(row["output_length"])
        e2e_s, ttft_ms = float(row["e2e_ms"]) / 1e3, row.get("ttft_ms")
        first_s = None if ttft_ms is None else float(ttft_ms) / 1e3
        replica = row.get("replica")
    except (ValueError, KeyError, TypeError):
        return None
    ended = arrival + e2e_s
    if not math.isfinite(ended):
        return None
    return Sample(
        id="",
        protocol=str(row.get("api", "")),
        due=arrival,
        sent=arrival,
        ended=ended,
        token_times=_even(arrival + (e2e_s if first_s is None else first_s), ended, count),
        first_text=None if first_s is None else arrival + first_s,
        counted_by="server",
        error="failed" if row.get("failed") else None,
        replica=replica,
        streamed=first_s is not None,
    )


def _even(first: float, last: float, count: int) -> tuple[float, ...]:
    """So many moments from the first to the last."""
    return tuple(first + (last - first) * place / max(1, count - 1) for place in range(count))
