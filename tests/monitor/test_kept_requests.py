"""Requests read from the kept traffic while it grows, as samples whose latencies are those that were kept."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.repository.sources import kept_traffic, latency
from toolkit.monitor.kept_requests import KeptRequests, Refusal, sample_of

LINE = {"timestamp": 1764532800000, "input_length": 70, "output_length": 5, "hash_ids": [1, 2, 3], "block_tokens": 32}
TIMES = {"e2e_ms": 900.0, "ttft_ms": 100.0, "replica": 1}


def line(**more: object) -> bytes:
    return json.dumps({**LINE, **more}).encode()


def test_the_latencies_of_a_line():
    """The first of five tokens after 100 ms, the last after 900: 200 ms per token after the first."""
    sample = sample_of(line(**TIMES))
    assert sample and (sample.due, sample.replica, sample.tokens_out) == (1764532800.0, 1, 5)
    assert sample.ttft_ms == pytest.approx(100, abs=0.01) and sample.e2e_ms == pytest.approx(900, abs=0.01)
    assert sample.tpot_ms == pytest.approx(200, abs=0.01)
    assert sample.itl_ms == pytest.approx([200] * 4, abs=0.01)
    assert sample.ok


def test_a_whole_answer_has_no_ttft():
    sample = sample_of(line(e2e_ms=900.0))
    assert sample and (sample.ttft_ms, sample.tpot_ms, sample.replica) == (None, None, None)
    assert sample.e2e_ms == pytest.approx(900, abs=0.01)


def test_a_failed_request_is_one():
    sample = sample_of(line(**TIMES, failed=True))
    assert sample and not sample.ok


@pytest.mark.parametrize("text", [line(), b"", b"{", b"[]", line(e2e_ms=None), line(e2e_ms="x"), line(e2e_ms=1e999)])
def test_what_has_no_latencies_is_left_out(text):
    assert sample_of(text) is None


def test_only_what_is_added_is_read_and_a_half_line_later(tmp_path):
    file = tmp_path / "kept.jsonl"
    file.write_bytes(line(**TIMES) + b"\n")
    kept, all_of_it = KeptRequests(file), KeptRequests(file, past=True)
    assert kept.read() == [] and len(all_of_it.read()) == 1
    with file.open("ab") as stream:
        text = line(**TIMES)
        stream.write(text + b"\n" + text[:20])
        stream.flush()
        assert len(kept.read()) == 1
        stream.write(text[20:] + b"\n")
    assert len(kept.read()) == 1 and kept.read() == []


def test_a_new_file_in_its_place_is_followed(tmp_path):
    file = tmp_path / "kept.jsonl"
    kept = KeptRequests(file)
    assert kept.read() == []
    file.write_bytes(line(**TIMES) + b"\n")
    assert len(kept.read()) == 1
    with file.open("ab") as stream:
        stream.write(line(**TIMES) + b"\n")
    file.rename(tmp_path / "kept.jsonl.1")
    file.write_bytes(2 * (line(**TIMES) + b"\n"))
    assert len(kept.read()) == 3, "one that was added to the old file, and two of the new one"


def test_what_the_models_write_is_what_is_read(tmp_path):
    """10 tokens by a clock of our own: 0.3 s to the first, then 0.1 s each."""
    clock = iter([100.0, *(100.3 + 0.1 * number for number in range(10)), 102.0])
    times = latency.RequestTimes(latency.Latencies(lambda: next(clock)))
    for _ in range(10):
        times.tokens(1)
    file = tmp_path / "kept.jsonl"
    writer = kept_traffic.KeptTraffic(kept_traffic.TrafficFile(file, 32), replica=1)
    now = time.monotonic()
    writer.note(now, [1, 2, 3], 10, times=times.so_far(failed=False))
    writer.note(now, [1, 2, 3], 10, times=times.so_far(failed=True))
    times.failed("cancelled")
    writer.note(now, [1, 2, 3], 10, times=times.so_far(failed=False))
    writer.end()
    good, failed = KeptRequests(file, past=True).read()
    assert good.ttft_ms == pytest.approx(300, abs=0.1) and good.tpot_ms == pytest.approx(100, abs=0.1)
    assert (good.ok, failed.ok, good.replica, failed.replica) == (True, False, 1, 1)


def test_without_a_file_there_is_nothing(tmp_path: Path):
    kept = KeptRequests(tmp_path / "none.jsonl", past=True)
    assert kept.read() == []
    kept.close()


def test_refused_requests_are_told_apart(tmp_path):
    file = tmp_path / "kept.jsonl"
    file.write_bytes(b"")
    kept = KeptRequests(file)
    with file.open("ab") as stream:
        stream.write(line(output_length=0, refused=True, replica=1) + b"\n" + line(**TIMES) + b"\n")
    assert len(kept.read()) == 1 and kept.refused == [Refusal(1764532800.0, 1)]
    assert kept.read() == [] and kept.refused == []
