"""The settings of a server of known truth, checked, and the times and the capacity that follow from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from toolkit.client import can_be_a_host
from toolkit.errors import ToolkitError, shown
from toolkit.known_truth.faults import Fault, Faults

SLOWER = 10
"""Tokens of a slow answer take so many times longer."""


@dataclass(frozen=True)
class Settings:
    """The settings of a server of known truth."""

    ttft_ms: float = 200.0
    itl_ms: float = 20.0
    tokens: int | None = None
    """An answer ends by itself after so many tokens. None: it ends at the request's max_tokens."""
    tokens_per_event: int = 1
    slots: int | None = None
    """So many answers run at a time, and the others wait in order. None: all run at once."""
    host: str = "127.0.0.1"
    http_port: int = 0
    """0: any free port."""
    grpc_port: int | None = 0
    """None: HTTP alone."""
    record: str | None = None
    """The file that gets a line of JSON when an answer ends."""
    faults: tuple[str, ...] = ()
    """KIND[:SHARE][:AFTER_TOKENS]; see toolkit.known_truth.faults."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("ttft_ms", "itl_ms"):
            _check(name, getattr(self, name), 0, 1e7, "milliseconds")
        for name in ("tokens", "tokens_per_event", "slots"):
            if getattr(self, name) is not None:
                _check(name, getattr(self, name), 1, 10**6, "a whole number")
        for name in ("http_port", "grpc_port"):
            if getattr(self, name) is not None:
                _check(name, getattr(self, name), 0, 65535, "a port")
        if not can_be_a_host(self.host):
            what = f"{shown(self.host)} is not an address or a host name"
            raise ToolkitError(what, where="--host", hint="Use 127.0.0.1, or 0.0.0.0 for all.")
        self.fault_plan()

    def fault_plan(self) -> Faults:
        """Which answers break, and how. Raises ToolkitError for a malformed fault."""
        return Faults(tuple(map(Fault.parse, self.faults)), self.seed)

    def length(self, max_tokens: int, min_tokens: int = 0, ignore_eos: bool = False) -> int:
        """How many tokens the answer to a request with these limits has."""
        if self.tokens is None or ignore_eos:
            return max_tokens
        return min(max_tokens, max(self.tokens, min_tokens))

    def due_s(self, token: int, slow_from: int | None = None) -> float:
        """When token 0, 1, ... of an answer is due, in seconds after the answer got its slot.

        All tokens of an event are due with its first token.
        """
        token -= token % self.tokens_per_event
        slow = 0 if slow_from is None else max(0, token - slow_from)
        return (self.ttft_ms + (token + slow * (SLOWER - 1)) * self.itl_ms) / 1e3

    def capacity(self, tokens: int) -> float:
        """The rate at which it saturates, in answers/s of `tokens` tokens: slots / (ttft + (tokens - 1) x itl)."""
        seconds = self.due_s(tokens - 1)
        return math.inf if self.slots is None or not seconds else self.slots / seconds


def _check(name: str, value: float, low: float, high: float, words: str) -> None:
    if isinstance(value, bool) or not low <= value <= high:  # false for NaN, too
        option = "--" + name.replace("_", "-")
        raise ToolkitError(f"{shown(value)} is not {words} from {low:g} to {high:g}", where=option)
