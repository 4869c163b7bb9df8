"""toolkit known-truth as it is typed."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ResponseReceived

from toolkit.client import Client, DeadlineExceeded, GenerateRequest, connect
from toolkit.errors import ToolkitError
from toolkit.known_truth import KnownTruth, Settings, read_records

from .raw import infer, post

SERVICE = "/inference.GRPCInferenceService"
ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "toolkit", "known-truth"]


@contextlib.contextmanager
def started(*options: str) -> Iterator[subprocess.Popen[str]]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*COMMAND, *options], text=True, cwd=ROOT, **pipes) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serves_until_it_is_stopped(tmp_path, number):
    """Also with a stream still running, which is recorded as one that has no end."""
    with started(
        "--ttft-ms", "1", "--itl-ms", "1", "--tokens", "3", "--slots", "2", "--record", f"{tmp_path}/r"
    ) as process:
        assert process.stdout and process.stderr
        ready, http, url = process.stdout.readline().split()
        assert (ready, http[:7], url[:7]) == ("ready:", "http://", "grpc://")
        assert process.stderr.readline() == "capacity: 666.7 answers of 3 tokens a second\n"
        raw = post(http, "/v2/models/ensemble/generate_stream", text_input="x", max_tokens=9, stream=True)
        assert len(raw.events()) == 3
        address = http.removeprefix("http://").split(":")
        with socket.create_connection((address[0], int(address[1]))) as hanging:
            body = b'{"text_input":"x","max_tokens":99999,"stream":true,"ignore_eos":true}'
            head = b"POST /v2/models/ensemble/generate_stream HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body)
            hanging.sendall(head + body)
            hanging.recv(10)
            process.send_signal(number)
            said = process.communicate(timeout=30)[1]
    assert process.returncode == 0 and said.startswith("2 requests, ") and "late by P50" in said
    assert [(record.whole, record.tokens) for record in read_records(tmp_path / "r")] == [(True, 3), (False, 99999)]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_clients_that_leave_are_no_news(protocol):
    """By closing the stream, and by a deadline of their own, with tokens on their way."""

    def leave(client: Client, deadline_s: float) -> None:
        with (
            contextlib.suppress(DeadlineExceeded),
            contextlib.closing(client.generate_stream(GenerateRequest("x", 100_000), deadline_s=deadline_s)) as stream,
        ):
            for _ in zip(range(200), stream, strict=False):
                pass

    with started("--ttft-ms", "1", "--itl-ms", "0.2", "--json") as process:
        assert process.stdout and process.stderr
        url = json.loads(process.stdout.readline())[protocol]
        with connect(url) as client:
            users = [threading.Thread(target=leave, args=(client, deadline)) for deadline in (0.05, 20) * 15]
            for user in users:
                user.start()
            for user in users:
                user.join()
            assert client.generate(GenerateRequest("x", 2), deadline_s=20).text == " the of"
        process.terminate()
        done, said = process.communicate(timeout=30)
    assert json.loads(done)["requests"] > 15 and said == ""


def test_streams_that_are_cancelled_are_no_news():
    """By the client and by its deadline, on a connection that goes on."""

    def leave(ask_for: grpc.StreamStreamMultiCallable, deadline_s: float) -> None:
        call = ask_for(iter([infer(100_000)]), timeout=deadline_s)
        with contextlib.suppress(grpc.RpcError):
            for _ in zip(range(100), call, strict=False):
                pass
        call.cancel()

    with started("--ttft-ms", "1", "--itl-ms", "0.2", "--json") as process:
        address = json.loads(process.stdout.readline())["grpc"].removeprefix("grpc://")
        with grpc.insecure_channel(address) as channel:
            ask_for = channel.stream_stream(f"{SERVICE}/ModelStreamInfer")
            users = [threading.Thread(target=leave, args=(ask_for, deadline)) for deadline in (0.05, 20) * 15]
            for user in users:
                user.start()
            for user in users:
                user.join()
            assert len(list(ask_for(iter([infer(3)]), timeout=20))) == 3
            ask_for(iter([infer(100_000)]), timeout=20).next()  # runs while the channel closes
        process.terminate()
        said = process.communicate(timeout=30)[1]
    assert said == ""


def half_a_message(address: str) -> str:
    """What the server sends to a request whose message ends before its length."""
    http2 = H2Connection(H2Configuration(header_encoding="utf-8"))
    http2.initiate_connection()
    head = {":method": "POST", ":scheme": "http", ":path": f"{SERVICE}/ModelInfer", ":authority": "x", "te": "trailers"}
    http2.send_headers(1, [*head.items(), ("content-type", "application/grpc")])
    http2.send_data(1, b"\0\0\0\0\x09half", end_stream=True)
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(http2.data_to_send())
        while True:
            for event in http2.receive_data(connection.recv(65536)):
                if isinstance(event, ResponseReceived):
                    return dict(event.headers)["grpc-status"]


def test_messages_that_are_none_are_refused_and_are_no_news():
    with started("--json") as process:
        address = json.loads(process.stdout.readline())["grpc"].removeprefix("grpc://")
        with grpc.insecure_channel(address) as channel:
            stream = channel.stream_stream(f"{SERVICE}/ModelStreamInfer")
            for ask_for in (
                channel.unary_unary(f"{SERVICE}/ModelInfer"),
                lambda message, **how: list(stream(iter([message]), **how)),
            ):
                with pytest.raises(grpc.RpcError, match=r"INTERNAL.*not a ModelInferRequest"):
                    ask_for(b"\xff\xff")
                with pytest.raises(grpc.RpcError, match=r"UNIMPLEMENTED.*compressed"):
                    ask_for(b"x" * 2000, compression=grpc.Compression.Gzip)
        assert half_a_message(address) == str(grpc.StatusCode.INTERNAL.value[0])
        process.terminate()
        said = process.communicate(timeout=30)[1]
    assert said == ""


def test_json_is_a_line_when_ready_and_one_at_the_end():
    with started("--json") as process:
        assert process.stdout
        assert set(json.loads(process.stdout.readline())) == {"http", "grpc"}
        process.terminate()
        done = json.loads(process.communicate(timeout=30)[0])
    assert (done["requests"], done["late_p50_ms"], process.returncode) == (0, None, 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--itl-ms", "-3"), "error: --itl-ms: -3.0 is not milliseconds"),
        (("--fault", "crash"), "error: --fault crash: 'crash' is not a kind of fault. Use error-in-stream,"),
        (("--record", "/nowhere/x"), "error: /nowhere/x: cannot be written: No such file or directory"),
        (("--host", "nowhere.invalid"), "error: --http-port 0: cannot listen on nowhere.invalid"),
    ],
)
def test_wrong_options_are_one_line(options, said):
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(said) and done.stderr.count("\n") == 1


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_port_in_use_is_one_line(truth, protocol):
    port = truth.url(protocol).rsplit(":", 1)[1]
    done = subprocess.run([*COMMAND, f"--{protocol}-port", port], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"--{protocol}-port" in done.stderr and "cannot listen on 127.0.0.1" in done.stderr


def test_one_that_does_not_start_says_why(truth):
    port = int(truth.http.rsplit(":", 1)[1])
    with pytest.raises(ToolkitError, match="did not start: --http-port"), KnownTruth(Settings(http_port=port)):
        pass


def test_records_that_are_none_are_one_line(tmp_path):
    file = tmp_path / "r"
    file.write_text('{"x": 1}\n')
    with pytest.raises(ToolkitError, match="r: line 1: is not a record of toolkit known-truth"):
        list(read_records(file))
    with pytest.raises(ToolkitError, match="cannot be read"):
        list(read_records(tmp_path / "nowhere"))
