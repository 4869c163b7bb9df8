"""Commands to a running `toolkit up`, over a Unix socket that only its user can open: a line of JSON each way."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import ToolkitError
from toolkit.up.fleet import ask_back, go_back
from toolkit.up.moving import move
from toolkit.up.rolling import restart
from toolkit.up.trial import Ended, try_settings

if TYPE_CHECKING:
    from toolkit.up.supervisor import Supervisor

LONGEST = 1 << 16
RESTART, TRIAL, MOVE, BACK = "restart", "trial", "move", "back"
NAMES = {
    RESTART: "toolkit restart",
    TRIAL: "toolkit tune --apply",
    MOVE: "toolkit migrate --apply",
    BACK: "toolkit migrate --rollback",
}
ROLLS_BACK = {TRIAL: try_settings, MOVE: move}
"""If they are interrupted, they take back what they did."""
Tell = Callable[[str], None]


class Commands:
    """Listens, and carries out one command at a time, each in a thread of its own."""

    def __init__(self, path: Path, supervisor: Supervisor) -> None:
        self.socket, self._supervisor = path, supervisor
        self._busy = threading.Lock()
        self._doing = ""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        path.chmod(0o600)
        self._listener.listen(4)
        threading.Thread(target=self._listen, name="commands", daemon=True).start()

    def close(self) -> None:
        """Take no more commands."""
        self._listener.close()

    def go_back(self) -> None:
        """Restart what has moved as its own YAML, in a thread, unless a command is under way: that is asked to end."""
        if self._busy.acquire(blocking=False):
            self._doing = NAMES[BACK]
            threading.Thread(target=self._go_back, name="back", daemon=True).start()

    def _go_back(self) -> None:
        try:
            with contextlib.suppress(Ended):
                go_back(self._supervisor)
        finally:
            self._busy.release()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._serve, args=(connection,), name="command", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, Ended):
            stream = connection.makefile("rw", encoding="utf-8")

            def tell(answer: dict[str, Any]) -> None:
                with contextlib.suppress(OSError):  # whoever asked may be gone; what was begun is finished
                    stream.write(json.dumps(answer) + "\n")
                    stream.flush()

            try:
                command = json.loads(stream.readline(LONGEST))
                tell({"ok": True, **self._do(command, lambda line: tell({"line": line}), lambda: _says(connection))})
            except (ToolkitError, ValueError, KeyError) as error:
                tell({"ok": False, "error": str(error)})

    def _do(self, command: dict[str, Any], tell: Tell, interrupted: Callable[[], bool]) -> dict[str, Any]:
        """Carry it out. Raises ToolkitError while another one is under way."""
        if command["do"] == BACK and self._supervisor.others.address:  # each node goes back by itself, this one too
            ask_back(self._supervisor, tell)
            return {}
        if not self._busy.acquire(blocking=False):
            raise ToolkitError(f"another command is under way: {self._doing}", hint="Wait until it has ended.")
        try:
            self._doing = NAMES[command["do"]]
            if do := ROLLS_BACK.get(command["do"]):
                return asdict(do(self._supervisor, command, tell, interrupted))
            if command["do"] == BACK and not self._supervisor.moved:
                tell("nothing has moved")
                return {}
            if command["do"] == BACK:
                own = self._supervisor.own
                command = {"rolling": True, "file": str(own.file), "engine": own.engine}
            restart(self._supervisor, command, tell)
            return {}
        finally:
            self._busy.release()


def _says(connection: socket.socket) -> bool:
    """Whether the other end said something, or is gone."""
    return bool(select.select([connection], [], [], 0)[0])


def send(path: str, command: dict[str, Any], hear: Tell) -> dict[str, Any]:
    """Send a command to the supervisor at this socket, and return its answer. `hear` gets its lines.

    Ctrl-C is passed on, and then the answer is waited for all the same; a second one ends the waiting. Raises
    ToolkitError with the supervisor's error.
    """
    for answer in _answers(path, command, hear):
        if "line" in answer:
            hear(answer["line"])
        elif not answer["ok"]:
            raise ToolkitError(answer["error"])
        else:
            return answer
    raise ToolkitError("toolkit up ended before it was done")


def _answers(path: str, command: dict[str, Any], hear: Tell) -> Iterator[dict[str, Any]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(path)
        except OSError as error:
            raise ToolkitError(f"toolkit up does not take commands: {error.strerror}", where=path) from None
        stream = connection.makefile("rw", encoding="utf-8")

        def say(line: dict[str, Any]) -> None:
            stream.write(json.dumps(line) + "\n")
            stream.flush()

        say(command)
        try:
            yield from map(json.loads, stream)
        except KeyboardInterrupt:
            if command["do"] not in ROLLS_BACK:
                raise
            say({})
            hear("interrupted: rolling back; again to leave that to toolkit up")
            yield from map(json.loads, stream)
