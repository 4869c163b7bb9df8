"""How the responses to one request end, whichever of its parts ends first: with doubles for Triton's Python backend."""

import importlib
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

SHARED = str(Path(__file__).parents[2] / "triton_repo" / "shared")
FINAL = 1


class Sender:
    """Keeps (response, flags). The first `send` waits for `go`."""

    def __init__(self):
        self.sent, self.go = [], threading.Event()

    def send(self, response=None, flags=0):
        self.sent.append((response, flags))
        assert self.go.wait(20)


@pytest.fixture
def reply_class(monkeypatch):
    pb_utils = SimpleNamespace(
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL,
        InferenceResponse=lambda tensors=None, error=None: tensors or error,
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", pb_utils)
    monkeypatch.delitem(sys.modules, "reply", raising=False)
    monkeypatch.syspath_prepend(SHARED)
    yield importlib.import_module("reply").Reply
    sys.modules.pop("reply", None)


def test_it_ends_once_when_a_part_fails_while_another_ends(reply_class):
    sender = Sender()
    reply = reply_class(sender, parts=2)
    threads = []
    for action in (lambda: reply.send("a"), lambda: reply.send("b", last=True), lambda: reply.fail("error")):
        threads.append(threading.Thread(target=action))
        threads[-1].start()
        time.sleep(0.1)  # the second and the third wait for the first
    sender.go.set()
    for thread in threads:
        thread.join(20)
    assert sender.sent[-1] == ("error", FINAL)
    assert [flags for _, flags in sender.sent].count(FINAL) == 1


def test_it_ends_with_the_last_of_its_parts(reply_class):
    sender = Sender()
    sender.go.set()
    reply = reply_class(sender, parts=3)
    reply.send("a", last=True)
    reply.end()
    reply.send("b")
    reply.send("c", last=True)
    reply.send("too late")
    reply.fail("too late")
    assert sender.sent == [("a", 0), ("b", 0), ("c", FINAL)]
