"""Directories that appear whole or not at all, each with a lock that records what it was made from.

A stage writes into `NAME.partial` next to its target, and renames it when everything is on disk. Its `lock.json`
records the stage, the digests of its inputs, the resolved settings, the versions that made it, and the size and
SHA-256 of each file. From that the next stage knows whether the directory fits.
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
from typing import Any

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
    """Size and mtime of the inputs when they were hashed; lets the next run skip hashing. Not part of the digest."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all fields but `seen`. A later stage records it as the digest of its input."""
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
    """Make `directory` with `write(partial)`, unless its lock already has the same inputs and settings.

    Returns True if it was written now, False if it was current.
    """
    if is_current(Path(directory), stage, inputs, settings):
        return False
    replace_stage(directory, stage, inputs=inputs, settings=settings, versions=versions, write=write)
    return True


def replace_stage(
    directory: Path,
    stage: str,
    *,
    inputs: Mapping[str, str],
    settings: Mapping[str, Any],
    versions: Mapping[str, str],
    write: Callable[[Path], None],
) -> None:
    """Make `directory` with `write(partial)`. If `write` fails, the old one stays and the partial one is removed."""
    refuse_others_work(directory)
    with atomic_directory(directory) as partial:
        write(partial)
        outputs = {str(path.relative_to(partial)): record(path) for path in sorted(_files(partial))}
        write_lock(partial, Lock(stage, dict(inputs), plain(settings), dict(versions), outputs))


def is_current(directory: Path, stage: str, inputs: Mapping[str, str], settings: Mapping[str, Any]) -> bool:
    """Whether `directory` is whole and its lock has these inputs and settings."""
    lock = read_lock(directory)
    if lock is None or lock.stage != stage or not lock.made_from(inputs, settings):
        return False
    return not list(damaged(directory, lock))


def require(directory: Path, stage: str, settings: Mapping[str, Any], remake: str) -> Lock:
    """The lock of a directory that an earlier stage wrote. Raises ToolkitError, which names what differs.

    The directory must have been made with these `settings`. `remake` is the command that makes it.
    """
    lock = read_lock(directory)
    if lock is None:
        raise ToolkitError(f"there is no {stage} here", where=directory, hint=f"Run: {remake}")
    if lock.stage != stage:
        raise ToolkitError(f"holds a {lock.stage}, expected: {stage}", where=directory, hint=f"Run: {remake}")
    for key, value in plain(settings).items():
        made_with = lock.settings.get(key)
        if made_with != value:
            what = f"was made with {key} {made_with}, the deployment says {value}"
            raise ToolkitError(what, where=directory, hint=f"Run: {remake}")
    for problem in damaged(directory, lock):
        raise ToolkitError(problem, where=directory, hint=f"Run: {remake}")
    return lock


def read_lock(directory: Path) -> Lock | None:
    """The lock of a directory; None if it has none. Raises ToolkitError if it cannot be read."""
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
    names = [each.name for each in fields(Lock)]
    values = {"outputs": {}, "seen": {}} | values
    for name in names:
        kind, kind_name = (str, "text") if name == "stage" else (dict, "an object")
        if not isinstance(values.get(name), kind):
            raise ToolkitError(f"{name}: expected {kind_name}, got {shown(values.get(name))}")
    for name, output in values["outputs"].items():
        if not isinstance(output, dict) or not isinstance(output.get("size"), int):
            raise ToolkitError(f"outputs.{clipped(name)}: expected an object with a size, got {shown(output)}")
    return Lock(**{name: values[name] for name in names})


def write_lock(directory: Path, lock: Lock) -> None:
    """Write the lock of a directory, whole."""
    path = Path(directory) / LOCK_NAME
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(asdict(lock), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    draft.replace(path)


def damaged(directory: Path, lock: Lock) -> Iterable[str]:
    """A message for each file that is missing or has another size than its lock says. Reads no file."""
    for name, output in lock.outputs.items():
        path = Path(directory) / name
        if not path.is_file():
            yield f"{name} is missing"
        elif path.stat().st_size != output["size"]:
            yield f"{name} has {path.stat().st_size} bytes, its lock says {output['size']}"


def refuse_others_work(directory: Path) -> None:
    """Raise a ToolkitError if `directory` is a file, or holds files but no lock of ours."""
    hint = "Move it away, or choose another directory."
    try:
        names = sorted(os.listdir(directory))  # noqa: PTH208 - unlike Path.iterdir it raises here
    except FileNotFoundError:
        return
    except OSError as error:
        raise ToolkitError(f"cannot be written: {error.strerror}", where=directory, hint=hint) from None
    if names and LOCK_NAME not in names:
        what = f"holds {names[0]} and no {LOCK_NAME}: the toolkit did not make this directory and does not replace it"
        raise ToolkitError(what, where=directory, hint=hint)


@contextlib.contextmanager
def atomic_directory(target: Path, resume: bool = False) -> Iterator[Path]:
    """A directory `target.partial` to fill. It becomes `target` at the end of the block, or is removed if that fails.

    With `resume` the block gets the files of an earlier attempt. If this attempt is killed, or fails with an OSError or
    Unreadable, its files stay for the next one. Raises ToolkitError while another process writes the same target.
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
                reason, hint = error.strerror or error, "Run it again: it continues from there." if resume else None
                raise ToolkitError(f"could not be written: {reason}", where=target, hint=hint) from None
            raise


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Make a directory, if it is missing, and lock it for this process. The kernel drops the lock with the process."""
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), directory.stat()):
            raise BlockingIOError  # another process has just finished and renamed it
        yield
    except BlockingIOError:
        raise ToolkitError("is being written by another process", where=directory, hint="Wait for it to end.") from None
    finally:
        os.close(descriptor)


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def record(path: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of one file."""
    with path.open("rb") as stream:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def fingerprint(paths: Iterable[Path]) -> str:
    """One digest of the names and contents of these files."""
    return digest_of({path.name: record(path)["sha256"] for path in paths})


def digest_of(value: Any) -> str:
    """The SHA-256 of a value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()


def plain(value: Any) -> Any:
    """The value as it comes back from JSON, so that written and read values compare equal."""
    return json.loads(json.dumps(value, sort_keys=True, default=str))


def _files(directory: Path) -> Iterable[Path]:
    return (path for path in directory.rglob("*") if path.is_file())


def _swap(partial: Path, target: Path) -> None:
    """Replace `target` with `partial`. For an instant `target` is missing; it is never incomplete."""
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
