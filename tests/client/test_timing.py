"""The reported time of each event against the moment at which the server sent it."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from .measure import Stream, streams_at_once

TTFT_S, ITL_S, TOKENS = 0.2, 0.02, 50  # of paced_probe


def check(streams: list[Stream]) -> None:
    errors = [error for stream in streams for error in stream.errors_ms()]
    assert min(errors) > 0, "an event was received before it was sent"
    assert statistics.median(errors) < 5
    ttfts = [stream.received[0] - stream.asked for stream in streams]
    assert abs(statistics.median(ttfts) - TTFT_S) < 0.05
    tpots = [(stream.received[-1] - stream.received[0]) / (TOKENS - 1) for stream in streams]
    true_tpots = [(stream.sent[-1] - stream.sent[0]) / (TOKENS - 1) for stream in streams]
    assert abs(statistics.median(tpots) - statistics.median(true_tpots)) < 0.001
    assert abs(statistics.median(tpots) - ITL_S) < 0.005


@pytest.mark.parametrize("streams", [1, 16])
def test_events_are_timed_as_they_arrive(paced_probe, protocol, streams):
    check(streams_at_once(paced_probe.url(protocol), streams, TOKENS))


@pytest.mark.parametrize("streams", [1, 16])
def test_the_same_under_gevent(paced_probe, protocol, streams):
    """While 12 others wait for their first event: they would fill gevent's pool of ten threads."""
    program = Path(__file__).with_name("measure.py")
    command = [sys.executable, str(program), paced_probe.url(protocol), str(streams), str(TOKENS), "1", "12"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    check([Stream(**stream) for stream in json.loads(done.stdout)["streams"]])
