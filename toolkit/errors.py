"""The one exception that users see: one line that says what is wrong, where, and what to do."""

from __future__ import annotations

import re
import reprlib
from pathlib import Path
from typing import Any

LONGEST_LINE = 1000
"""Most characters of a message, whatever an input holds."""
LONGEST_QUOTE = 200
"""Most characters of a text that a message quotes."""


class ToolkitError(Exception):
    """A mistake in an input or a failed step, for a person to read and act on.

    `where` is the file (and field), `what` is what is wrong and what was expected, `hint` is what to do. The text is
    always one line:

        build_configs/x.yaml: parallel.tp: 3 does not divide num_attention_heads 64. Use 1, 2, 4, 8.
    """

    exit_code = 1
    """The exit code of a program that ends with this error."""

    def __init__(self, what: str, *, where: str | Path | None = None, hint: str | None = None) -> None:
        self.what, self.where, self.hint = what, where, hint
        text = _line(what, where, hint)
        if len(text) > LONGEST_LINE:
            text = clipped(_line(clipped(what, LONGEST_LINE // 2), where, hint), LONGEST_LINE - 3)
        super().__init__(text)


class InputRefused(ToolkitError):
    """A request that can never succeed as it is (HTTP 400, gRPC INVALID_ARGUMENT)."""


class Busy(ToolkitError):
    """A request that is refused because a queue or a limit is full now. It may succeed later (HTTP 503)."""


class Unreadable(ToolkitError):
    """An input that cannot be read now, for example because its disk went away. It may be readable later."""

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(f"cannot be read: {error.strerror}", where=path, hint="Run it again when it is readable.")


def _line(what: str, where: str | Path | None, hint: str | None) -> str:
    text = f"{where}: {what}" if where is not None else what
    if hint:
        text = f"{text.rstrip('.')}. {hint}"
    return printable(" ".join(text.split()))


def no_permission(error: PermissionError) -> ToolkitError:
    """The error for a file or directory that this user may not open."""
    return ToolkitError(f"cannot be opened: {error.strerror}", where=error.filename, hint="Check its permissions.")


def cannot_use(error: OSError) -> ToolkitError:
    """The error for a file or directory that the kernel refuses, for example because its name is too long."""
    if isinstance(error, PermissionError):
        return no_permission(error)
    return ToolkitError(f"cannot be opened: {error.strerror}", where=error.filename)


def shown(value: Any) -> str:
    """A value from an input, as a message quotes it: short, however long or deep the value is."""
    return clipped(_Short().repr(value))


def clipped(text: str, limit: int = LONGEST_QUOTE) -> str:
    """The beginning of a text, for a message."""
    text = printable(" ".join(text[: 2 * limit].split()))
    return text if len(text) <= limit else f"{text[:limit]}..."


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80
        self.maxlevel, self.maxdict, self.maxlist = 3, 8, 8

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to print integers of more than 4300 digits.
        return repr(x) if abs(x) < 10**20 else f"a number of {x.bit_length()} bits"


def printable(text: str) -> str:
    """The text with unprintable characters escaped: an input may hold terminal codes and lone surrogates."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def is_unicode(text: str) -> bool:
    """False for a lone surrogate, which JSON (\\ud800) and file names can hold, but UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


_HARMFUL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def harmless(text: str) -> str:
    """Another program's text of several lines, safe for a terminal or a page.

    Escaped are characters that control the cursor or the direction of writing, and those that UTF-8 cannot hold.
    """
    return _HARMFUL.sub(lambda match: _escaped(match[0]), text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
