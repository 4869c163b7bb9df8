"""The private method of h2 is still there; test_grpc_calls.py shows that an answer goes on after GOAWAY."""

from h2.connection import H2Connection

from tests.versions import untried
from toolkit.client import private_h2


def test_this_release_of_h2_was_tried():
    assert not (said := untried("h2", private_h2)), said


def test_h2_still_calls_the_method():
    assert hasattr(H2Connection, "_receive_goaway_frame"), (
        "h2 has no _receive_goaway_frame any more, so toolkit/client/private_h2.py overrides nothing:"
        " read its first lines for what replaces it."
    )
