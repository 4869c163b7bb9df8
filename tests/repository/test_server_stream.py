"""An answer that breaks off, because the server that gives it ends."""

import importlib
import socket
import struct
import sys
import threading
from types import SimpleNamespace

import pytest

from toolkit.repository.generate import SOURCES

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b'e\r\ndata: {"n":1}\n\r\n'
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of a socket whose close resets the connection, as the kernel does for a killed process."""


@pytest.fixture
def server_stream(monkeypatch):
    error = type("TritonError", (Exception,), {"INVALID_ARG": 1, "INTERNAL": 2, "UNAVAILABLE": 3})
    error.__init__ = lambda self, message, code: None
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", SimpleNamespace(TritonError=error))
    monkeypatch.syspath_prepend(str(SOURCES / "shared"))
    monkeypatch.delitem(sys.modules, "server_stream", raising=False)
    yield importlib.import_module("server_stream")
    sys.modules.pop("server_stream", None)


def broken_off(sent: bytes, reset: bool) -> tuple[tuple[str, int], threading.Thread]:
    """A server that answers one request with these bytes and closes; its address."""
    listening = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        with listening, listening.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(sent)
            if reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    thread = threading.Thread(target=answer)
    thread.start()
    return listening.getsockname(), thread


@pytest.mark.parametrize("sent", [b"", HEAD, HEAD + EVENT])
@pytest.mark.parametrize("reset", [False, True])
def test_a_server_that_ends(server_stream, sent, reset):
    address, thread = broken_off(sent, reset)
    with pytest.raises(server_stream.Failed, match="this server is ending, and the rest of") as error:
        list(server_stream.ServerStream(address, "tensorrt_llm", {}))
    thread.join()
    assert error.value.code == "UNAVAILABLE"
    assert f"tensorrt_llm at 127.0.0.1:{address[1]}: " in str(error.value)


def test_another_fault_of_the_connection(server_stream, monkeypatch):
    def connect(*_arguments: object, **_named: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(server_stream.Failed, match="Too many open files") as error:
        list(server_stream.ServerStream(("127.0.0.1", 1), "tensorrt_llm", {}))
    assert "ending" not in str(error.value)
