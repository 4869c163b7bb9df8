"""When the head of a response is on the wire, and what it says: until then a proxy may ask another server."""

from __future__ import annotations

import pytest
from h2.events import DataReceived, ResponseReceived
from tritonclient.grpc import service_pb2 as pb

from toolkit.known_truth import KnownTruth, Settings

from .raw import ask_grpc, infer, post

TTFT_S = 0.3
GENERATE, STREAM = (f"/v2/models/tensorrt_llm_bls/{verb}" for verb in ("generate", "generate_stream"))
BODY = {"text_input": "x", "max_tokens": 3}


@pytest.fixture(scope="module")
def slow():
    """Its first token is far from the arrival of the request."""
    with KnownTruth(Settings(ttft_ms=TTFT_S * 1e3, itl_ms=20)) as running:
        yield running


@pytest.fixture
def broken(request):
    """The fault takes the place of the first token."""
    with KnownTruth(Settings(ttft_ms=TTFT_S * 1e3, itl_ms=1, faults=(f"{request.param}::0",))) as running:
        yield running


@pytest.mark.parametrize(("path", "streamed"), [(STREAM, True), (STREAM, False), (GENERATE, False)])
def test_tritons_http_head_comes_with_the_first_token(slow, path, streamed):
    raw = post(slow.http, path, **BODY, stream=streamed)
    moment, size = raw.received[0]
    assert raw.status == 200
    assert moment - raw.asked >= TTFT_S
    assert size > 0 and b" the" in raw.body[:size], "the first bytes hold the head and the first token"


@pytest.mark.parametrize("method", ["ModelStreamInfer", "ModelInfer"])
def test_tritons_initial_metadata_come_with_the_first_response(slow, method):
    raw = ask_grpc(slow.grpc, method, infer(3))
    (head,), first = raw.after_s(ResponseReceived), raw.after_s(DataReceived)[0]
    assert head >= TTFT_S and first - head < 0.02


def test_openais_head_comes_with_the_request(slow):
    """As from NVIDIA's own OpenAI servers. A chat begins with the role alone, which holds no token."""
    for path, prompt in (
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
    ):
        raw = post(slow.http, path, **prompt, max_tokens=3, stream=True)
        (first_token,) = raw.arrivals(rb'" the"[^\n]*\n')
        assert first_token - raw.asked >= TTFT_S
        assert first_token - raw.received[0][0] > TTFT_S / 2


@pytest.mark.parametrize("broken", ["error-in-stream"], indirect=True)
@pytest.mark.parametrize(("path", "streamed"), [(STREAM, True), (STREAM, False), (GENERATE, False)])
def test_an_error_before_the_first_token_sets_the_status_of_tritons_http(broken, path, streamed):
    raw = post(broken.http, path, **BODY, stream=streamed)
    assert raw.status == 400 and b"breaks on demand" in raw.body
    assert ("text/event-stream" in raw.head) == (path == STREAM)


@pytest.mark.parametrize("broken", ["error-in-stream"], indirect=True)
def test_an_error_before_the_first_token_over_grpc(broken):
    """In a stream it is a message, as from Triton: the status of the call stays OK."""
    streamed = ask_grpc(broken.grpc, "ModelStreamInfer", infer(3))
    message = pb.ModelStreamInferResponse.FromString(streamed.data[5:])
    assert "breaks on demand" in message.error_message and "grpc-status" not in streamed.headers
    whole = ask_grpc(broken.grpc, "ModelInfer", infer(3))
    assert whole.headers["grpc-status"] == "13" and whole.data == b""


@pytest.mark.parametrize("broken", ["error-in-stream"], indirect=True)
def test_an_error_of_openai_before_the_first_token(broken):
    """The head of a stream is out already; the head of a whole answer is not."""
    streamed = post(broken.http, "/v1/completions", prompt="x", max_tokens=3, stream=True)
    assert streamed.status == 200 and streamed.events()[-1]["error"]["code"] == 500
    whole = post(broken.http, "/v1/completions", prompt="x", max_tokens=3)
    assert whole.status == 500 and whole.json()["error"]["code"] == 500


@pytest.mark.parametrize("broken", ["truncated"], indirect=True)
def test_a_cut_before_the_first_token(broken):
    """Over gRPC nothing but the status; over HTTP the head and half an event."""
    raw = post(broken.http, STREAM, **BODY, stream=True)
    assert raw.status == 200 and b"data: {" in raw.body and b"}" not in raw.body
    cut = ask_grpc(broken.grpc, "ModelStreamInfer", infer(3))
    assert cut.headers["grpc-status"] == "14" and cut.data == b""
