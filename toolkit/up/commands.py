"""Commands to a running `toolkit up`, over a Unix socket that only its user can open: a line of JSON each way."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import ToolkitError
from toolkit.up.rolling import restart

if TYPE_CHECKING:
    from toolkit.up.supervisor import Supervisor

LONGEST = 1 << 16


class Commands:
    """Listens, and carries out one command at a time, in a thread of its own."""

    def __init__(self, path: Path, supervisor: Supervisor) -> None:
        self.socket, self._supervisor = path, supervisor
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        path.chmod(0o600)
        self._listener.listen(4)
        threading.Thread(target=self._listen, name="commands", daemon=True).start()

    def close(self) -> None:
        """Take no more commands."""
        self._listener.close()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            with connection, contextlib.suppress(OSError):
                self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        stream = connection.makefile("rw", encoding="utf-8")

        def tell(answer: dict[str, Any]) -> None:
            stream.write(json.dumps(answer) + "\n")
            stream.flush()

        try:
            command = json.loads(stream.readline(LONGEST))
            restart(self._supervisor, command, lambda line: tell({"line": line}))
            tell({"ok": True})
        except (ToolkitError, ValueError, KeyError) as error:
            tell({"ok": False, "error": str(error)})


def send(path: str, command: dict[str, Any], hear: Callable[[str], None]) -> None:
    """Send a command to the supervisor at this socket. `hear` gets its lines. Raises ToolkitError with its error."""
    for answer in _answers(path, command):
        if "line" in answer:
            hear(answer["line"])
        elif not answer["ok"]:
            raise ToolkitError(answer["error"])
        else:
            return
    raise ToolkitError("toolkit up ended before it was done")


def _answers(path: str, command: dict[str, Any]) -> Iterator[dict[str, Any]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(path)
        except OSError as error:
            raise ToolkitError(f"toolkit up does not take commands: {error.strerror}", where=path) from None
        stream = connection.makefile("rw", encoding="utf-8")
        stream.write(json.dumps(command) + "\n")
        stream.flush()
        for line in stream:
            yield json.loads(line)
