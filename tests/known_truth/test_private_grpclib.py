"""The private parts of grpclib are still there; test_answers.py and test_command.py show what they are for."""

import inspect

from grpclib import protocol, server

from tests.versions import untried
from toolkit.known_truth import private_grpclib

REPLACED = "toolkit/known_truth/private_grpclib.py has nothing to stand on: read its first lines for what replaces it."


def test_this_release_of_grpclib_was_tried():
    assert not (said := untried("grpclib", private_grpclib)), said


def test_grpclib_still_makes_its_protocol_in_the_method():
    assert hasattr(server.Server, "_protocol_factory"), f"grpclib has no Server._protocol_factory any more: {REPLACED}"


def test_grpclib_still_keeps_h2s_connection():
    assert "_connection" in inspect.getsource(protocol.Connection.__init__), (
        f"grpclib's Connection has no _connection any more: {REPLACED}"
    )


def test_grpclib_still_logs_clients_that_leave_with_this_text():
    assert private_grpclib.CANCELLATION in inspect.getsource(server), (
        f"grpclib no longer logs {private_grpclib.CANCELLATION!r}: {REPLACED}"
    )
