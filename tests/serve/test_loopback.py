import os
import socket

import pytest

from toolkit.serve import loopback
from toolkit.serve.loopback import device_of, keep_local


@pytest.fixture(params=[("0.0.0.0", socket.AF_INET), ("::", socket.AF_INET6)], ids=["IPv4", "IPv6"])
def listening(request):
    address, family = request.param
    try:
        server = socket.create_server((address, 0), family=family)
    except OSError as error:
        pytest.skip(str(error))
    with server:
        yield server


def connects(listening: socket.socket) -> bool:
    with socket.socket(listening.family) as client:
        address = "::1" if listening.family == socket.AF_INET6 else "127.0.0.1"
        return client.connect_ex((address, listening.getsockname()[1])) == 0


def test_a_port_for_all_is_kept_to_this_machine(listening):
    assert device_of(listening) == b""
    for _ in range(2):
        assert keep_local([os.getpid()], ()) == {}
        assert device_of(listening) == b"lo\0"
    assert connects(listening)


def test_public_ports_and_loopback_addresses_are_left_alone(listening):
    with socket.create_server(("127.0.0.1", 0)) as local:
        keep_local([os.getpid()], [listening.getsockname()[1]])
        assert device_of(listening) == device_of(local) == b""


def test_where_the_kernel_does_not_allow_it_the_port_is_named(listening, monkeypatch):
    def refuse(pid: int, fd: int) -> socket.socket:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(loopback, "socket_of", refuse)
    assert keep_local([os.getpid()], ())[listening.getsockname()[1]] == "operation not permitted"
    assert device_of(listening) == b""


def test_a_process_that_has_ended(listening):
    assert keep_local([2**22 + 1], ()) == {}
