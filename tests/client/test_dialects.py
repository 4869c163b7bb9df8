"""The streams of servers with OpenAI's API: what each leaves out, adds, or spells in its own way."""

from __future__ import annotations

import json

import pytest

from tests.recording import DONE, recording_server
from toolkit.client import DeadlineExceeded, GenerateRequest, ServerFailed, ServerRefused, connect

CHAT, COMPLETIONS = "", "/v1/completions"
NEVER = object()


@pytest.fixture(scope="module")
def server():
    with recording_server() as running:
        yield running


def sse(chunk: object, end: str = "\n\n") -> bytes:
    return f"data: {json.dumps(chunk)}{end}".encode()


def said(text: object = " a", finish: object = None, **beside: object) -> bytes:
    """A chunk that both endpoints could send."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    if finish is NEVER:
        del choice["finish_reason"]
    return sse({"object": "chat.completion.chunk", "choices": [choice], **beside})


def delta(value: object, finish: object = None, **beside: object) -> bytes:
    return sse({"choices": [{"index": 0, "delta": value, "finish_reason": finish}], **beside})


def text(value: object, finish: object = None) -> bytes:
    """A chunk of /v1/completions."""
    return sse({"object": "text_completion", "choices": [{"index": 0, "text": value, "finish_reason": finish}]})


STOP = delta({}, "stop")


def usage(tokens: int) -> dict[str, object]:
    return {"usage": {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens}}


def ask(
    server, *pieces: bytes, path: str = CHAT, content_type: str | None = "text/event-stream", deadline_s: float = 60
):
    server.pieces, server.content_type, server.status = pieces, content_type, 200
    with connect(server.url + path) as client:
        return list(client.generate_stream(GenerateRequest("a secret prompt", 9, model="m"), deadline_s=deadline_s))


def answer(server, *pieces: bytes, **how) -> str:
    return "".join(event.text for event in ask(server, *pieces, **how))


WHOLE = {
    "plain": [said(), said(" b"), STOP, DONE],
    # The unfinished: OpenAI and vLLM send null, SGLang and Ollama sent "" (sglang #3912, ollama #4357).
    "finish_reason empty": [said(finish=""), said(" b", ""), delta({}, "stop"), DONE],
    "finish_reason 'null'": [said(finish="null"), said(" b", "NULL"), STOP, DONE],
    "finish_reason 'None'": [said(finish="None"), said(" b", "none"), STOP, DONE],
    "finish_reason not finished": [said(finish="not_finished"), said(" b"), STOP, DONE],
    "finish_reason false": [said(finish=False), said(" b", False), STOP, DONE],
    "finish_reason absent": [said(finish=NEVER), said(" b", NEVER), STOP, DONE],
    "finish_reason with the last text": [said(), said(" b", "length"), DONE],
    "finish_reason again": [said(), said(" b"), STOP, delta({}, "stop", **usage(2)), DONE],
    # Chunks without content.
    "a role first": [delta({"role": "assistant"}), said(), said(" b"), STOP, DONE],
    "a role with content null": [delta({"role": "assistant", "content": None}), said(), said(" b"), STOP, DONE],
    "a role with an empty content": [delta({"role": "assistant", "content": ""}), said(), said(" b"), STOP, DONE],
    "delta {}": [delta({}), said(), delta({}), said(" b"), STOP, DONE],
    "delta null": [delta(None), said(), said(" b"), delta(None, "stop"), DONE],
    "delta absent": [said(), said(" b"), sse({"choices": [{"index": 0, "finish_reason": "stop"}]}), DONE],
    "content null": [said(None), said(), said(None), said(" b"), STOP, DONE],
    "choices empty": [sse({"choices": [], "prompt_filter_results": []}), said(), said(" b"), STOP, DONE],
    "no choices yet": [sse({"object": "chat.completion.chunk"}), said(), said(" b"), STOP, DONE],
    # Usage: vLLM has choices [], others null or none (openclaw #15488); OpenRouter repeats an empty delta.
    "usage, choices []": [said(), said(" b"), STOP, sse({"choices": [], **usage(2)}), DONE],
    "usage, choices null": [said(), said(" b"), STOP, sse({"choices": None, **usage(2)}), DONE],
    "usage, no choices": [said(), said(" b"), STOP, sse(usage(2)), DONE],
    "usage, an empty delta": [said(), said(" b"), STOP, delta({"role": "assistant", "content": ""}, **usage(2)), DONE],
    "usage, an empty text": [said(), said(" b"), STOP, said("", **usage(2)), DONE],
    "usage null": [said(usage=None), said(" b", usage=None), STOP, sse({"choices": [], "usage": None}), DONE],
    "usage on every chunk": [
        delta({"role": "assistant", "content": ""}, **usage(0)),
        said(**usage(1)),
        said(" b", **usage(2)),
        delta({}, "stop", **usage(2)),
        sse({"choices": [], **usage(2)}),
        DONE,
    ],
    # Thoughts (vLLM, SGLang: reasoning_content; Ollama and newer vLLM: reasoning).
    "reasoning_content": [delta({"reasoning_content": " a", "content": None}), said(" b"), STOP, DONE],
    "reasoning": [delta({"reasoning": " a", "reasoning_content": None}), said(" b"), STOP, DONE],
    # Events of other types, comments, and the data in parts.
    "pings": [b": ping\n\n", said(), b":\n\n: ping - 2026-01-01\r\n\r\n", said(" b"), STOP, DONE, b": bye\n\n"],
    "ping events": [
        b'event: ping\ndata: {"type": "ping"}\n\n',
        said(),
        b"event: ping\ndata: now\n\n",
        said(" b"),
        STOP,
    ],
    "typed events": [b"event: message\n" + said(), b"event: completion\n" + said(" b"), STOP, DONE],
    "data in lines": [b'data: {"choices": [{"delta":\ndata: {"content": " a"}}]}\n\n', said(" b"), STOP, DONE],
    "empty data": [b"data:\n\n", said(), b"data: \n\n", said(" b"), STOP, DONE],
    "CR": [(said() + said(" b") + STOP + DONE).replace(b"\n", b"\r")],
    "BOM": [b"\xef\xbb", b"\xbf" + said(), said(" b"), STOP, DONE],
    "other fields": [b"id: 1\nretry: 5\nx-trace: 7\n" + said(), b"proxy\n" + said(" b"), STOP, DONE],
    "no space": [(said() + said(" b") + STOP + DONE).replace(b"data: ", b"data:")],
    # The end.
    "no DONE": [said(), said(" b"), STOP],
    "DONE without an end": [said(), said(" b"), STOP, b"data: [DONE]"],
    "DONE cut off": [said(), said(" b"), STOP, b"data: [DO"],
    "DONE twice": [said(), said(" b"), STOP, DONE, DONE],
    "the last chunk without an end": [said(), said(" b"), STOP.strip()],
    "error null": [said(error=None), said(" b", error=None), STOP, DONE],
}


@pytest.mark.parametrize("pieces", WHOLE.values(), ids=WHOLE)
def test_a_whole_answer(server, pieces):
    assert answer(server, *pieces) == " a b"


@pytest.mark.parametrize("pieces", WHOLE.values(), ids=WHOLE)
def test_the_same_in_one_read(server, pieces):
    assert answer(server, b"".join(pieces)) == " a b"


@pytest.mark.parametrize("last", [text(None, "stop"), text("", "stop"), sse({"choices": [{"finish_reason": "stop"}]})])
@pytest.mark.parametrize("unfinished", [None, ""])
def test_completions(server, last, unfinished):
    pieces = [text("", unfinished), text(" a", unfinished), text(" b", unfinished), last, sse(usage(2)), DONE]
    assert answer(server, *pieces, path=COMPLETIONS) == " a b"


def test_a_response_that_stays_open_after_done_is_not_waited_for(server):
    """OpenAI's own client stops reading at [DONE]; ours would have waited for the deadline, and failed."""
    server.stays_open = True
    try:
        assert answer(server, said(), said(" b"), STOP, DONE) == " a b"
        with pytest.raises(DeadlineExceeded):
            ask(server, said(), said(" b"), STOP, deadline_s=1)
    finally:
        server.stays_open = False


def test_counts_wherever_they_stand(server):
    for name in ("usage, choices []", "usage, choices null", "usage, no choices", "usage, an empty delta"):
        *_, last = ask(server, *WHOLE[name])
        assert last.outputs == {"num_output_tokens": 0, "total_output_tokens": 2, "num_input_tokens": 7}, name
    events = ask(server, *WHOLE["usage on every chunk"])
    assert [event.outputs["num_output_tokens"] for event in events] == [1, 1, 0, 0]


# Errors inside a stream, in the shapes of the servers' public sources.
ERRORS = {
    "vLLM": (sse({"error": {"message": "it broke", "type": "BadRequestError", "param": None, "code": 400}}), True),
    "vLLM, once": (sse({"object": "error", "message": "it broke", "type": "BadRequestError", "code": 400}), True),
    "SGLang": (sse({"error": {"object": "error", "message": "it broke", "code": 400}}), True),
    "SGLang, aborted": (sse({"error": {"message": "it broke", "type": "INTERNAL_SERVER_ERROR", "code": 500}}), False),
    "Ollama": (sse({"error": {"message": "it broke", "type": "api_error", "param": None, "code": None}}), False),
    "Ollama, bare": (sse({"error": "it broke"}), False),
    "TGI": (sse({"error": "it broke", "error_type": "generation"}), False),
    "TGI, validation": (sse({"error": "it broke", "error_type": "validation"}), True),
    "TGI, chat": (sse({"error": {"message": "it broke", "http_status_code": 422}}), True),
    "llama.cpp": (sse({"error": {"code": 500, "message": "it broke", "type": "server_error"}}), False),
    "llama.cpp, a field": (b'error: {"code":400,"message":"it broke"}\n\n', True),
    "LiteLLM": (sse({"error": {"message": "it broke", "type": "None", "param": "None", "code": "500"}}), False),
    "LiteLLM, refused": (sse({"error": {"message": "it broke", "type": None, "code": "400"}}), True),
    "trtllm-serve": (sse({"object": "error", "message": "it broke", "type": "BadRequestError", "code": 400}), True),
    "busy": (sse({"error": {"message": "it broke", "code": 429}}), False),
    "a typed event": (b'event: error\ndata: {"message": "it broke", "code": 500}\n\n', False),
    "a typed event of text": (b"event: error\ndata: it broke\n\n", False),
    "beside empty choices": (sse({"choices": [], "error": {"message": "it broke"}}), False),
}  # fmt: skip


@pytest.mark.parametrize(("error", "refused"), ERRORS.values(), ids=ERRORS)
def test_an_error_is_told_in_the_servers_words(server, error, refused):
    with pytest.raises(ServerRefused if refused else ServerFailed, match=r"^it broke$"):
        ask(server, error, DONE)
    with pytest.raises(ServerFailed, match=r"^it broke$"):  # what has begun was not refused
        ask(server, said(), error, DONE)


BROKEN = {
    "nothing": ([], "^the stream ended without an event$"),
    "DONE alone": ([DONE], "without an event"),
    "no finish_reason": ([said(), DONE], "without a finish_reason"),
    "cut off": ([said(), b'data: {"choices": [{"ind'], r"ended within an event, after '\{\"choices\": \[\{\"ind'"),
    "aborted": ([said(), delta({}, "Abort"), DONE], "did not finish the answer: finish_reason 'Abort'"),
    "a number to finish": ([delta({}, 3)], "expected a finish_reason of text or null"),
    "JSON lines": (
        [b'{"model": "m", "done": false}\n' * 3],
        r"""without an event; it holds '\{"model": "m", "done":""",
    ),
    "a page in the middle": ([said(), b"<html>\n<body>oh</body>\n"], "finish_reason.*; it holds '<html>', which is no"),
    "not JSON": ([said(), b"data: hello\x1b[2J\xff\n\n"], r"^the server sent 'hello\\x1b\[2J\ufffd', expected JSON"),
    "another API": ([sse({"type": "response.created", "response": {}})], "response.created.*expected choices"),
    "two choices": ([sse({"choices": [{}, {}]})], "expected one choice"),
    "choices of text": ([sse({"choices": "x"})], "expected one choice"),
    "content in parts": ([said([{"type": "text"}])], "expected text"),
    "completions on chat": ([text(" a")], "expected a delta"),
    "text afterwards": ([said(), STOP, said(" more"), DONE], "' more' after the end of the answer"),
}


@pytest.mark.parametrize(("pieces", "words"), BROKEN.values(), ids=BROKEN)
def test_what_is_none_of_these_is_shown(server, pieces, words):
    with pytest.raises(ServerFailed, match=words) as caught:
        ask(server, *pieces)
    assert len(str(caught.value)) < 300 and str(caught.value).isprintable()
    assert "secret prompt" not in str(caught.value)


def test_only_the_first_bytes_are_shown(server):
    with pytest.raises(ServerFailed) as caught:
        ask(server, b"data: " + b"x" * 100_000 + b"\n\n")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/octet-stream", "text/event-stream;x=1"])
def test_a_stream_by_another_type_or_none(server, content_type):
    """Gateways rename or drop the type; the OpenAI client does not look at it."""
    assert answer(server, *WHOLE["pings"], content_type=content_type) == " a b"


@pytest.mark.parametrize(
    ("content_type", "body", "words"),
    [
        ("text/html", b"<p>\x00Sign in", r"text/html, expected text/event-stream: '<p>\\x00Sign in'"),
        ("application/json", b'{"error": {"message": "it broke"}}', "^.*: it broke$"),
        ("application/json", b'{"choices": []}', r"application/json, expected text/event-stream: '\{\"choices"),
        (None, b"hello", "no Content-Type, expected text/event-stream: 'hello'"),
        ("application/x-ndjson", b'{"model": "m"}\n{}', r"application/x-ndjson, expected .*: '\{\"model"),
    ],
)  # fmt: skip
def test_what_is_no_stream_shows_its_first_bytes(server, content_type, body, words):
    with pytest.raises(ServerFailed, match=words):
        ask(server, body, content_type=content_type)


def test_an_error_of_fastapi_does_not_repeat_the_prompt(server):
    wrong = {"type": "int", "loc": ["body", "max_tokens"], "msg": "too large", "input": {"prompt": "a secret prompt"}}
    server.pieces, server.content_type, server.status = (json.dumps({"detail": [wrong]}).encode(),), None, 422
    with connect(server.url) as client, pytest.raises(ServerRefused, match=r"body\.max_tokens: too large$"):
        list(client.generate_stream(GenerateRequest("x", 1)))


def test_words_of_a_server_are_shortened(server):
    with pytest.raises(ServerFailed) as caught:
        ask(server, sse({"error": "the prompt is " + "a secret prompt " * 100}))
    assert len(str(caught.value)) < 450


@pytest.mark.parametrize("finish", [None, "", "not_finished"])
def test_a_whole_answer_in_one_piece_must_be_finished(server, finish):
    message = {"role": "assistant", "content": "hi"}
    body = {"choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": None}
    server.pieces, server.content_type, server.status = (json.dumps(body).encode(),), "application/json", 200
    with connect(server.url) as client, pytest.raises(ServerFailed, match="did not finish the answer"):
        client.generate(GenerateRequest("x", 1))
