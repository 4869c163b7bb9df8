"""The server's own word about its times, against its schedule and against a reader of bare sockets."""

from __future__ import annotations

import heapq
import statistics
import threading

import pytest

from tests.load.measure import measure
from toolkit.client import GenerateRequest, connect
from toolkit.clock import EPOCH
from toolkit.known_truth import KnownTruth, Record, Settings
from toolkit.load.exchange import now

from .raw import post

STREAM = "/v2/models/tensorrt_llm_bls/generate_stream"


def record_of(truth: KnownTruth, name: str) -> Record:
    (found,) = [record for record in truth.records() if record.id == name]
    return found


def never_early(record: Record, settings: Settings) -> None:
    """Late is what a busy machine makes it; early it can never be, and lateness does not add up."""
    assert record.started is not None
    for token, sent in enumerate(record.token_times):
        assert sent - record.started >= settings.due_s(token) - 5e-6, token


def test_a_reader_of_bare_sockets_agrees_with_the_record(truth):
    """Three tries, as another process may take the cores; a record that is wrong is wrong each time."""
    for attempt in range(3):
        raw = post(truth.http, STREAM, text_input="a b", max_tokens=60, stream=True, id=f"raw-{attempt}")
        record = record_of(truth, f"raw-{attempt}")
        received = [EPOCH + moment for moment in raw.arrivals(rb'"text_output"[^\n]*\n')]
        assert len(received) == len(record.token_times) == 60 and record.whole
        delays = [there - sent for there, sent in zip(received, record.token_times, strict=True)]
        assert min(delays) > -1e-5, "received before it was sent"
        assert record.arrived >= EPOCH + raw.asked - 1e-5
        never_early(record, truth.settings)
        span = record.token_times[-1] - record.token_times[0]
        close = statistics.median(delays) < 0.03 and span < 1.5 * 59 * 0.005
        if close and record.token_times[0] - record.arrived < 0.12:
            return
    pytest.fail("the medians are far from each other")


def test_many_streams_over_both_protocols_keep_their_schedules(truth):
    def user(number: int, protocol: str) -> None:
        with connect(truth.url(protocol)) as client:
            request = GenerateRequest("x", 40, id=f"many-{protocol}-{number}")
            samples.append(measure(client, request, due=now(), protocol=protocol, deadline_s=20))

    samples: list = []
    users = [threading.Thread(target=user, args=(n, p)) for n in range(8) for p in ("http", "grpc")]
    for thread in users:
        thread.start()
    for thread in users:
        thread.join()
    assert len(samples) == 16
    for sample in samples:
        record = record_of(truth, sample.id)
        assert sample.ok and sample.tokens_out == len(record.token_times) == 40
        assert record.protocol == sample.protocol and record.whole and record.fault is None
        assert all(got >= sent - 1e-5 for got, sent in zip(sample.token_times, record.token_times, strict=True))
        never_early(record, truth.settings)


def test_slots_are_taken_in_order_and_capacity_is_what_arithmetic_says():
    """2 slots, 100 + 5 x 10 = 150 ms an answer: the nth answer starts when the slot of the one before last is free."""
    settings = Settings(ttft_ms=100, itl_ms=10, slots=2)
    with KnownTruth(settings) as truth:
        users = [
            threading.Thread(target=post, args=(truth.http, STREAM), kwargs={"text_input": "x", "max_tokens": 6})
            for _ in range(8)
        ]
        for thread in users:
            thread.start()
        for thread in users:
            thread.join()
        records = sorted(truth.records(8), key=lambda record: record.number)
    free = [0.0, 0.0]
    for record in records:
        expected = max(record.arrived, heapq.heappop(free))
        assert record.started == pytest.approx(expected, abs=1e-5)
        heapq.heappush(free, expected + 0.15)
    assert [record.number for record in records] == list(range(1, 9))
    assert [record.arrived for record in records] == sorted(record.arrived for record in records)
    assert settings.capacity(6) == pytest.approx(2 / 0.15)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_who_leaves_frees_the_slot_and_is_recorded(protocol):
    with KnownTruth(Settings(ttft_ms=5, itl_ms=5, slots=1)) as truth, connect(truth.url(protocol)) as client:
        stream = client.generate_stream(GenerateRequest("x", 100_000, id="left"), deadline_s=20)
        next(stream)
        stream.close()
        assert client.generate(GenerateRequest("x", 2), deadline_s=20).text == " the of"
        left, stayed = truth.records(2)
    assert (left.id, left.whole, left.tokens) == ("left", False, 100_000)
    assert stayed.whole and 1 <= len(left.token_times) < 100_000


def test_several_tokens_an_event():
    with KnownTruth(Settings(ttft_ms=5, itl_ms=1, tokens_per_event=4)) as truth:
        raw = post(truth.http, STREAM, text_input="x", max_tokens=10, stream=True, return_num_output_tokens=True)
        (record,) = truth.records(1)
    assert [event["num_output_tokens"] for event in raw.events()] == [4, 4, 2]
    assert [event["text_output"] for event in raw.events()] == [" the of and to", " in is that for", " it was"]
    assert [len(set(record.token_times[cut])) for cut in (slice(4), slice(4, 8), slice(8, 10))] == [1, 1, 1]
