"""Requests go out when they are due, in a process of its own: gevent patches what the others must not have patched."""

import json
import subprocess
import sys

import pytest

CODE = """
from gevent import monkey; monkey.patch_all()
import gevent, gevent.event, json, sys, time
from toolkit.load.dispatch import dispatch
from toolkit.load.exchange import now

class Plan:
    made = answered = 0
    def due(self, number): return number * {interval}
    def request(self, number):
        Plan.made += 1
        time.sleep({making})
        return f"request {{number}}"

told = []
all_sent = gevent.event.Event()
def ask(number, request, due):
    told.append((number, request, due, now(), Plan.made))
    if {together}:  # no answer before all requests are sent
        if len(told) == len(range(*{numbers})):
            all_sent.set()
        assert all_sent.wait(30)
    Plan.answered += 1

begin = now() + {ahead}
ended = dispatch(range(*{numbers}), Plan(), begin, ask)
print(json.dumps({{"begin": begin, "answered": Plan.answered, "told": told}}))
"""


@pytest.fixture
def run():
    def dispatched(interval=0.01, making=0.0, together=False, numbers=(0, 50, 1), ahead=0.3):
        code = CODE.format(interval=interval, making=making, together=together, numbers=numbers, ahead=ahead)
        answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert answer.returncode == 0, answer.stderr
        return json.loads(answer.stdout)

    return dispatched


def test_in_their_order_and_never_early(run):
    found = run()
    assert [number for number, *_ in found["told"]] == list(range(50))
    for number, request, due, sent, _ in found["told"]:
        assert due == pytest.approx(found["begin"] + number * 0.01, abs=1e-6)
        assert sent >= due - 1e-3 and request == f"request {number}"


def test_slow_answers_hold_nothing_up(run):
    found = run(together=True, numbers=(0, 30, 1))
    assert len(found["told"]) == 30, "all go out before the first answer comes"
    assert found["answered"] == 30, "and it ends when the last one has ended"


def test_a_share_of_the_requests(run):
    found = run(numbers=(1, 20, 4))
    assert [number for number, *_ in found["told"]] == [1, 5, 9, 13, 17]
    assert found["told"][1][2] == pytest.approx(found["begin"] + 0.05, abs=1e-6)


def test_requests_are_made_ahead(run):
    found = run(interval=0.05, making=0.005, numbers=(0, 20, 1), ahead=6)
    assert found["told"][0][4] == 20, "there was time to make all of them before the first was due"


def test_a_plan_that_cannot_be_kept_is_late_and_complete(run):
    found = run(interval=0.0, making=0.005, numbers=(0, 40, 1))
    assert len(found["told"]) == 40
    assert found["told"][-1][3] > found["told"][-1][2]
