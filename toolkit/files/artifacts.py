"""Directories that appear whole or not at all, and the lock that says what each was made from.

A stage writes into `NAME.partial` beside its target and renames it when everything is on disk. Its
`lock.json` records the stage, the digests of its inputs, the resolved settings, the versions that
made it, and the size and SHA-256 of each file, so that the next stage can tell whether it fits.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from toolkit.errors import ToolkitError, Unreadable, cannot_use, clipped, shown
from toolkit.files.json_file import read_json

LOCK_NAME = "lock.json"


@dataclass(frozen=True)
class Lock:
    """What a directory was made from. `inputs` maps a name to a digest, `outputs` a file to its record."""

    stage: str
    inputs: Mapping[str, str]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    outputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seen: Mapping[str, Any] = field(default_factory=dict)
    """What told, when the inputs were read, that they were the same: not part of what was made."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all but `seen`: what a later stage records as its input."""
        return digest_of({name: value for name, value in asdict(self).items() if name != "seen"})

    def made_from(self, inputs: Mapping[str, str], settings: Mapping[str, Any]) -> bool:
        return dict(self.inputs) == dict(inputs) and dict(self.settings) == plain(settings)


def write_stage(
    directory: Path,
    stage: str,
    *,
    inputs: Mapping[str, str],
    settings: Mapping[str, Any],
    versions: Mapping[str, str],
    write: Callable[[Path], None],
) -> bool:
    """Make `directory` by `write(partial)`, unless it is already locked to the same inputs and settings.

    Returns True when it was written now, False when it was current. A failure in `write` leaves the
    old directory as it was and no partial one.
    """
    directory = Path(directory)
    if is_current(directory, stage, inputs, settings):
        return False
    refuse_others_work(directory)
    with atomic_directory(directory) as partial:
        write(partial)
        outputs = {str(path.relative_to(partial)): record(path) for path in sorted(_files(partial))}
        write_lock(partial, Lock(stage, dict(inputs), plain(settings), dict(versions), outputs))
    return True


def is_current(directory: Path, stage: str, inputs: Mapping[str, str], settings: Mapping[str, Any]) -> bool:
    """Whether `directory` is whole and locked to these inputs and settings."""
    lock = read_lock(directory)
    if lock is None or lock.stage != stage or not lock.made_from(inputs, settings):
        return False
    return not list(damaged(directory, lock))


def require(directory: Path, stage: str, settings: Mapping[str, Any], remake: str) -> Lock:
    """The lock of a directory that an earlier stage wrote, or a ToolkitError naming what differs.

    `settings` are those the directory must have been made with; `remake` is the command that makes it.
    """
    lock = read_lock(directory)
    if lock is None:
        raise ToolkitError(f"there is no {stage} here", where=directory, hint=f"Run: {remake}")
    if lock.stage != stage:
        raise ToolkitError(f"holds a {lock.stage}, expected: {stage}", where=directory, hint=f"Run: {remake}")
    for key, wanted in plain(settings).items():
        found = lock.settings.get(key)
        if found != wanted:
            raise ToolkitError(
                f"was made with {key} {found}, the deployment says {wanted}",
                where=directory,
                hint=f"Run: {remake}",
            )
    for problem in damaged(directory, lock):
        raise ToolkitError(problem, where=directory, hint=f"Run: {remake}")
    return lock


def read_lock(directory: Path) -> Lock | None:
    """The lock of a directory; None when it has none. Raises ToolkitError when it cannot be read."""
    path = Path(directory) / LOCK_NAME
    try:
        path.lstat()
        return _checked(read_json(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise cannot_use(error) from None
    except ToolkitError as error:
        hint = error.hint or "Delete the directory and make it again."
        raise ToolkitError(error.what, where=path, hint=hint) from None


def _checked(values: dict[str, Any]) -> Lock:
    """The lock, if every field has its type. Raises ToolkitError."""
    given: dict[str, Any] = {"outputs": {}, "seen": {}} | values
    for one in fields(Lock):
        kind = str if one.name == "stage" else dict
        if not isinstance(given.get(one.name), kind):
            raise ToolkitError(f"{one.name}: {shown(given.get(one.name))} is not what a lock has")
    for name, output in given["outputs"].items():
        if not isinstance(output, dict) or not isinstance(output.get("size"), int):
            raise ToolkitError(f"outputs.{clipped(name)}: {shown(output)} is not what a lock has")
    return Lock(**{one.name: given[one.name] for one in fields(Lock)})


def write_lock(directory: Path, lock: Lock) -> None:
    """Write the lock of a directory, whole."""
    path = Path(directory) / LOCK_NAME
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(asdict(lock), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    draft.replace(path)


def damaged(directory: Path, lock: Lock) -> Iterable[str]:
    """What is missing from, or of another size than, the lock says; sizes only, so it costs nothing."""
    for name, wanted in lock.outputs.items():
        path = Path(directory) / name
        if not path.is_file():
            yield f"{name} is missing"
        elif path.stat().st_size != wanted["size"]:
            yield f"{name} has {path.stat().st_size} bytes, its lock says {wanted['size']}"


def refuse_others_work(directory: Path) -> None:
    """Raise a ToolkitError if there is a file, or a directory that holds something but not our lock."""
    hint = "Move it away, or set `output` to another directory."
    try:
        names = sorted(os.listdir(directory))  # noqa: PTH208 - unlike Path.iterdir it raises here
    except FileNotFoundError:
        return
    except OSError as error:
        raise ToolkitError(f"cannot be written: {error.strerror}", where=directory, hint=hint) from None
    if names and LOCK_NAME not in names:
        what = f"holds {names[0]} and no {LOCK_NAME}, so it is not the toolkit's to replace"
        raise ToolkitError(what, where=directory, hint=hint)


@contextlib.contextmanager
def atomic_directory(target: Path, resume: bool = False) -> Iterator[Path]:
    """A `target.partial` to fill, which becomes `target` when the block ends well and goes when it fails.

    With `resume` the block gets what an earlier attempt has left, and an attempt that is cut off, or fails by
    an OSError or Unreadable, leaves it for the next. Raises ToolkitError while another process does the same.
    """
    target = Path(target)
    partial = target.with_name(target.name + ".partial")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_locked(partial))
            if not resume:
                _empty(partial)
        except OSError as error:
            raise ToolkitError(f"cannot be written: {error.strerror}", where=target) from None
        try:
            yield partial
            _swap(partial, target)
        except BaseException as error:
            spoilt = isinstance(error, ToolkitError) and not isinstance(error, Unreadable)
            if spoilt or not resume:
                shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, OSError):
                reason, hint = error.strerror or error, "Run it again; it goes on from there." if resume else None
                raise ToolkitError(f"could not be written: {reason}", where=target, hint=hint) from None
            raise


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Make a directory, or take the one that is there, for this process alone, however it ends."""
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), directory.stat()):
            raise BlockingIOError  # it was finished, and renamed, a moment ago
        yield
    except BlockingIOError:
        raise ToolkitError("is being written by another process", where=directory, hint="Wait for it to end.") from None
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class FileLock:
    """A lock file that this process holds, and every process that it hands the descriptor to."""

    stream: IO[str]

    @property
    def descriptor(self) -> int:
        return self.stream.fileno()

    def share(self, group: int) -> None:
        """Name the process group that was handed the descriptor, for the time when this process is gone."""
        self.stream.write(f"-{group}\n")
        self.stream.flush()


@contextlib.contextmanager
def file_lock(file: Path, doing: str) -> Iterator[FileLock]:
    """Hold a lock file, or raise a ToolkitError with the pid of who does. The kernel ends it with its last holder."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        stream = file.open("a+", encoding="utf-8")
    except OSError as error:
        raise ToolkitError(f"cannot be written: {error.strerror}", where=file) from None
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            there = [pid for pid in stream.read().split() if Path(f"/proc/{pid.removeprefix('-')}").exists()]
            who = f"process {there[0].removeprefix('-')}" if there else "another process"
            hint = f"Wait for it, or end it: kill -- {there[0]}" if there else "Wait for it."
            raise ToolkitError(f"{doing} {who}", where=file.parent, hint=hint) from None
        stream.truncate(0)
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        yield FileLock(stream)


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def record(path: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of one file."""
    with path.open("rb") as stream:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def fingerprint(paths: Iterable[Path]) -> str:
    """One digest of the names and contents of some files."""
    return digest_of({path.name: record(path)["sha256"] for path in paths})


def digest_of(value: Any) -> str:
    """The SHA-256 of a value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()


def plain(value: Any) -> Any:
    """The value as JSON gives it back, so that what is written and what is read compare equal."""
    return json.loads(json.dumps(value, sort_keys=True, default=str))


def _files(directory: Path) -> Iterable[Path]:
    return (path for path in directory.rglob("*") if path.is_file())


def _swap(partial: Path, target: Path) -> None:
    """Put `partial` in the place of `target`; for an instant neither is there, never half of one."""
    if target.exists():
        old = target.with_name(target.name + ".old.partial")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        partial.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        partial.rename(target)
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
