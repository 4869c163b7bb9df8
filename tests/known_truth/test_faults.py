"""Every fault is what our clients report as an error, and no fault harms what comes after it."""

from __future__ import annotations

from itertools import count

import pytest

from tests.load.measure import measure
from toolkit.client import GenerateRequest, connect
from toolkit.errors import ToolkitError
from toolkit.known_truth import KnownTruth, Settings
from toolkit.known_truth.faults import KINDS
from toolkit.load.exchange import now

from .raw import post

ANSWERED = [kind for kind in KINDS if kind != "die"]
FAULTS = tuple(f"{kind}:{1 / len(ANSWERED):.6f}" for kind in ANSWERED)
LATE = "the answer was not whole within 0.6 s"
SAID = {
    "http": {
        "error-in-stream": (2, "breaks on demand"),
        "status-500": (0, "fails on demand"),
        "status-429": (0, "busy on demand"),
        "refuse": (0, "refuses on demand"),
        "wrong-content-type": (0, "answered with text/html, expected text/event-stream"),
        "truncated": (2, "the answer broke off"),
        "hang": (2, LATE),
        "slow": (None, LATE),
        "token-after-end": (5, "the server counts 5 tokens, but max_tokens is 4"),
    },
    "grpc": {
        "wrong-content-type": (0, "the server sent the outputs none, expected one text_output"),
        "truncated": (2, "UNAVAILABLE: the connection was cut on demand"),
        "status-429": (0, "RESOURCE_EXHAUSTED"),
        "status-500": (0, "INTERNAL"),
    },
}
"""Tokens received of 4, and the error. Of a slow answer, 10 + 3 x 10 x 30 ms, what comes in time is left open."""


def each_once() -> tuple[int, list[str]]:
    """A seed with which the first requests get one fault of each kind, and their order."""
    for seed in count():
        plan = Settings(faults=FAULTS, seed=seed).fault_plan()
        befallen = [plan.of(number) for number in range(1, len(ANSWERED) + 1)]
        kinds = [fault.kind for fault in befallen if fault]
        if len(set(kinds)) == len(ANSWERED):
            return seed, kinds
    raise AssertionError


def test_each_fault_is_an_error(protocol):
    seed, kinds = each_once()
    expected = SAID["http"] | SAID[protocol]
    settings = Settings(ttft_ms=10, itl_ms=30, faults=FAULTS, seed=seed)
    with KnownTruth(settings) as truth, connect(truth.url(protocol)) as client:
        for number, kind in enumerate(kinds, start=1):
            sample = measure(client, GenerateRequest("x", 4), due=now(), protocol=protocol, deadline_s=0.6)
            record = truth.records(number)[-1]
            tokens, said = expected[kind]
            assert sample.error and said in sample.error, kind
            assert (record.fault, record.whole) == (kind, kind == "slow" and record.whole)
            if tokens is not None:
                assert sample.tokens_out == len(record.token_times) == tokens, kind


@pytest.mark.parametrize("kind", ["error-in-stream", "truncated"])
def test_whole_answers_break_too(kind, protocol):
    settings = Settings(ttft_ms=5, itl_ms=1, faults=(kind,))
    with KnownTruth(settings) as truth, connect(truth.url(protocol)) as client, pytest.raises(ToolkitError):
        client.generate(GenerateRequest("x", 4), deadline_s=5)


def test_faults_of_openai():
    """The seed's first three requests; `error-in-stream` after one token, and a token after [DONE]."""
    settings = Settings(ttft_ms=5, itl_ms=1)
    bodies = {"prompt": "x", "max_tokens": 4, "stream": True}
    found = {}
    for fault in ("error-in-stream::1", "token-after-end", "status-429"):
        with KnownTruth(Settings(**{**vars(settings), "faults": (fault,)})) as truth:
            found[fault] = post(truth.http, "/v1/completions", **bodies)
    text, error = found["error-in-stream::1"].events()
    assert text["choices"][0]["text"] == " the" and error["error"]["code"] == 500
    *_, done, late = found["token-after-end"].events()
    assert done == b"[DONE]" and late["choices"][0]["text"] == " in"
    assert found["status-429"].status == 429 and found["status-429"].json()["error"]["type"] == "rate_limit_error"


def test_dying_breaks_what_runs_and_keeps_the_record(protocol):
    with KnownTruth(Settings(ttft_ms=5, itl_ms=1, faults=("die:2",))) as truth, connect(truth.url(protocol)) as client:
        errors = [
            measure(client, GenerateRequest("x", 4), due=now(), protocol=protocol, deadline_s=5).error for _ in range(3)
        ]
        assert errors[:2] == [None, None] and errors[2]
        assert [record.whole for record in truth.records()] == [True, True]
    assert truth.summary == {}
