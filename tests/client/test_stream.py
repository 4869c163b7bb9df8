"""What comes back, over each protocol: events, whole answers, errors, cancellation and deadlines."""

import itertools
import socket
import time

import pytest

from toolkit.client import (
    DeadlineExceeded,
    GenerateRequest,
    ServerFailed,
    ServerRefused,
    connect,
)
from toolkit.errors import ToolkitError

SCHEMES = {"http": "http", "grpc": "grpc", "openai": "openai+http"}
SAMPLING = {
    "temperature": 1,
    "top_p": 0.5,
    "top_k": 40,
    "seed": 2**64 - 1,
    "end_id": -1,
    "stop_words": ["\n", "Üb"],
    "bad_words": [],
    "return_log_probs": True,
}


def ask(client, prompt: str, tokens: int = 5, **limits):
    """The events with text: OpenAI's last one only says why the answer ends."""
    return [event for event in client.generate_stream(GenerateRequest(prompt, tokens), **limits) if event.text]


def seen_of(probe, prompt: str) -> dict:
    """What the server saw of the last request with this prompt."""
    return next(seen for seen in reversed(probe.log()) if seen["prompt"] == prompt)


BOTH = pytest.mark.parametrize("protocol", ["http", "grpc"])
"""Triton's."""


@BOTH
def test_events_carry_text_and_outputs(client):
    events = ask(client, "hello", tokens=4)
    assert [event.text for event in events] == [" é0", " é1", " é2", " é3"]
    outputs = events[0].outputs
    assert outputs["sequence_index"] == 0 and outputs["cum_log_probs"] == -0.5
    assert outputs["output_log_probs"] == [-0.25, -0.25]
    assert set(outputs) == {
        "sequence_index", "cum_log_probs", "output_log_probs", "arrival_time_ns", "last_token_time_ns"
    }  # fmt: skip


def test_whole_answer(client, protocol):
    asked = time.perf_counter()
    result = client.generate(GenerateRequest("hello", 3))
    assert result.text == " é0 é1 é2"
    assert asked + 0.02 < result.received < time.perf_counter()
    if protocol != "openai":
        assert result.outputs["output_log_probs"] == [-0.25, -0.25]


@BOTH
def test_server_gets_every_input(client, probe, protocol):
    prompt = f"inputs {protocol} “ü”\n"
    ask_all = GenerateRequest(prompt, 1, id="request 7", sampling=SAMPLING)
    list(client.generate_stream(ask_all))
    inputs = {**seen_of(probe, prompt)["inputs"]}
    assert inputs.pop("id") == "request 7"
    if protocol == "grpc":  # each tensor is [1, n] there
        inputs = {name: value if name.endswith("_words") else value[0] for name, value in inputs.items()}
    assert inputs == {"max_tokens": 1, "stream": True, **SAMPLING}


def test_stream_input_says_whether_it_streams(client, probe, protocol):
    client.generate(GenerateRequest(f"once {protocol}", 1))
    assert seen_of(probe, f"once {protocol}")["inputs"]["stream"] in (False, [False])


@pytest.mark.parametrize(
    ("scenario", "kind", "words"),
    [
        ("refuse", ServerRefused, "prompt has 9 tokens, the limit is 8"),
        ("forbid", ServerRefused, "prompt has 9 tokens, the limit is 8"),
        ("busy", ServerFailed, "Maximum queue size of 4 has been reached"),
        ("error", ServerFailed, "Executor failed process requestId 7"),
        ("cut", ServerFailed, "broke off|the backend died"),
        ("textless", ServerFailed, "expected one text_output|expected text"),
    ],
)
def test_errors_of_each_protocol(client, scenario, kind, words):
    with pytest.raises(kind, match=words) as caught:
        ask(client, scenario)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        ("nonsense", r"answered 404 X: '<html>no such page"),
        ("html", "answered with text/html, expected text/event-stream"),
        ("hollow", "answered with application/json"),
        ("sized", "is not chunked|expected choices"),
        ("unfinished", "ended within an event"),
        ("garbage", "expected JSON"),
        ("number", "expected a JSON object"),
        ("page", "<html>.* is not part of an event"),
    ],
)
@pytest.mark.parametrize("protocol", ["http", "openai"])
def test_what_is_not_a_stream_over_http(client, scenario, words):
    with pytest.raises((ServerFailed, ServerRefused), match=words):
        ask(client, scenario)


@pytest.mark.parametrize(("scenario", "words"), [("html", "text/html"), ("hollow", "JSON object")])
@pytest.mark.parametrize("protocol", ["http", "openai"])
def test_what_is_not_an_answer_over_http(client, scenario, words):
    with pytest.raises(ServerFailed, match=words):
        client.generate(GenerateRequest(scenario, 1))


def test_what_is_not_a_stream_over_grpc(probe):
    with connect(probe.grpc) as client, pytest.raises(ServerFailed, match="its shape is"):
        ask(client, "mangled")


@BOTH
def test_a_stream_without_an_event(client):
    with pytest.raises(ServerFailed, match="ended without an event"):
        ask(client, "empty")


def test_events_before_an_error_are_delivered(client):
    stream = client.generate_stream(GenerateRequest("error", 5))
    assert [event.text for event in itertools.islice(stream, 2)] == [" é0", " é1"]
    with pytest.raises(ServerFailed):
        next(stream)


def test_an_event_in_two_chunks_is_one_event_at_the_time_of_the_second(probe):
    with connect(probe.http) as client:
        events = ask(client, "dribble", tokens=3)
    assert [event.text for event in events] == [" é0", " é1", " é2"]
    for event in events:
        assert 0 < event.received - event.outputs["last_token_time_ns"] / 1e9 < 0.1


@pytest.mark.parametrize("how", ["close", "break"])
def test_leaving_the_stream_cancels_on_the_server(client, probe, protocol, how):
    prompt = f"leave {protocol} {how}"
    stream = client.generate_stream(GenerateRequest(prompt, 2000))
    if how == "close":
        next(stream)
        stream.close()
    else:
        for _ in stream:
            break
        del stream
    wait_until_cancelled(probe, prompt)
    assert seen_of(probe, prompt)["sent"] < 1000
    assert len(ask(client, "after")) == 5


def wait_until_cancelled(probe, prompt: str) -> None:
    """Fails where the server goes on with it."""
    end = time.monotonic() + 8
    while not seen_of(probe, prompt)["cancelled"]:
        assert time.monotonic() < end, "the server went on"
        time.sleep(0.02)


def test_deadline_bounds_the_whole_answer(client, probe, protocol):
    start = time.perf_counter()
    with pytest.raises(DeadlineExceeded, match=r"not whole within 0\.3 s"):
        ask(client, f"long {protocol}", tokens=2000, deadline_s=0.3)
    assert 0.3 <= time.perf_counter() - start < 9, "on its own it takes 10 s"
    wait_until_cancelled(probe, f"long {protocol}")


def test_first_event_must_come_in_time(probe, protocol):
    with connect(probe.url(protocol), first_event_timeout_s=1.0) as client:
        with pytest.raises(DeadlineExceeded, match=r"no answer began within 1 s"):
            ask(client, "mute", deadline_s=10)
        assert len(ask(client, "then long enough", tokens=100)) == 100


def test_deadline_of_a_whole_answer(client):
    with pytest.raises(DeadlineExceeded):
        client.generate(GenerateRequest("long", 2000), deadline_s=0.2)


def test_nobody_there(protocol):
    with connect(f"{SCHEMES[protocol]}://127.0.0.1:{unused_port()}") as client:
        assert not client.ready()
        with pytest.raises(ServerFailed, match=r"refused.*Is the server started"):
            ask(client, "hello")
        with pytest.raises(DeadlineExceeded, match=r"not ready within 0\.2 s"):
            client.wait_ready(0.2)


def test_a_server_that_does_not_take_connections(protocol):
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        start = time.perf_counter()
        with (
            connect(f"{SCHEMES[protocol]}://127.0.0.1:{full.getsockname()[1]}", connect_timeout_s=0.3) as client,
            pytest.raises(ServerFailed, match="Is the server started"),
        ):
            ask(client, "hello")
        assert time.perf_counter() - start < 20
        for one in waiting:
            one.close()


def test_ready(client):
    assert client.ready()
    client.wait_ready(1)


def test_connections_are_kept_and_streams_at_once_have_their_own(probe):
    with connect(probe.http) as client:
        for scenario in ("keep one", "keep two"):
            ask(client, scenario)
        with pytest.raises(ServerRefused):
            ask(client, "refuse keep")
        first = client.generate_stream(GenerateRequest("keep three", 50))
        next(first)
        ask(client, "keep four")
        first.close()
        ask(client, "keep five")
    used = {seen["prompt"]: seen["connection"] for seen in probe.log() if "keep" in seen["prompt"]}
    assert used["keep one"] == used["keep two"] == used["refuse keep"] == used["keep three"]
    assert used["keep four"] == used["keep five"] != used["keep one"]


def test_a_connection_that_the_server_closed_meanwhile_is_replaced(probe):
    with connect(probe.http) as client:
        ask(client, "goodbye")  # after which the probe closes the connection
        time.sleep(0.05)
        assert len(ask(client, "hello again")) == 5


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000",
        "https://host:1",
        "http://host",
        "grpc://host:x",
        "http://h:1/x",
        "openai://h:1",
        "openai+http://",
        "openai+http://h:1/v1/completions?x=1",
        "http://me:pass@h:1",
        "openai+https://me:pass@h/v1/completions",
    ],
)
def test_addresses_that_are_none(url):
    with pytest.raises(
        ToolkitError, match=r"Use http://HOST:PORT, grpc://HOST:PORT, or openai.http://HOST:PORT"
    ) as caught:
        connect(url)
    assert "pass" not in str(caught.value)


def unused_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
