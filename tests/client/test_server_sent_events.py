"""Streams of events as WHATWG's HTML standard describes them (9.2.5 and 9.2.6, with its own examples)."""

from __future__ import annotations

import pytest

from toolkit.client.server_sent_events import CUT_OFF, ERROR, EventStream

LF, CR, CRLF = b"\n", b"\r", b"\r\n"


def events(*reads: bytes) -> list[tuple[bytes, bytes]]:
    """(data, type) of each."""
    return [(data, kind) for data, _, kind in EventStream((read, 0.0) for read in reads)]


# The examples of the standard, with what it says that they give. An event without data is none.
EXAMPLES = [
    ("data: YHOO\ndata: +2\ndata: 10\n\n", [(b"YHOO\n+2\n10", b"")]),
    (
        ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n",
        [(b"first event", b""), (b"second event", b""), (b" third event", CUT_OFF)],
    ),
    ("data\n\ndata\ndata\n\ndata:", [(b"\n", b"")]),
    ("data:test\n\ndata: test\n\n", [(b"test", b""), (b"test", b"")]),
    ("event: add\ndata: 73857293\n\nevent: remove\ndata: 2153\n\n", [(b"73857293", b"add"), (b"2153", b"remove")]),
    ("event: ping\n\ndata: x\n\n", [(b"x", b"")]),
    ("retry: 10\nunknown: y\nunknown\ndatax: 1\ndata: x\n\n", [(b"x", b"")]),
    (": ping\n\n: ping\n\n", []),
    ("data:\n\n", []),
    ("data: \n\n", []),
    ("data: {\ndata: }\n\n\n\n", [(b"{\n}", b"")]),
]


@pytest.mark.parametrize("end", [LF, CR, CRLF], ids=["LF", "CR", "CRLF"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "BOM"])
@pytest.mark.parametrize(("text", "found"), EXAMPLES)
def test_what_the_standard_says(text, found, end, size, mark):
    """However the lines end, with or without a mark, and wherever the reads cut it."""
    data = mark + text.encode().replace(LF, end)
    assert events(*(data[at : at + size] for at in range(0, len(data), size))) == found


def test_line_ends_of_all_kinds_in_one_stream():
    assert events(b"data: a\rdata: b\ndata: c\r\n\r\ndata: d\n\r") == [(b"a\nb\nc", b""), (b"d", b"")]


def test_a_mark_anywhere_else_is_no_mark():
    stream = EventStream(iter([(b"data: a\n\n\xef\xbb\xbfdata: b\n\n", 0.0)]))
    assert [data for data, _, _ in stream] == [b"a"]
    assert stream.ignored == b"\xef\xbb\xbfdata: b"


def test_an_event_has_the_time_of_the_read_that_completed_it():
    reads = [(b"data: a\n", 1.0), (b"\ndata: b\n\n", 2.0), (b"data: c\r\r", 3.0), (b"data: d\n\n", 4.0)]
    assert [(data, at) for data, at, _ in EventStream(iter(reads))] == [
        (b"a", 2.0), (b"b", 2.0), (b"c", 3.0), (b"d", 4.0)
    ]  # fmt: skip


def test_an_error_field_is_an_event():
    """llama.cpp wrote errors so until 2025: `error: {...}` where the standard wants `data:`."""
    assert events(b'error: {"code": 500}\n\n') == [(b'{"code": 500}', ERROR)]


def test_the_first_line_that_was_ignored_is_kept():
    stream = EventStream(iter([(b"data: a\n\n<html>\n<body>\n", 0.0)]))
    assert [data for data, _, _ in stream] == [b"a"]
    assert stream.ignored == b"<html>"
