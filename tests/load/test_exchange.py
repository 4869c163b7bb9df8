"""One measured request: from events made by hand, and against a server over both protocols."""

from __future__ import annotations

import json
import time

import pytest

from tests.load.measure import measure, measure_whole
from toolkit.client import Event, GenerateRequest, Result, ServerFailed, connect
from toolkit.known_truth import KnownTruth, Settings
from toolkit.load.exchange import EPOCH, now
from toolkit.model.chat_template import chat_message
from toolkit.slo.metrics import Measured

REQUEST = GenerateRequest("hello", 4, id="r1")


class Scripted:
    """A client whose stream gives these events, (text, seconds, outputs), and then fails if told to."""

    def __init__(self, *events, error=None):
        self.events, self.error = events, error

    def generate_stream(self, request, deadline_s=None):
        for text, received, outputs in self.events:
            yield Event(text, received, outputs)
        if self.error:
            raise self.error


def measured(*events, error=None):
    return measure(Scripted(*events, error=error), REQUEST, due=EPOCH + 10.0, protocol="http", deadline_s=9)


def test_counts_of_the_server_are_used_and_text_starts_the_clock_of_ttft():
    """The first event is half a character; the second carries three tokens; the last is empty but for the times."""
    timing = {"first_scheduled_time_ns": 1_000_000_000, "first_token_time_ns": 1_087_500_000}
    sample = measured(
        ("", 10.2, {"num_output_tokens": 1, "num_input_tokens": 7}),
        (" é", 10.3, {"num_output_tokens": 3}),
        ("", 10.35, {"num_output_tokens": 0, **timing}),
    )
    assert sample.ok
    assert (sample.tokens_out, sample.tokens_in, sample.counted_by) == (4, 7, "server")
    assert sample.ttft_ms == pytest.approx(300, abs=0.01)
    assert sample.itl_ms == pytest.approx([100 / 3] * 3, abs=0.01)
    assert sample.prefill_ms == pytest.approx(87.5)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("bad input: {prompt}", "bad input: [prompt]"),
        ("bad input: {escaped}, 'max_tokens': 4", "bad input: [prompt], 'max_tokens': 4"),
        ("bad input: {prompt:.30}... is too long", "bad input: [prompt]... is too long"),
        ("too many requests", "too many requests"),
    ],
)
@pytest.mark.parametrize("prompt", ["Was fehlt mir?", "Ich heiße Ann,\nund das ist mein Befund: alles ist gut."])
def test_a_prompt_that_the_server_repeats_is_not_in_the_error(prompt, said, kept):
    failure = ServerFailed(said.format(prompt=prompt, escaped=json.dumps(prompt)[1:-1]))
    for request in (
        GenerateRequest(prompt, 4),
        GenerateRequest("x", 4, messages=(chat_message("system", "Be kind."), chat_message("user", prompt))),
    ):
        sample = measure(Scripted(error=failure), request, due=EPOCH, protocol="openai", deadline_s=9)
        assert sample.error == kept


def test_more_tokens_than_were_asked_for_is_an_error_and_no_throughput():
    """A server that counts the answer so far with each event would otherwise look many times as fast."""
    sample = measured(*(("a", 10.0 + n, {"num_output_tokens": n}) for n in (1, 2, 3)))
    assert sample.error == "the server counts 6 tokens, but max_tokens is 4"


def test_without_counts_each_event_is_a_token():
    sample = measured(("a", 10.1, {}), ("b", 10.2, {}))
    assert (sample.tokens_out, sample.counted_by, sample.prefill_ms) == (2, "events", None)


@pytest.mark.parametrize(
    ("total", "groups"),
    [(3, [1, 1, 1]), (2, [1, 1, 0]), (5, [2, 3, 0]), (None, [1, 1, 0])],
)
def test_a_total_is_shared_by_the_events_that_nobody_counted(total, groups):
    """Two texts and the reason to end: as many tokens as events are one each, others are those of the texts."""
    last = {} if total is None else {"num_output_tokens": 0, "total_output_tokens": total}
    request = GenerateRequest("hello", 8)
    events = ("a", 10.1, {}), ("b", 10.2, {}), ("", 10.3, {"finish_reason": "length"}), ("", 10.4, last)
    events = events[: 3 if total is None else 4]
    sample = measure(Scripted(*events), request, due=EPOCH + 10, protocol="openai", deadline_s=9)
    assert [sample.token_times.count(EPOCH + at) for at in (10.1, 10.2, 10.3)] == groups
    assert (sample.ok, sample.tokens_out, sample.counted_by) == (True, sum(groups), "server" if total else "events")


class Whole:
    """A client whose answer in one piece came at 12 s, or fails."""

    def __init__(self, outputs, error=None):
        self.outputs, self.error = outputs, error

    def generate(self, request, deadline_s=None):
        if self.error:
            raise self.error
        return Result("abc", 12.0, self.outputs)


def test_a_whole_answer_is_measured_to_its_end_and_has_no_first_token():
    asked = {"due": EPOCH + 10, "protocol": "http", "deadline_s": 9}
    sample = measure_whole(Whole({"num_output_tokens": 3, "num_input_tokens": 7}), REQUEST, **asked)
    assert (sample.ok, sample.tokens_out, sample.tokens_in, sample.streamed) == (True, 3, 7, False)
    assert sample.e2e_ms == pytest.approx(2000)
    assert (sample.ttft_ms, sample.tpot_ms, sample.itl_ms, sample.first_text) == (None, None, [], None)
    found = Measured([sample], {"ttft_ms": 1.0}).distributions
    assert len(found["ttft_ms"]) == 0 and len(found["e2e_ms"]) == 1
    uncounted = measure_whole(Whole({}), REQUEST, **asked)
    assert uncounted.tokens_out == 0 and uncounted.e2e_ms == pytest.approx(2000)
    assert measure_whole(Whole({"num_output_tokens": 5}), REQUEST, **asked).error == (
        "the server counts 5 tokens, but max_tokens is 4"
    )
    assert measure_whole(Whole({}, ServerFailed("out of blocks")), REQUEST, **asked).error == "out of blocks"


@pytest.mark.parametrize(
    ("error", "said"),
    [(ServerFailed("out of blocks"), "out of blocks"), (KeyError("text"), "KeyError: 'text'")],
)
def test_what_came_before_an_error_is_kept_with_it(error, said):
    sample = measured(("a", 10.1, {}), ("b", 10.2, {}), error=error)
    assert (sample.error, sample.tokens_out) == (said, 2)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_against_a_server(protocol: str):
    with KnownTruth(Settings(ttft_ms=20, itl_ms=5)) as server, connect(server.url(protocol)) as client:
        due = now()
        good = measure(client, GenerateRequest("hello", 10), due=due, protocol=protocol, deadline_s=5)
    assert good.ok and good.tokens_out == 10
    assert 20 < good.ttft_ms < good.e2e_ms <= (good.ended - due) * 1e3


def test_clock_is_unix_time():
    assert abs(now() - time.time()) < 1


def test_the_models_tokenizer_counts_where_the_server_does_not():
    """Two events with five tokens in them; the request is for four, but a tokenizer may be off by one."""
    events = (("one two ", 10.1, {}), ("three four five", 10.2, {}))
    how = {"due": EPOCH + 10, "protocol": "openai", "deadline_s": 9, "count": lambda text: len(text.split())}
    sample = measure(Scripted(*events), REQUEST, **how)
    assert (sample.tokens_out, sample.counted_by, sample.error) == (5, "tokenizer", None)
    assert sample.token_times == tuple(EPOCH + at for at in (10.1, 10.1, 10.2, 10.2, 10.2))
    counted = measure(Scripted(("one two", 10.1, {"num_output_tokens": 3})), REQUEST, **how)
    assert (counted.tokens_out, counted.counted_by) == (3, "server")
    whole = measure_whole(Whole({}), REQUEST, **how)
    assert (whole.tokens_out, whole.counted_by) == (1, "tokenizer")
