"""Keeps the traffic, not its text: one line of JSON per request, in the form of Mooncake's public traces.

    {"timestamp": 1764532800123, "input_length": 70, "output_length": 52, "hash_ids": [81, 7, 3], "block_tokens": 32,
     "e2e_ms": 812.5, "ttft_ms": 41.2, "replica": 0}

The latencies begin with the arrival at the model or worker that keeps the request. They tell replicas apart, which the
histograms of the front end cannot: toolkit/up/trial.py compares replicas by them.

An id in hash_ids names a block of prompt tokens together with all tokens before it. It comes from a hash with a secret
key, so nobody without the key can test a guess of the text. The key is made at the first write and stays in FILE.key.

Every model and worker of this machine appends to the same file, one at a time. A thread writes: a request never waits
for the disk. toolkit/gateway/traffic.py uses this file too, so it needs only Python.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import queue
import secrets
import stat
import sys
import threading
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

VARIABLE = "TOOLKIT_TRAFFIC"
"""Environment variable of a group: BLOCK_TOKENS:FILE."""
REPLICA = "TOOLKIT_REPLICA"
"""Environment variable of a group: which replica it is, if there are several."""
MOST_BYTES = 128 << 20
"""FILE becomes FILE.1 before it is larger than this, and the FILE.1 from before is lost."""
KEY_BYTES, LINK_BYTES = 32, 16
ID_BYTES = 6
"""Of an id: small enough for every reader of JSON. Two of a million blocks share one with a chance of 1 to 500."""
CANARY = "toolkit-canary"
"""The id of the requests by which toolkit/serve/health.py sees whether the group answers: they are nobody's traffic."""
PENDING = 4096
"""Requests that may wait for the disk; more are not kept."""
PERIOD_S = 0.5


class KeptRequest(NamedTuple):
    """What is kept of a request."""

    milliseconds: int
    """Its arrival, since 1970."""
    prompt: Sequence[int]
    output_tokens: int
    times: Mapping[str, Any] = {}
    """Its latencies, the replica, and whether it failed."""


class TrafficFile:
    """The file, its key, and its predecessor."""

    def __init__(self, path: Path, block_tokens: int, most_bytes: int = MOST_BYTES) -> None:
        self.path, self.key_file = path, path.with_name(path.name + ".key")
        self.predecessor = path.with_name(path.name + ".1")
        self._block_tokens, self._most_bytes = block_tokens, most_bytes

    def append(self, requests: Sequence[KeptRequest]) -> None:
        """Add a line for each request: all of them, or none. Raises OSError, also for a damaged key file."""
        with contextlib.ExitStack() as stack:
            key = self._locked_key(stack)
            data = "".join(self._line(key, request) for request in requests).encode()
            descriptor, size = self._opened()
            if size and size + len(data) > self._most_bytes:
                os.close(descriptor)
                self.path.replace(self.predecessor)
                descriptor, size = self._opened()
            stack.callback(os.close, descriptor)
            try:
                if os.write(descriptor, data) < len(data):
                    raise OSError(28, "No space left on device")
            except OSError:
                os.ftruncate(descriptor, size)  # half a line would make the file unreadable
                raise

    def _locked_key(self, stack: contextlib.ExitStack) -> bytes:
        """The key, which is made if there is none. No other process writes until `stack` ends."""
        descriptor = os.open(self.key_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        stack.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        text = os.pread(descriptor, 1 << 12, 0)
        try:
            kept: dict[str, Any] = json.loads(text) if text else {"key": secrets.token_hex(KEY_BYTES)}
            key = bytes.fromhex(kept["key"])
        except (ValueError, KeyError, TypeError):
            raise OSError(0, f"{self.key_file.name} is damaged: remove it, and the file it belongs to") from None
        if kept.get("block_tokens") != self._block_tokens:
            if self.path.is_file():  # ids of another key, or of blocks of another size, mean something else
                self.path.replace(self.predecessor)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"key": kept["key"], "block_tokens": self._block_tokens}).encode(), 0)
        return key

    def _opened(self) -> tuple[int, int]:
        """A descriptor to append to, and the size of the file."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(self.path, flags, 0o600)
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            os.close(descriptor)
            raise OSError(0, "not a file")
        return descriptor, state.st_size

    def _line(self, key: bytes, request: KeptRequest) -> str:
        line = {
            "timestamp": request.milliseconds,
            "input_length": len(request.prompt),
            "output_length": request.output_tokens,
            "hash_ids": hash_ids(key, request.prompt, self._block_tokens),
            "block_tokens": self._block_tokens,
            **request.times,
        }
        return json.dumps(line, separators=(",", ":")) + "\n"


def hash_ids(key: bytes, prompt: Sequence[int], block_tokens: int) -> list[int]:
    """An id for each block of the prompt; the last block may be shorter. Equal ids have equal tokens up to there."""
    tokens, link, ids = array("i", prompt).tobytes(), b"", []
    width = array("i").itemsize * block_tokens
    for start in range(0, len(tokens), width):
        link = hashlib.blake2b(link + tokens[start : start + width], key=key, digest_size=LINK_BYTES).digest()
        ids.append(int.from_bytes(link[:ID_BYTES], "big"))
    return ids


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class KeptTraffic:
    """Keeps requests. `note` neither waits nor raises: what cannot be written is lost, and one line says so."""

    def __init__(self, file: TrafficFile, say: Callable[[str], None] = _say, replica: int | None = None) -> None:
        self._file, self._say = file, say
        self._replica = {} if replica is None else {"replica": replica}
        self._pending: queue.Queue[KeptRequest] = queue.Queue(PENDING)
        # On the clock that only goes forward, so that a change of the machine's date moves no arrival.
        self._offset = time.time() - time.monotonic()
        self._failing, self._over = False, threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)
        self._thread.start()

    def note(
        self,
        arrival: float,
        prompt: Sequence[int],
        output_tokens: int,
        request_id: str = "",
        times: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep a request that ended. `arrival` is on time.monotonic(); `times` are its latencies, if they count."""
        if request_id == CANARY:
            return
        milliseconds = round((arrival + self._offset) * 1e3)
        more = {**times, **self._replica} if times else {}
        with contextlib.suppress(queue.Full):
            self._pending.put_nowait(KeptRequest(milliseconds, prompt, output_tokens, more))

    def end(self) -> None:
        """Write the rest, and stop."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(PERIOD_S):
            self._write()
        self._write()

    def _write(self) -> None:
        requests: list[KeptRequest] = []
        with contextlib.suppress(queue.Empty):
            while len(requests) < PENDING:
                requests.append(self._pending.get_nowait())
        if not requests:
            return
        try:
            self._file.append(requests)
            self._failing = False
        except Exception as error:
            if not self._failing:
                why = error.strerror if isinstance(error, OSError) else type(error).__name__
                self._say(f"{self._file.path}: the traffic is not kept: {why}; serving goes on")
            self._failing = True


def keeper() -> KeptTraffic | None:
    """For the models of a group; None unless VARIABLE tells where to."""
    block_tokens, _, path = os.environ.get(VARIABLE, "").partition(":")
    number = os.environ.get(REPLICA)
    replica = int(number) if number else None
    return KeptTraffic(TrafficFile(Path(path), int(block_tokens)), replica=replica) if path else None
