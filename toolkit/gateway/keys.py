"""API keys: a file of names and hashes, and how many requests a key may send."""

from __future__ import annotations

import hashlib
import hmac
import re
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import ToolkitError
from toolkit.files.atomic import read_text

_LINE = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,64})\s+(?P<digest>[0-9a-fA-F]{64})")
FORM = "NAME SHA256, as `printf %s KEY | sha256sum` prints it"
MINUTE_S = 60.0


def read_keys(file: Path) -> dict[str, str]:
    """Names by the SHA-256 of their keys. Raises ToolkitError, also for a file that others can read."""
    text = read_text(file, missing=f"Make it, with a line for each key: {FORM}.")
    if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ToolkitError("can be read by other users", where=file, hint=f"Close it: chmod 600 {file}")
    keys: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if not match:  # the line is not shown: it may be a key
            raise ToolkitError("is not a line for a key", where=f"{file}:{number}", hint=f"Expected: {FORM}.")
        keys[match["digest"].lower()] = match["name"]
    if not keys:
        raise ToolkitError("names no key, so nobody could use the server", where=file, hint=f"Add a line: {FORM}.")
    return keys


def name_of(keys: dict[str, str], authorization: str) -> str | None:
    """The name of the key in an Authorization header ("Bearer KEY"); None for any other key."""
    kind, _, key = authorization.partition(" ")
    if kind.lower() != "bearer" or not key:
        return None
    digest = hashlib.sha256(key.strip().encode()).hexdigest()
    return next((name for known, name in keys.items() if hmac.compare_digest(known, digest)), None)


@dataclass
class _Bucket:
    tokens: float
    filled: float


class RateLimit:
    """A token bucket per key: a burst may use a minute's requests; after that they refill evenly."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = float(per_minute), clock
        self._buckets: dict[str, _Bucket] = {}

    def take(self, name: str) -> float:
        """Take one request from the key's bucket. Returns 0, or the seconds until the bucket has one."""
        now = self._clock()
        bucket = self._buckets.setdefault(name, _Bucket(self._most, now))
        bucket.tokens = min(self._most, bucket.tokens + (now - bucket.filled) * self._most / MINUTE_S)
        bucket.filled = now
        if bucket.tokens < 1:
            return (1 - bucket.tokens) * MINUTE_S / self._most
        bucket.tokens -= 1
        return 0.0
