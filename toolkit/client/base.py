"""What all clients share: the events they give, the errors they raise, and how long they wait."""

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


class ServerRefused(ToolkitError):
    """The server does not take the request: HTTP 4xx, gRPC INVALID_ARGUMENT, or an error before any event."""


class ServerFailed(ToolkitError):
    """The server cannot be reached, failed, is too busy, or sent what is not a whole answer."""


class DeadlineExceeded(ToolkitError):
    """The answer did not begin, or was not whole, in time."""


@dataclass(frozen=True, slots=True)
class Event:
    """One piece of a streamed answer."""

    text: str
    received: float
    """time.perf_counter() when its last byte had been read from the connection, in seconds."""
    outputs: dict[str, Any]
    """The other outputs by name; one element is a plain value, several are a flat list. `num_output_tokens` are
    the tokens of this event, where the server says; `total_output_tokens` those of the answer so far."""


@dataclass(frozen=True, slots=True)
class Result:
    """A whole answer; `received` and `outputs` as in Event."""

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
        """Seconds until the nearer limit. Raises DeadlineExceeded when there are none."""
        if self.is_over():
            raise self.exceeded()
        return self._end() - time.perf_counter()

    def is_over(self) -> bool:
        return time.perf_counter() >= self._end()

    def end_within(self, seconds: float) -> None:
        """End at most `seconds` from now; never later than before."""
        self.seconds, self.begun = min(self.seconds, time.perf_counter() - self._start + seconds), True

    def exceeded(self) -> DeadlineExceeded:
        if not self.begun and self.first_event_s < self.seconds:
            return DeadlineExceeded(f"no answer began within {self.first_event_s:g} s", where=self.where)
        return DeadlineExceeded(f"the answer was not whole within {self.seconds:g} s", where=self.where)

    def _end(self) -> float:
        return self._start + (self.seconds if self.begun else min(self.seconds, self.first_event_s))


class Client(ABC):
    """A connection to one server; see `toolkit.client.connect`. Use it as a context manager, or close it."""

    takes_messages = False
    """True if it sends messages instead of a prompt, and the server applies the chat template."""

    def __init__(self, url: str, first_event_timeout_s: float) -> None:
        self.url = url
        self._first_event_timeout_s = first_event_timeout_s

    @abstractmethod
    def generate_stream(
        self, request: GenerateRequest, deadline_s: float | None = None
    ) -> Generator[Event, None, None]:
        """The events of a streamed answer, each as soon as it arrives; the request is sent at the first.

        Closing the iterator, or leaving the loop, cancels the request on the server. The whole answer
        must arrive within `deadline_s` seconds (600 when not given). Raises ServerRefused, ServerFailed
        or DeadlineExceeded; an answer that ends early is always an error, never a short stream.
        """

    @abstractmethod
    def generate(self, request: GenerateRequest, deadline_s: float | None = None) -> Result:
        """The whole answer in one response; raises as generate_stream does."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether the server says that it and its models are ready. False when it cannot be reached."""

    @abstractmethod
    def models(self) -> list[str]:
        """The models that the server lists as ready; none where it lists none or cannot be asked."""

    @abstractmethod
    def close(self) -> None:
        """End all connections."""

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
    """The beginning of something that a server sent, fit for a line of an error."""
    text = data.decode("utf-8", "replace") if isinstance(data, bytes) else data
    return repr(text if len(text) <= limit else text[:limit] + "...")
