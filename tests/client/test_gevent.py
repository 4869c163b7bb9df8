"""Many streams of one client at once under gevent, as users of Locust have them."""

import subprocess
import sys

import pytest

from toolkit.known_truth import KnownTruth, Settings

MANY = """
import gevent.monkey
gevent.monkey.patch_all()
import gevent, sys
from toolkit.client import GenerateRequest, connect

def ask(client, number):
    events = list(client.generate_stream(GenerateRequest("x", 10, id=str(number)), deadline_s=20))
    assert "".join(event.text for event in events).count(" ") >= 9, events
    times = [event.received for event in events if event.text]
    assert times == sorted(times)
    return times[0] < times[-1]  # not all read at once

with connect(sys.argv[1]) as client:
    asked = []
    for number in range(300):
        asked.append(gevent.spawn(ask, client, number))
        gevent.sleep(0.01)
    gevent.joinall(asked, timeout=30)
    print(sum(one.successful() for one in asked), sum(one.value is True for one in asked))
    left = [gevent.spawn(ask, client, number) for number in range(20)]
    gevent.sleep(0.1)  # until they are sent
    gevent.killall(left)
"""


@pytest.mark.slow
def test_many_streams_of_one_connection_end_and_those_that_are_left_are_cancelled():
    with KnownTruth(Settings(ttft_ms=200, itl_ms=20)) as truth:
        done = subprocess.run([sys.executable, "-c", MANY, truth.grpc], capture_output=True, text=True, timeout=60)
        records = truth.records(320)
    ended, in_pieces = map(int, done.stdout.split())
    assert ended == 300, done.stderr
    assert in_pieces > 150, "a machine that stands still reads a whole answer at once, but not most of them"
    assert sum(record.whole for record in records) == 300 and len(records) == 320
