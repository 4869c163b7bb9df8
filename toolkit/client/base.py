"""What all clients share: events, errors and time limits."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from toolkit.client.request import GenerateRequest
from toolkit.errors import ToolkitError

DEFAULT_DEADLINE_S = 600.0
POLL_S = 0.1


class ServerError(ToolkitError):
    """An error that a server answered, or no answer at all."""

    status: int | None = None
    """The HTTP status of the response, if there was one."""
    retry_after: str | None = None
    """The header Retry-After of the response."""


class ServerRefused(ServerError):
    """The server refuses the request: HTTP 4xx, gRPC INVALID_ARGUMENT, or an error before the first event."""


class ServerFailed(ServerError):
    """The server cannot be reached, failed, is too busy, or sent an answer that is not whole."""


class DeadlineExceeded(ToolkitError):
    """The answer did not begin or did not end in time."""


@dataclass(frozen=True, slots=True)
class Event:
    """One piece of a streamed answer."""

    text: str
    received: float
    """time.perf_counter(), in seconds, when its last byte had been read from the connection."""
    outputs: dict[str, Any]
    """The other outputs by name: a plain value for one element, a flat list for several. `num_output_tokens` counts the
    tokens of this event, `total_output_tokens` those of the answer so far, if the server counts them."""


@dataclass(frozen=True, slots=True)
class Result:
    """A whole answer. `received` and `outputs` are as in Event."""

    text: str
    received: float
    outputs: dict[str, Any]


@dataclass
class TimeLimit:
    """When an answer must have begun and when it must be whole, counted from now."""

    where: str
    seconds: float
    first_event_s: float
    begun: bool = False
    _start: float = field(default_factory=time.perf_counter)

    def left(self) -> float:
        """Seconds until the nearer limit. Raises DeadlineExceeded if it has passed."""
        left = self._end() - time.perf_counter()  # one look at the clock: the limit may pass between two
        if left <= 0:
            raise self.exceeded()
        return left

    def is_over(self) -> bool:
        return time.perf_counter() >= self._end()

    def end_within(self, seconds: float) -> None:
        """Move the end to `seconds` from now, if that is earlier."""
        self.seconds, self.begun = min(self.seconds, time.perf_counter() - self._start + seconds), True

    def exceeded(self) -> DeadlineExceeded:
        if not self.begun and self.first_event_s < self.seconds:
            return DeadlineExceeded(f"no answer began within {self.first_event_s:g} s", where=self.where)
        return DeadlineExceeded(f"the answer was not whole within {self.seconds:g} s", where=self.where)

    def _end(self) -> float:
        return self._start + (self.seconds if self.begun else min(self.seconds, self.first_event_s))


class Client(ABC):
    """Talks to one server; made by `toolkit.client.connect`. Use it as a context manager, or close it."""

    takes_messages = False
    """True if it sends messages instead of a prompt: the server applies the chat template."""

    def __init__(self, url: str, first_event_timeout_s: float) -> None:
        self.url = url
        self._first_event_timeout_s = first_event_timeout_s

    @abstractmethod
    def generate_stream(
        self, request: GenerateRequest, deadline_s: float | None = None
    ) -> Generator[Event, None, None]:
        """Yield the events of a streamed answer as they arrive. The first `next` sends the request.

        Closing the iterator, or leaving the loop, cancels the request on the server. The whole answer must arrive
        within `deadline_s` seconds (default 600). Raises ServerRefused, ServerFailed or DeadlineExceeded. An answer
        that ends early is always an error, never a short stream.
        """

    @abstractmethod
    def generate(self, request: GenerateRequest, deadline_s: float | None = None) -> Result:
        """The whole answer in one response. Raises the errors of generate_stream."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether the server says that it and its models are ready. False if it cannot be reached."""

    @abstractmethod
    def models(self) -> list[str]:
        """The models that the server lists as ready. Empty if it lists none or cannot be reached."""

    @abstractmethod
    def close(self) -> None:
        """Close all connections."""

    def wait_ready(self, timeout_s: float) -> None:
        """Return as soon as the server is ready. Raises DeadlineExceeded after `timeout_s` seconds."""
        end = time.monotonic() + timeout_s
        while not self.ready():
            if time.monotonic() >= end:
                raise DeadlineExceeded(f"the server was not ready within {timeout_s:g} s", where=self.url)
            time.sleep(POLL_S)

    def _limit(self, deadline_s: float | None) -> TimeLimit:
        seconds = DEFAULT_DEADLINE_S if deadline_s is None else deadline_s
        return TimeLimit(self.url, seconds, self._first_event_timeout_s)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def cannot_reach(url: str, error: Exception, protocol: str) -> ServerFailed:
    """The error for a server to which no connection can be made."""
    reason = getattr(error, "strerror", None) or str(error)
    hint = f"Is the server started, and is this its {protocol} port?"
    return ServerFailed(f"cannot be reached: {reason}", where=url, hint=hint)


def quoted(data: bytes | str, limit: int = 120) -> str:
    """The beginning of what a server sent, quoted for an error message of one line."""
    text = data.decode("utf-8", "replace") if isinstance(data, bytes) else data
    return repr(text if len(text) <= limit else text[:limit] + "...")
