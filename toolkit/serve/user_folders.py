"""Folders of the user who serves: the cache, and a stand-in for a home directory that is missing."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from toolkit.errors import ToolkitError


def user_cache() -> Path:
    """The toolkit's cache folder: in the user's home, or in a temporary folder if the home cannot be written."""
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache) / "toolkit"
    try:
        home = Path.home()
    except RuntimeError:  # no HOME and no entry in the list of users
        home = Path("/")
    if os.access(home / ".cache" if (home / ".cache").is_dir() else home, os.W_OK):
        return home / ".cache" / "toolkit"
    return _own_temporary_folder()


def stand_in_home() -> Path | None:
    """A value of HOME for a user who has no home; None if the user has one.

    mpirun needs a HOME and reads settings there, so the folder must be this user's own.
    """
    try:
        Path.home()
    except RuntimeError:  # no HOME and no entry in the list of users
        return _own_temporary_folder()
    return None


def _own_temporary_folder() -> Path:
    """A folder of this user alone, with the same path each time. Raises ToolkitError."""
    folder = Path(f"toolkit-{os.geteuid()}")
    try:
        folder = tempfile.gettempdir() / folder
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        status = folder.lstat()
    except OSError as error:
        raise ToolkitError(f"cannot be made: {error.strerror}", where=folder, hint="Set HOME or TMPDIR.") from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        what = "is used in place of a home directory, but other users can write to it"
        raise ToolkitError(what, where=folder, hint="Set HOME to a folder of your own.")
    return folder
