"""How far the times that our client reports are from the truth, and what it costs.

    python benchmarks/client.py             our client: each protocol, threads and gevent, 1, 16 and 64 streams
    python benchmarks/client.py readers     the HTTP libraries that could have been under it
    python benchmarks/client.py events      processor time of an OpenAI event, without a network

The server is tests/client/probe.py in a process of its own (TTFT 200 ms, ITL 20 ms); each of its events
carries the time at which it was sent. Results are in benchmarks/client.md.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.client.measure import Stream, in_own_process
from tests.client.probe import RunningProbe, running_probe

TTFT_S, ITL_S, TOKENS, ROUNDS = 0.2, 0.02, 100, 3
STREAMS = (1, 16, 64)
Reader = Callable[[str], Iterator[bytes]]
PATH = "/v2/models/tensorrt_llm_bls/generate_stream"
BODY = json.dumps({"text_input": "measure", "max_tokens": TOKENS, "stream": True})


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def row(name: str, streams: int, done: list[Stream], cpu: float) -> str:
    """The errors in ms: of the first event, of every event, of a stream's TPOT; and when the server got the request."""
    first = [stream.errors_ms()[0] for stream in done]
    every = [error for stream in done for error in stream.errors_ms()]
    asking = [(stream.arrived - stream.asked) * 1e3 for stream in done]
    spans = [(stream.received[-1] - stream.received[0], stream.sent[-1] - stream.sent[0]) for stream in done]
    tpot = [abs(measured - true) / (TOKENS - 1) * 1e3 for measured, true in spans]
    cells = [f"{percentile(values, share):.2f}" for values in (asking, first, every) for share in (0.5, 0.99)]
    cells += [f"{percentile(tpot, 0.99):.3f}", f"{cpu:.2f}"]
    return f"| {name} | {streams} | {' | '.join(cells)} |"


def our_client(probe: RunningProbe) -> Iterator[str]:
    for protocol in ("http", "openai", "grpc"):
        for how in ("threads", "gevent"):
            for streams in STREAMS:
                done, cpu = in_own_process(how, probe.url(protocol), streams, TOKENS, ROUNDS)
                yield row(f"{protocol}, {how}", streams, done, cpu)


def read_http_client(url: str) -> Iterator[bytes]:
    response = posted(url)
    while data := response.read1():
        yield data


def read_in_blocks(url: str) -> Iterator[bytes]:
    """The mistake to avoid: wait for 1,024 bytes, and give several events at the time of the last."""
    response = posted(url)
    while data := response.read(1024):
        yield data


def posted(url: str) -> http.client.HTTPResponse:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
    connection.request("POST", PATH, BODY)
    return connection.getresponse()


def read_urllib3(url: str) -> Iterator[bytes]:
    import urllib3

    pool = urllib3.PoolManager()
    yield from pool.urlopen("POST", url + PATH, body=BODY, preload_content=False).read_chunked()


def read_requests(url: str) -> Iterator[bytes]:
    import requests

    yield from requests.post(url + PATH, data=BODY, stream=True).iter_content(chunk_size=None)


def one_stream(reader: Reader, url: str) -> Stream:
    asked, received, sent, arrived, pending = time.perf_counter(), [], [], 0.0, b""
    for data in reader(url):
        now = time.perf_counter()
        *lines, pending = (pending + data).split(b"\n")
        for event in (json.loads(line[6:]) for line in lines if line):
            received.append(now)
            sent.append(event["last_token_time_ns"] / 1e9)
            arrived = event["arrival_time_ns"] / 1e9
    return Stream(asked, arrived, sent, received)


def readers(probe: RunningProbe) -> Iterator[str]:
    for reader in (read_http_client, read_urllib3, read_requests, read_in_blocks):
        for streams in STREAMS:
            done: list[Stream] = []

            def user(reader: Reader = reader, done: list[Stream] = done) -> None:
                done.extend(one_stream(reader, probe.http) for _ in range(ROUNDS))

            users = [threading.Thread(target=user) for _ in range(streams)]
            cpu, wall = time.process_time(), time.perf_counter()
            for thread in users:
                thread.start()
            for thread in users:
                thread.join()
            busy = (time.process_time() - cpu) / (time.perf_counter() - wall)
            yield row(reader.__name__.removeprefix("read_"), streams, done, busy)


class Recorded:
    """In the place of connections: an answer that is already there, one read for each event."""

    def __init__(self, events: list[bytes]) -> None:
        self._events = events

    @contextlib.contextmanager
    def post(self, *_: object) -> Iterator[tuple[Recorded, Recorded]]:
        self._left = iter(self._events)
        yield self, self

    def settimeout(self, seconds: float) -> None:
        pass

    def read1(self) -> bytes:
        return next(self._left, b"")

    def read(self) -> bytes:
        return b""


def events() -> None:
    """Microseconds of processor time for an event, the best of several rounds: the machine does other things, too.

    Alone in a read of the socket, as from a paced server; and eight in a read, as where the reader is behind.
    """
    from toolkit.client import GenerateRequest, connect

    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "llama"}
    many = 20_000
    counted = {"usage": {"prompt_tokens": 9, "completion_tokens": 1}}
    for name, usage, each in (("plain", {}, 1), ("usage on each", counted, 1), ("plain, eight a read", {}, 8)):
        choice = {"index": 0, "delta": {"content": " word"}, "logprobs": None, "finish_reason": None}
        text = b"data: " + json.dumps({**head, "choices": [choice], **usage}).encode() + b"\n\n"
        last = {**choice, "delta": {}, "finish_reason": "stop"}
        end = b"data: " + json.dumps({**head, "choices": [last], **usage}).encode() + b"\n\n"
        client, took = connect("openai+http://127.0.0.1:1"), []
        client._connections = Recorded([*[text * each] * (many // each), end, b"data: [DONE]\n\n"])  # type: ignore[attr-defined]  # noqa: SLF001
        for _ in range(9):
            begin = time.process_time()
            found = sum(1 for event in client.generate_stream(GenerateRequest("x", 1)) if event.text)
            took.append((time.process_time() - begin) / many * 1e6)
            assert found == many
        print(f"{name}: {min(took):.2f} us an event")


def main() -> None:
    if sys.argv[1:] == ["events"]:
        return events()
    measured = readers if sys.argv[1:] == ["readers"] else our_client
    print(f"{os.cpu_count()} cores, load average before {os.getloadavg()[0]:.1f}")
    print("| client | streams | asking P50 | P99 | first P50 | P99 | every P50 | P99 | TPOT P99 | CPU |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    with running_probe(TTFT_S, ITL_S) as probe:
        for line in measured(probe):
            print(line, flush=True)
    print(f"load average after {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
