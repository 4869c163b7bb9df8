"""Opens files from elsewhere, which may be missing, dangling links or not regular files, and writes files whole."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from toolkit.errors import ToolkitError

LARGEST_TEXT = 4 << 20
"""Bytes; a file that people write by hand has a few kB."""
KINDS = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}


def kind_of(mode: int) -> str:
    """What a path is, from its `st_mode`: for example "a file"."""
    return "a file" if stat.S_ISREG(mode) else KINDS.get(stat.S_IFMT(mode), "a device")


def open_file(path: Path, missing: str | None = None) -> BinaryIO:
    """Open a file, or the target of a link, for reading. `missing` is the hint of the error if there is no file.

    Raises ToolkitError. It never waits: opening a named pipe would wait until somebody writes to it.
    """
    path = Path(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        if path.is_symlink():
            what = f"is a link to {path.readlink()}, which is not there"
            raise ToolkitError(what, where=path, hint=missing or "Download the file again.") from None
        raise ToolkitError("no such file", where=path, hint=missing) from None
    except ValueError as error:  # a NUL character
        raise ToolkitError(f"is not a path: {error}", where=path) from None
    except OSError as error:
        hint = "Check its permissions." if isinstance(error, PermissionError) else None
        raise ToolkitError(f"cannot be read: {error.strerror}", where=path, hint=hint) from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise ToolkitError(f"is {kind_of(mode)}, expected a file", where=path, hint=missing)
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, largest: int, missing: str | None = None) -> bytes:
    """All of a file of at most `largest` bytes. Raises ToolkitError."""
    try:
        with open_file(path, missing) as stream:
            content = stream.read(largest + 1)
    except OSError as error:
        raise ToolkitError(f"cannot be read: {error.strerror}", where=path) from None
    if len(content) > largest:
        raise ToolkitError(f"is larger than {largest >> 20} MiB, the most that such a file can have", where=path)
    return content


def read_text(path: Path, missing: str | None = None) -> str:
    """All of a small file of UTF-8. Raises ToolkitError."""
    content = read_bytes(path, LARGEST_TEXT, missing)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        what = f"is not UTF-8 text: byte 0x{content[error.start]:02x}"
        raise ToolkitError(what, where=f"{path}:{line}", hint="Save it as UTF-8.") from None


def private(path: str, flags: int) -> int:
    """An opener for `open`: only its owner can read a new file."""
    return os.open(path, flags, 0o600)


def make_private(directory: Path) -> None:
    """Make a directory that only this user can open. One that this user already has becomes private too."""
    directory.mkdir(parents=True, exist_ok=True)
    if directory.stat().st_uid == os.geteuid():
        directory.chmod(0o700)


def check_writable(target: Path) -> None:
    """Raise a ToolkitError if `atomic_file` could not write to `target`. Call it before long work."""
    target = Path(target)
    if target.exists() and not target.is_file():
        raise _not_a_file(target)
    try:
        tempfile.TemporaryFile(dir=target.parent).close()
    except OSError as error:
        raise ToolkitError(f"cannot be written: {error.strerror}", where=target) from None


def _not_a_file(target: Path) -> ToolkitError:
    return ToolkitError(f"is {kind_of(target.stat().st_mode)}, expected a file", where=target)


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A new file next to the target, to be written in the block. It replaces the target at the end.

    After an error nothing remains of it. Raises ToolkitError if the folder is missing or cannot be written to.
    """
    target = Path(target)
    partial = target.parent / f".{target.name}.{secrets.token_hex(4)}.partial"
    try:  # begins before the file exists, because an interrupt may come at any point
        try:
            os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644))
        except OSError as error:
            raise ToolkitError(f"cannot be written: {error.strerror}", where=target) from None
        yield partial
        if target.exists() and not target.is_file():  # such as /dev/null, which root could replace
            raise _not_a_file(target)
        partial.replace(target)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def write_text(target: Path, text: str, mode: int | None = None) -> None:
    """Write a file of UTF-8 whole or not at all. `mode`: its permissions. Raises ToolkitError, also on a full disk."""
    with atomic_file(target) as partial:
        try:
            if mode is not None:
                partial.chmod(mode)
            partial.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ToolkitError(f"could not be written: {error.strerror}", where=target) from None
