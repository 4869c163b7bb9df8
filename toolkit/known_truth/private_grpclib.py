"""The private parts of grpclib that the server of known truth needs.

- `Server._protocol_factory` and `Connection._connection`. Why: gRPC's own servers take any number of streams on one
  connection; grpclib leaves h2's limit of 100, and has no setting for it.
- The text of one log record. Why: grpclib logs a traceback when a handler ends in the moment when its client leaves.

Tried with the releases in TRIED. What replaces it: a setting of grpclib for SETTINGS_MAX_CONCURRENT_STREAMS and a
logger of its own for cancellations, or `grpc.aio` where its cost a message does not matter (benchmarks/client.md).
"""

from __future__ import annotations

import asyncio
import logging

from grpclib.protocol import H2Protocol
from grpclib.server import Server as GrpclibServer
from h2.settings import SettingCodes

TRIED = ("0.4.7", "0.4.9")
"""The first and the last release that the tests of the server passed with."""
MOST_STREAMS = 2**31 - 1
CANCELLATION = "Failed to handle cancellation"
"""What grpclib logs when a handler raises after its client has left."""


class _Protocol(H2Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.connection._connection.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: MOST_STREAMS})  # noqa: SLF001
        self.connection.flush()


class Server(GrpclibServer):
    """A server that takes any number of streams on one connection."""

    def _protocol_factory(self) -> H2Protocol:
        made = super()._protocol_factory()
        return _Protocol(made.handler, made.config, made.h2_config)


def ignore_cancellations() -> None:
    """Drop the log records of grpclib about clients that left: they are normal here."""
    logging.getLogger("grpclib.server").addFilter(lambda record: record.msg != CANCELLATION)
