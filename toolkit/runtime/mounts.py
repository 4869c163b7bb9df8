"""The paths of this machine that a container sees, each under the same name as outside."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import ToolkitError, Unreadable
from toolkit.runtime.needs import Needs


@dataclass(frozen=True)
class Mount:
    """A path that a container sees, and whether it may write there."""

    path: Path
    write: bool

    @property
    def why(self) -> str:
        return "written here, and so on this machine" if self.write else "read here, at its own place, never written"


def mounts(needs: Needs) -> list[Mount]:
    """Parents first, so that a folder to write to is visible inside a folder that is only read."""
    paths = {path: False for given in needs.reads for path in _with_what_it_links_to(given.absolute())}
    paths.update({path.absolute(): True for path in needs.writes})
    return [Mount(path, paths[path]) for path in sorted(paths, key=lambda path: (len(path.parts), path))]


def as_csv(*fields: str) -> str:
    """One line of CSV, which docker and apptainer read --mount as: a path may hold commas and quotes."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(fields)
    return line.getvalue()


def as_fstab(mount: Mount) -> str:
    """As enroot takes it: a line of fstab(5), with colons between fields. Raises ToolkitError for a path with one."""
    path = str(mount.path)
    if any(character in path for character in ":\n"):
        hint = "Use a path without them, or another runtime."
        raise ToolkitError("enroot cannot mount a path with a colon or a line break in it", where=path, hint=hint)
    for character in "\\ \t":  # the backslash first: the others are written with one
        path = path.replace(character, f"\\{ord(character):03o}")
    return f"{path}:{path}:none:x-create=auto,rbind,{'rw' if mount.write else 'ro'}"


def _with_what_it_links_to(path: Path) -> Iterator[Path]:
    """A path, and what is only linked to in it: a folder, or the folder of a file, as in the Hugging Face cache."""
    yield path
    real = path.resolve()
    if not path.is_dir():
        return
    try:
        entries = sorted(path.iterdir())
    except OSError as error:
        raise Unreadable(path, error) from None
    for entry in entries:
        target = entry.resolve()
        folder = target if target.is_dir() else target.parent
        if entry.is_symlink() and entry.exists() and not folder.is_relative_to(real):
            yield folder
