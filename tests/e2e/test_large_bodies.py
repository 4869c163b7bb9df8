"""Bodies that end a Triton with the usual stack of 8 MiB: of very many pieces, or nested very deep."""

import http.client
import json
import resource

import pytest

from toolkit.machine.limits import STACK_BYTES, most_stack

from .group import processes_of
from .marks import both_models, one_rank

pytestmark = [
    *(pytest.mark.slow, one_rank),
    pytest.mark.skipif((most_stack() or STACK_BYTES) < STACK_BYTES, reason="the hard limit of the stack is lower here"),
]

ASKED = json.dumps({"text_input": "A tiny baker", "max_tokens": 10}).encode()
NESTED = {"120 kB of [": b"[" * 120_000, "800,000 arrays": b"[" * 800_000, "100,000 objects": b'{"a":' * 100_000}


@pytest.fixture
def group(group, truth):
    """The group, which answers after each test, by the same processes."""
    before = {process.pid for process in processes_of(group.run_id)}
    yield group
    assert group.ask(text_input="A tiny baker", max_tokens=10)["text_output"] == expected(truth)
    assert {process.pid for process in processes_of(group.run_id)} == before


def expected(truth) -> str:
    return truth.text(truth.greedy(truth.ids("A tiny baker"), 10))


@both_models
def test_4_mb_in_chunks_of_4_bytes(group, truth, model):
    """Triton keeps 16 bytes of stack for each piece in which a body came: 16 MB here."""
    body = ASKED.rjust(4_000_000)
    chunks = b"".join(b"4\r\n%b\r\n" % body[start : start + 4] for start in range(0, len(body), 4))
    connection = http.client.HTTPConnection(group.http, timeout=120)
    headers = {"Transfer-Encoding": "chunked"}
    connection.request("POST", f"/v2/models/{model}/generate", chunks + b"0\r\n\r\n", headers, encode_chunked=False)
    answer = connection.getresponse()
    assert answer.status == 200
    assert json.loads(answer.read())["text_output"] == expected(truth)


@pytest.mark.parametrize("kind, size", [("x-www-form-urlencoded", 30_000_000), ("json", 70_000_000)])
def test_many_mb_in_one_piece(group, truth, kind, size):
    """Triton keeps two bytes of stack for each byte of a form, which is what urllib and `curl -d` call every body."""
    connection = http.client.HTTPConnection(group.http, timeout=120)
    headers = {"Content-Type": f"application/{kind}"}
    connection.request("POST", "/v2/models/tensorrt_llm_bls/generate", ASKED.rjust(size), headers)
    answer = connection.getresponse()
    assert answer.status == 200
    assert json.loads(answer.read())["text_output"] == expected(truth)


@pytest.mark.parametrize("body", NESTED.values(), ids=NESTED)
def test_brackets_without_end(group, body):
    status, text = group.post("tensorrt_llm_bls", body)
    assert status == 500 and "failed to parse the request JSON buffer" in json.loads(text)["error"]


def test_arrays_in_arrays_as_the_value_of_an_input(group):
    """Triton measures such a value by recursion: two frames of stack for each array."""
    body = b'{"max_tokens": 3, "text_input": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    status, text = group.post("tensorrt_llm_bls", body)
    assert status == 400 and "expected 1 string elements" in json.loads(text)["error"]


def test_every_process_has_the_stack(group):
    for process in processes_of(group.run_id):
        assert resource.prlimit(process.pid, resource.RLIMIT_STACK)[0] == STACK_BYTES, process.cmdline()
