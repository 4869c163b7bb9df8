"""What gRPC asks of a connection over HTTP/2, against gRPC's own server and against one that does as it is told."""

import asyncio
import contextlib
import queue
import socket
import threading
import time

import grpc
import pytest
from h2.config import H2Configuration
from h2.connection import ConnectionState, H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, DataReceived, RequestReceived, StreamEnded
from h2.settings import SettingCodes
from tritonclient.grpc import service_pb2 as pb

from toolkit.client import GenerateRequest, ServerFailed, connect
from toolkit.client.base import TimeLimit
from toolkit.client.grpc_calls import Calls

from .test_stream import ask, seen_of


def test_connections_are_kept_and_streams_at_once_have_their_own(probe):
    with connect(probe.grpc) as client:
        for scenario in ("kept one", "kept two"):
            ask(client, scenario)
        first = client.generate_stream(GenerateRequest("kept three", 50))
        next(first)
        ask(client, "kept four")
        first.close()
        ask(client, "kept five")
    used = {seen["prompt"]: seen["connection"] for seen in probe.log() if "kept" in seen["prompt"]}
    assert used["kept one"] == used["kept two"] == used["kept three"]
    assert used["kept four"] == used["kept five"] != used["kept one"]


def test_a_prompt_larger_than_a_server_takes_at_once(probe):
    prompt = "large " + "x" * 3_000_000
    with connect(probe.grpc) as client:
        assert len(ask(client, prompt)) == 5
    assert seen_of(probe, prompt)["sent"] == 5


@contextlib.contextmanager
def own_server(handler):
    """gRPC's own server with one method, in a thread; gives its port and a function that ends it as SIGTERM would."""
    ready: queue.Queue = queue.Queue()

    async def serve() -> None:
        server = grpc.aio.server()
        methods = {"Ask": grpc.unary_stream_rpc_method_handler(handler)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", methods),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        ending, loop = asyncio.Event(), asyncio.get_running_loop()
        ready.put((port, lambda: loop.call_soon_threadsafe(ending.set)))
        await ending.wait()
        await server.stop(10)

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    port, stop = ready.get(timeout=30)
    yield port, stop
    with contextlib.suppress(RuntimeError):  # it has ended already
        stop()
    thread.join(30)


@contextlib.contextmanager
def calls_to(port: int, deadline_s: float = 10):
    url = f"grpc://127.0.0.1:{port}"
    with contextlib.closing(Calls(url, "127.0.0.1", port, 5)) as calls:
        yield calls, TimeLimit(url, deadline_s, deadline_s)


async def count(request: bytes, context) -> None:
    for number in range(int(request)):
        await context.write(b"%d" % number)
        await asyncio.sleep(0.02)


def test_a_server_that_ends_finishes_the_answer_in_flight():
    with own_server(count) as (port, stop), calls_to(port) as (calls, limit):
        answer = calls.call("/test/Ask", b"40", limit)
        assert next(answer)[0] == b"0"
        stop()
        assert [int(data) for data, _ in answer] == list(range(1, 40))
        with pytest.raises(ServerFailed, match="refused"):
            next(calls.call("/test/Ask", b"1", limit))


def test_the_server_is_told_the_deadline():
    left: list[float] = []

    async def note(_, context) -> None:
        left.append(context.time_remaining())

    with own_server(note) as (port, _), calls_to(port, 7) as (calls, limit):
        assert list(calls.call("/test/Ask", b"", limit)) == []
    assert 6 < left[0] <= 7


def test_a_kept_connection_waits_for_a_server_that_is_slow_to_take_a_prompt():
    """Of a prompt of 8 MB nothing is read for a while, be there ever so much room in its window."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def talk() -> None:
            sock, _ = listening.accept()
            http2, taken = H2Connection(H2Configuration(client_side=False)), 0
            http2.initiate_connection()
            http2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 2**30})
            http2.increment_flow_control_window(2**30)
            with sock:
                while True:
                    sock.sendall(http2.data_to_send())
                    for event in http2.receive_data(sock.recv(65536)):
                        if isinstance(event, DataReceived):
                            taken += len(event.data)
                        if isinstance(event, StreamEnded):
                            http2.send_headers(event.stream_id, [*HEAD, ("grpc-status", "0")], end_stream=True)
                            if taken > 8_000_000:
                                return sock.sendall(http2.data_to_send())
                            sock.sendall(http2.data_to_send())
                            time.sleep(0.5)  # nothing of the next prompt is read for so long

        threading.Thread(target=talk, daemon=True).start()
        with calls_to(listening.getsockname()[1]) as (calls, limit):
            assert list(calls.call("/test/Ask", b"first", limit)) == []
            assert list(calls.call("/test/Ask", b"x" * 8_000_000, limit)) == []


def test_a_method_that_there_is_not():
    with (
        own_server(count) as (port, _),
        calls_to(port) as (calls, limit),
        pytest.raises(ServerFailed, match="UNIMPLEMENTED: Method not found"),
    ):
        next(calls.call("/test/Other", b"", limit))


@contextlib.contextmanager
def told(answer):
    """A server that answers each request with what `answer(http2, stream)` sends."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    sock, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=talk, args=(sock,), daemon=True).start()

        def talk(sock: socket.socket) -> None:
            http2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
            http2.initiate_connection()
            with sock:
                while True:
                    sock.sendall(http2.data_to_send())
                    data = sock.recv(65536)
                    if not data:
                        return
                    if http2.state_machine.state is ConnectionState.CLOSED:  # it has said goodbye, and h2 reads no more
                        continue
                    for event in http2.receive_data(data):
                        if isinstance(event, RequestReceived):
                            answer(http2, event.stream_id)
                        if isinstance(event, ConnectionTerminated):
                            return

        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1]


HEAD = [(":status", "200"), ("content-type", "application/grpc")]
MESSAGE = pb.ModelStreamInferResponse(error_message="late words").SerializeToString()


def resets(http2: H2Connection, stream: int) -> None:
    http2.send_headers(stream, HEAD)
    http2.reset_stream(stream, ErrorCodes.ENHANCE_YOUR_CALM)


def is_a_page(http2: H2Connection, stream: int) -> None:
    http2.send_headers(stream, [(":status", "502"), ("content-type", "text/html")], end_stream=True)


def compresses(http2: H2Connection, stream: int) -> None:
    http2.send_headers(stream, HEAD)
    http2.send_data(stream, b"\x01\x00\x00\x00\x01x")


def is_cut(http2: H2Connection, stream: int) -> None:
    http2.send_headers(stream, HEAD)
    http2.send_data(stream, b"\x00\x00\x00\x00\x09x")
    http2.send_headers(stream, [("grpc-status", "0")], end_stream=True)


def says_no_status(http2: H2Connection, stream: int) -> None:
    http2.send_headers(stream, HEAD)
    http2.send_headers(stream, [("grpc-status", "many")], end_stream=True)


def is_no_message(http2: H2Connection, stream: int) -> None:
    http2.send_headers(stream, HEAD)
    http2.send_data(stream, b"\x00\x00\x00\x00\x02\xff\xff")
    http2.send_headers(stream, [("grpc-status", "0")], end_stream=True)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (resets, "reset the stream, ENHANCE_YOUR_CALM"),
        (is_a_page, "HTTP status 502 and content type text/html"),
        (compresses, "compressed"),
        (is_cut, "ended within a message"),
        (says_no_status, "gRPC status 'many'"),
        (is_no_message, "expected ModelStreamInferResponse"),
    ],
)
def test_what_is_no_answer(answer, words):
    with told(answer) as port, connect(f"grpc://127.0.0.1:{port}") as client:
        with pytest.raises(ServerFailed, match=words) as caught:
            ask(client, "hello")
        assert "\n" not in str(caught.value)
        assert not client.ready()


def test_a_message_in_two_frames():
    data = b"\x00" + len(MESSAGE).to_bytes(4, "big") + MESSAGE

    def splits(http2: H2Connection, stream: int) -> None:
        http2.send_headers(stream, HEAD)
        http2.send_data(stream, data[:7])
        http2.send_data(stream, data[7:])
        http2.send_headers(stream, [("grpc-status", "0")], end_stream=True)

    with told(splits) as port, calls_to(port) as (calls, limit):
        assert [found for found, _ in calls.call("/test/Ask", b"", limit)] == [MESSAGE]


def test_an_idle_connection_that_the_server_closed_meanwhile_is_replaced():
    taken = []

    def says_goodbye(http2: H2Connection, stream: int) -> None:
        taken.append(stream)
        http2.send_headers(stream, HEAD)
        http2.send_headers(stream, [("grpc-status", "0")], end_stream=True)
        http2.close_connection()

    with told(says_goodbye) as port, calls_to(port) as (calls, limit):
        for _ in range(2):
            assert list(calls.call("/test/Ask", b"", limit)) == []
            time.sleep(0.05)  # for the goodbye to arrive
    assert taken == [1, 1]
