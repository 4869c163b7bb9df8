"""The one exception that users see: one line that says what is wrong, where, and what to do."""

from __future__ import annotations

from pathlib import Path


class ToolkitError(Exception):
    """A mistake in an input or a failed step, for a person to read and act on.

    `where` is the file (and field) concerned, `what` the value found and what was expected,
    `hint` what to do about it. The text is always one line:

        build_configs/x.yaml: parallel.tp: 3 does not divide num_attention_heads 64. Use 1, 2, 4, 8.
    """

    def __init__(self, what: str, *, where: str | Path | None = None, hint: str | None = None) -> None:
        self.what, self.where, self.hint = what, where, hint
        text = f"{where}: {what}" if where is not None else what
        if hint:
            text = f"{text.rstrip('.')}. {hint}"
        super().__init__(" ".join(text.split()))


class InputRefused(ToolkitError):
    """A request that can never succeed as sent (HTTP 400, gRPC INVALID_ARGUMENT)."""


class Busy(ToolkitError):
    """A request refused because a queue or a limit is full now; it may succeed later (HTTP 503)."""
