"""Commands of another user: one without an entry in the list of users, without a home and without groups.

Root's own home, and so perhaps this Python, is closed to others. The commands get a view of the files (a mount
namespace) in which it is open. So is /dev/null, which some virtual machines close: no program starts without it.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import pytest

import toolkit

UID = 54321
_NEEDED = [sys.prefix, sys.base_prefix, sysconfig.get_path("purelib"), str(Path(toolkit.__file__).parents[1])]
_VIEW = """
set -e
while [ "$1" != -- ]; do
    aside=$(mktemp -d); mount --bind "$2" "$aside"; mount -t tmpfs -o mode=755 none "$1"
    mkdir -p "$2"; mount --bind "$aside" "$2"; umount "$aside"; rmdir "$aside"; shift 2
done
shift
if [ "$(stat -c %a /dev/null)" != 666 ]; then
    null=$(mktemp -u); mknod -m 666 "$null" c 1 3; mount --bind "$null" /dev/null; rm "$null"
fi
exec setpriv --reuid UID --regid UID --clear-groups "$@"
""".replace("UID", str(UID))


def as_other_user(
    *command: str | Path, environ: Mapping[str, str] = os.environ, timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run it to its end. HOME, USER and the like are only those of `environ` that are given."""
    known = {name: value for name, value in environ.items() if name not in ("USER", "LOGNAME", "XDG_CACHE_HOME")}
    if environ is os.environ:
        known.pop("HOME", None)
    return subprocess.run([*_view(), *map(str, command)], env=known, capture_output=True, text=True, timeout=timeout_s)


def skip_where_impossible() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can run commands as another user")
    tried = as_other_user(sys.executable, "-c", "import toolkit.cli.main")
    if tried.returncode:
        pytest.skip(f"another user cannot run this Python: {tried.stderr.strip()[-200:]}")


@functools.cache
def _view() -> list[str]:
    """The beginning of a command: what opens the folders that are closed to others, and changes the user."""
    pairs: list[str] = []
    for needed in dict.fromkeys(map(os.path.realpath, _NEEDED)):
        closed = [str(folder) for folder in Path(needed).parents if not folder.stat().st_mode & 0o001]
        if closed and not any(needed.startswith(pairs[at + 1]) for at in range(0, len(pairs), 2)):
            pairs += [closed[-1], needed]
    return ["unshare", "--mount", "sh", "-c", _VIEW, "sh", *pairs, "--"]
