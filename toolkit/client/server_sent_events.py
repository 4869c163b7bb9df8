"""Reads server-sent events as the standard says (WHATWG HTML, 9.2.6 "Interpreting an event stream").

Lines end with LF, CR or CRLF, also if a read ends between CR and LF. A byte order mark at the start, comments and
unknown fields are ignored. Two additions, because servers need them: a last event without its empty line is handed on
with the type CUT_OFF, and a field called `error` is an event.
"""

from __future__ import annotations

from collections.abc import Iterator

BOM = b"\xef\xbb\xbf"
MESSAGE = b""
"""The type of an event without a type."""
ERROR = b"error"
CUT_OFF = b"\0"
"""The type of an event that the end of the stream cut off."""


class EventStream:
    """Iterates over the events of one answer as they arrive."""

    def __init__(self, reads: Iterator[tuple[bytes, float]]) -> None:
        self._reads = reads
        self.ignored: bytes | None = None
        """The first line that is not part of an event, such as HTML, or JSON without `data:`."""
        self._data: list[bytes] = []
        self._type = MESSAGE
        self._is_first = True

    def __iter__(self) -> Iterator[tuple[bytes, float, bytes]]:
        """Yield (data, when the read that completed it returned, type) of each event that has data."""
        pending, after_cr, received = b"", False, 0.0
        for read, received in self._reads:
            # A fast path for the usual read: exactly one event (benchmarks/client.md).
            is_one_event = read[:6] == b"data: " and read.find(b"\n") == len(read) - 2 > 6 and b"\r" not in read
            if is_one_event and read[-1:] == b"\n" and not (pending or self._data or self._type):
                after_cr = self._is_first = False
                yield read[6:-2], received, MESSAGE
                continue
            if after_cr and read.startswith(b"\n"):
                read = read[1:]
            after_cr = read.endswith(b"\r")
            *lines, pending = (pending + read.replace(b"\r\n", b"\n").replace(b"\r", b"\n")).split(b"\n")
            for event in filter(None, map(self._take, lines)):
                yield event[0], received, event[1]
        if pending and (last := self._take(pending)):
            yield last[0], received, last[1]
        if any(self._data):
            yield b"\n".join(self._data), received, CUT_OFF

    def _take(self, line: bytes) -> tuple[bytes, bytes] | None:
        """(data, type) of the event that this line completes."""
        if self._is_first:
            line, self._is_first = line.removeprefix(BOM), False
        if not line:
            whole, kind = b"\n".join(self._data), self._type
            self._data, self._type = [], MESSAGE
            return (whole, kind) if whole else None
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._type = value
        elif field == ERROR:  # llama.cpp
            return value, ERROR
        elif field not in (b"", b"id", b"retry"):
            self.ignored = self.ignored or line
        return None
