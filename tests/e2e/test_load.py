"""Many clients, clients that leave, and a full queue; then nothing of them is left."""

import http.client
import json
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from .group import MAX_SEQUENCES, QUEUE, processes_of, text_of, wait_for
from .marks import both_models, one_rank
from .tensors import Stream, outputs

pytestmark = [pytest.mark.slow, one_rank]

LINES = ("Shall I compare thee", "A tiny baker", "床前明月光", "Tyger Tyger", "I met a traveller", "Über allen")
LONG = 900


@both_models
def test_64_clients_at_once(group, truth, model):
    """Four times as many as run at a time: each gets its own exact text."""
    expected = {line: truth.greedy(truth.ids(line), 40) for line in LINES}

    def ask(number: int) -> None:
        line = LINES[number % len(LINES)]
        events = group.events(model, text_input=line, max_tokens=40, id=f"client {number}")
        assert text_of(events) == truth.text(expected[line])
        assert len(events) == len(expected[line])

    with ThreadPoolExecutor(MAX_SEQUENCES + QUEUE) as pool:
        list(pool.map(ask, range(MAX_SEQUENCES + QUEUE)))


def test_64_grpc_requests_on_one_stream(group, truth):
    expected = truth.greedy(truth.ids(LINES[0]), 20)
    with Stream(group.grpc) as stream:
        for number in range(64):
            stream.send("tensorrt_llm_bls", id=f"{number}", stream=True, text_input=LINES[0], max_tokens=20)
        counts = Counter(stream.next().get_response().id for _ in range(64 * len(expected)))
    assert counts == {f"{number}": len(expected) for number in range(64)}


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls", "tensorrt_llm"])
def test_full_queue(group, truth, model):
    """Beyond what runs and waits, a request is told to come again; the others get their texts.

    NVIDIA's backend answers 503. Triton 2.51 turns every error of a decoupled Python model into 400.
    """
    ids = truth.ids("A crab")
    body = {"text_input": "A crab", "max_tokens": 20, "end_id": -1}
    if model == "tensorrt_llm":
        body = {"input_ids": ids, "input_lengths": len(ids), "request_output_len": 20}
    lengths = [LONG] + [20] * (QUEUE // MAX_SEQUENCES)  # few requests with many sequences: they come at once
    with Stream(group.grpc) as stream, ThreadPoolExecutor(12) as pool:
        for length in lengths:
            asked = {"input_ids": ids, "input_lengths": len(ids), "request_output_len": length}
            stream.send("tensorrt_llm", num_return_sequences=MAX_SEQUENCES, **asked)
        wait_for(lambda: group.requests("waiting") == QUEUE, "the queue is full")
        refusals = list(pool.map(lambda _: group.post(model, body), range(12)))
        texts = [outputs(stream.next())["output_ids"] for _ in range(MAX_SEQUENCES * len(lengths))]
    words = ("limits.max_queue_size", "Exceeds maximum queue size")  # the engine's, and Triton's own in a burst
    for status, text in refusals:
        message = json.loads(text)["error"]
        assert status in (400, 503) and any(word in message for word in words) and "\n" not in message
    assert Counter(len(text[0]) for text in texts) == {LONG: MAX_SEQUENCES, 20: QUEUE}


def leave(group, model: str, clients: int) -> int:
    """Tokens that were generated for HTTP clients which closed their connections after the first event."""
    ended, tokens = group.ended(), group.output_tokens()
    body = json.dumps({"text_input": "A crab", "max_tokens": LONG, "end_id": -1, "stream": True})
    connections = [http.client.HTTPConnection(group.http, timeout=30) for _ in range(clients)]
    for connection in connections:
        connection.request("POST", f"/v2/models/{model}/generate_stream", body)
    responses = [connection.getresponse() for connection in connections]
    for response in responses:
        assert response.readline().startswith(b"data: ")
    for connection, response in zip(connections, responses, strict=True):
        response.close()
        connection.close()
    wait_for(lambda: group.ended() == ended + clients, "the requests of clients that left end", within_s=60)
    return group.output_tokens() - tokens


def test_clients_that_leave_stop_their_requests(group):
    assert leave(group, "tensorrt_llm_bls", clients=8) < 8 * LONG


def test_clients_of_the_ensemble_that_leave(group):
    """Triton tells no step of an ensemble that the client left: the blocks come back when the text is done."""
    assert leave(group, "ensemble", clients=2) <= 2 * LONG


def test_clients_that_leave_while_they_wait(group):
    """Those that never ran give their places in the queue back, too."""
    with Stream(group.grpc) as stream:
        for number in range(MAX_SEQUENCES + 8):
            asked = {"input_ids": [0, 65], "input_lengths": 2, "request_output_len": LONG, "streaming": True}
            stream.send("tensorrt_llm", id=f"{number}", **asked)
        wait_for(lambda: group.requests("waiting"), "some wait")
        stream.cancel()
    wait_for(group.is_idle, "all are gone")
    assert group.ask(text_input="Tyger Tyger", max_tokens=3)["text_output"]


def engine_memory(group) -> int:
    """Bytes of rank 0's engine process that are its own."""
    found = [p for p in processes_of(group.run_id) if any("tensorrt_llm/1/model.py" in part for part in p.cmdline())]
    (engine,) = found
    return psutil.Process(engine.pid).memory_full_info().uss


def test_soak(group, truth):
    """300 requests of all kinds, some cancelled: every block comes back and the engine's memory stays."""
    chance = random.Random(7)
    kinds = ("ensemble", "tensorrt_llm_bls", "refused", "left", "sampled", "tensorrt_llm")

    def one(number: int) -> None:
        line, kind = chance.choice(LINES), kinds[number % len(kinds)]
        if kind == "refused":
            assert group.post("tensorrt_llm_bls", {"text_input": line, "max_tokens": 0})[0] == 400
        elif kind == "left":
            with Stream(group.grpc) as stream:
                stream.send("tensorrt_llm_bls", text_input=line, max_tokens=200, end_id=-1, stream=True)
                stream.next()
                stream.cancel()
        elif kind == "sampled":
            group.events(
                "tensorrt_llm_bls", text_input=line, max_tokens=24, top_k=9, seed=number, return_log_probs=True
            )
        elif kind == "tensorrt_llm":
            ids = truth.ids(line * chance.randint(1, 9))
            group.ask("tensorrt_llm", input_ids=ids, input_lengths=len(ids), request_output_len=chance.randint(1, 40))
        else:
            group.events(kind, text_input=line, max_tokens=chance.randint(1, 60), id=f"soak {number}")

    sizes = []
    with ThreadPoolExecutor(12) as pool:
        for first in range(0, 400, 100):
            list(pool.map(one, range(first, first + 100)))
            wait_for(group.is_idle, "all blocks free")
            sizes.append(engine_memory(group))
    warm, *later = sizes
    assert max(later) - warm < 8 << 20, sizes
