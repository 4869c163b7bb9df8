"""Sends the pieces of one answer to Dynamo, which passes them on to the front end."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from typing import Any

NEVER_WAITS = 4096
"""So many tokens fit into the buffers between a worker and a client that reads nothing.

Dynamo's `send` waits when they are full, and in the event loop it would hold up all other answers. With buffers of the
size that Linux gives by itself they were full after 52,000 tokens (benchmarks/gateway.md).
"""


class NobodyReads(Exception):
    """The front end wants no more of this answer: its client has left."""


class Outgoing:
    """The way of one answer to Dynamo.

    sender: Dynamo's ResponseSender.
    waiting: threads for those answers whose client may be too slow, one for each of them.
    """

    def __init__(self, sender: Any, waiting: Executor) -> None:
        self._sender, self._waiting, self._tokens = sender, waiting, 0

    async def send(self, output: dict[str, Any]) -> None:
        """Send a piece. Raises NobodyReads."""
        self._tokens += len(output["token_ids"])
        try:
            if self._tokens <= NEVER_WAITS:
                self._sender.send(output)
            else:
                await asyncio.get_running_loop().run_in_executor(self._waiting, self._sender.send, output)
        except RuntimeError as error:  # Dynamo has no class of its own for it
            raise NobodyReads(str(error)) from None
