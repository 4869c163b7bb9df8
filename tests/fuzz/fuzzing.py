"""What every fuzz test shares: how inputs are spoilt, and what must hold of whatever reads them.

`make test` tries a few seeded examples of each kind. `make fuzz` tries many more, others each time:
FUZZ_EXAMPLES is the number of examples of each test.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from toolkit.errors import ToolkitError

MANY = int(os.environ.get("FUZZ_EXAMPLES", "0"))
LONGEST_LINE = 1000
MOST_SECONDS = 20
"""Of processor time for one example: they take milliseconds, and what has no end takes more on any machine."""

NUMBERS = [0, -1, 1, 2, 7, 10**6, 2**31 - 1, 2**31, 2**63, 10**30, 10**400, -(10**400)]
NUMBERS += [0.5, -0.5, 1e-300, 1e30, 1e300, float("inf"), float("-inf"), float("nan")]
TEXTS = ["", "a", " ", "x" * 5000, "💥" * 300, "\x00", "a\x1b[31mb\r\n\tc", "\u202e\u2028", "1:1:1", "0x10", "null"]
TEXTS += ["~nosuchuser/x", "/", "/dev/zero", "..", "../" * 50, "a/b", "a" * 300, "::1", "*", "$(touch PWNED)", "%s{0}"]
HALF = "\ud800"
"""Half a character, which JSON can name and UTF-8 cannot hold."""
BLOCKS: list[Any] = [[], {}, [[]], [None], {"": 1}, {"a": {"b": [1]}}, [0] * 50, {HALF: HALF}]
for _ in range(3):
    BLOCKS.append([BLOCKS[-1]] * 3)
DEEP: Any = []
for _ in range(200):
    DEEP = [DEEP]
BLOCKS.append(DEEP)
strange = st.sampled_from([None, True, False, *NUMBERS, *TEXTS, HALF, *BLOCKS]) | st.integers() | st.floats()
strange |= st.text(max_size=20)


def examples(few: int) -> settings:
    """Seeded, and always the same, for `make test`; `make fuzz` sets another number."""
    return settings(
        max_examples=MANY or few,
        derandomize=not MANY,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # few parts are changed, so there is little to shrink
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def changed(draw: Any, value: Any) -> Any:
    """The value with one to three of its parts replaced, left out, added or repeated."""
    found = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(found))
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        action = draw(st.sampled_from(["replace"] * 4 + ["leave out", "add", "repeat"]))
        if action == "leave out" and len(places) > 1:
            del holder[key]
        elif action == "add" and isinstance(holder, dict):
            holder[draw(st.text(max_size=5) | st.just("x" * 2000))] = copy.deepcopy(draw(strange))
        elif action == "repeat" and isinstance(holder, list):
            holder.append(holder[key])
        else:
            holder[key] = copy.deepcopy(draw(strange))
        if not found:
            break
    return found


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in inner:
        yield value, key
        if isinstance(part, dict | list):
            yield from _places(part)


@st.composite
def damaged(draw: Any, content: bytes, pieces: list[bytes]) -> bytes:
    """The bytes with some flipped, cut out, or some of the pieces put in, or the end cut off."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(found) - 1)))
        action = draw(st.sampled_from(["flip", "cut", "piece", "piece", "piece", "byte", "end"]))
        if action == "flip" and found:
            found[at] ^= 1 << draw(st.integers(0, 7))
        elif action == "cut":
            del found[at : at + draw(st.integers(1, 40))]
        elif action == "end":
            found = found[:at]
        elif action == "byte":
            found[at:at] = draw(st.binary(min_size=1, max_size=3))
        else:
            found[at:at] = draw(st.sampled_from(pieces))
    return bytes(found)


JSON_PIECES = [b"NaN", b"-Infinity", b"1e400", b"[[[[", b'"\\ud800"', b"null", b"{}", b'"', b",", b"9" * 5000, b"\xff"]


def checked(use: Callable[[], object], folder: Path) -> object:
    """What `use` returns; None where it raises a ToolkitError, which has to be one printable line of some length.

    Any other exception fails the test, and so does what takes long, or writes outside of the folder.
    """
    begun = time.process_time()
    try:
        with writing_only_in(folder):
            return use()
    except ToolkitError as error:
        line = str(error)
        assert line.isprintable() and 0 < len(line) <= LONGEST_LINE, line
        return None
    finally:
        assert time.process_time() - begun < MOST_SECONDS


def printed(done: Any) -> None:
    """Check what a command has printed: no traceback, and nothing that moves a cursor."""
    for text in (done.stdout, done.stderr):
        assert "Traceback" not in text, text
        assert all(c.isprintable() or c == "\n" for c in text), text
    for line in done.stderr.splitlines():
        assert len(line) <= LONGEST_LINE + 100, line


_watched: list[tuple[Path, list[str]]] = []
_WRITES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod"}
_WRITES |= {"os.chown", "os.utime", "shutil.rmtree", "shutil.move", "shutil.copyfile", "tempfile.mkstemp", "os.kill"}


@contextmanager
def writing_only_in(folder: Path) -> Iterator[None]:
    """Fail for whatever is written, renamed or removed outside of the folder, or a signal that is sent, meanwhile."""
    if not _watched:
        sys.addaudithook(_audit)  # for good: there is no way to remove one
        _watched.append((folder, []))
    outside: list[str] = []
    _watched[0] = folder.resolve(), outside
    try:
        yield
    finally:
        _watched[0] = Path("/"), []
    assert not outside, outside


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watched:
        return
    folder, outside = _watched[0]
    writes = event in _WRITES
    if event == "open":
        path, _, flags = arguments
        writes = isinstance(path, str | bytes) and bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    if not writes:
        return
    for path in arguments[:2] if event in ("os.rename", "shutil.move") else arguments[:1]:
        text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        inside = bool(text) and Path(os.path.realpath(text)).is_relative_to(folder)
        if not inside and "__pycache__" not in text and not Path(text).name.startswith("toolkit-run-"):
            outside.append(f"{event} {arguments!r:.300}")
