"""The reported time of each event against the moment at which the server sent it.

With room for a slow machine; benchmarks/client.md has how near they are on a quiet one.
"""

import statistics
from collections.abc import Callable

import pytest

from .measure import Stream, in_own_process, streams_at_once

TTFT_S, ITL_S, TOKENS = 0.2, 0.02, 25  # of paced_probe


def check(measure: Callable[[], list[Stream]]) -> None:
    """Three tries: another process may take the machine's cores, but a client that reads late always does."""
    for last in (False, False, True):
        streams = measure()
        errors = [error for stream in streams for error in stream.errors_ms()]
        ttfts = [stream.received[0] - stream.asked for stream in streams]
        tpots = [(stream.received[-1] - stream.received[0]) / (TOKENS - 1) for stream in streams]
        true_tpots = [(stream.sent[-1] - stream.sent[0]) / (TOKENS - 1) for stream in streams]
        try:
            assert min(errors) > 0, "an event was received before it was sent"
            assert statistics.median(errors) < 1e3 * ITL_S, "read before the next one is sent"
            assert TTFT_S - 0.01 < statistics.median(ttfts) < 2 * TTFT_S
            assert abs(statistics.median(tpots) - statistics.median(true_tpots)) < ITL_S / 5
            return
        except AssertionError:
            if last:
                raise


@pytest.mark.parametrize("streams", [1, 16])
def test_events_are_timed_as_they_arrive(paced_probe, protocol, streams):
    check(lambda: streams_at_once(paced_probe.url(protocol), streams, TOKENS))


@pytest.mark.parametrize("streams", [1, 16])
def test_the_same_under_gevent(paced_probe, protocol, streams):
    """While 12 others wait for their first event: they would fill gevent's pool of ten threads."""
    check(lambda: in_own_process("gevent", paced_probe.url(protocol), streams, TOKENS, waiting=12)[0])
