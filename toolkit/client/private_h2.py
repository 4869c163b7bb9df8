"""The one private method of h2 that the client overrides.

Why: a server that ends sends GOAWAY and then the rest of the answers in flight (RFC 9113, section 6.8). h2 marks the
connection as closed when the frame arrives, and refuses that rest.

Tried with the releases in TRIED. What replaces it: `h2.connection.H2Connection` itself, once h2 reads on after GOAWAY.
Without the override only answers in flight on a server that ends are lost, each with an error.
"""

from __future__ import annotations

from typing import Any

from h2.connection import H2Connection

TRIED = ("4.1.0", "4.4.1")
"""The first and the last release that the tests of the client passed with."""


class Connection(H2Connection):
    """An HTTP/2 connection that reads on after GOAWAY."""

    def _receive_goaway_frame(self, frame: Any) -> Any:
        state = self.state_machine.state
        frames, events = super()._receive_goaway_frame(frame)
        self.state_machine.state = state
        return frames, events
