"""The Python that Triton's Python models run in: a virtual environment that sees the toolkit and its packages.

Triton's Python backend embeds an isolated Python. It ignores PYTHONPATH and PYTHONHOME, and takes its library and
packages from the first python3 on PATH. That python3 is the one of this environment.
"""

from __future__ import annotations

import contextlib
import platform
import site
import sys
import sysconfig
from pathlib import Path

from toolkit.errors import ToolkitError
from toolkit.files import distribution

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
PATHS = """# The packages of the toolkit's own Python, by links: this Python reads every file name as ASCII.
import os, site, sys
for number in range({}):
    folder = os.path.join(os.path.dirname(__file__), f"packages-{{number}}")
    try:
        site.addsitedir(folder)
    except UnicodeError:  # a .pth file in it has other characters
        if folder not in sys.path:
            sys.path.append(folder)
"""


def write_python(folder: Path) -> None:
    """Make the virtual environment in `folder`, with the packages of the Python that runs this."""
    packages = folder / "lib" / f"python{PYTHON}" / "site-packages"
    packages.mkdir(parents=True)
    (folder / "bin").mkdir()
    executable = Path(sys.executable).resolve()
    (folder / "bin" / "python3").symlink_to(executable)
    (folder / "pyvenv.cfg").write_text(f"home = {executable.parent}\ninclude-system-site-packages = false\n")
    (packages / "toolkit.pth").write_text("import toolkit_paths\n")
    folders = python_folders()
    for number, path in enumerate(folders):
        (packages / f"packages-{number}").symlink_to(path)
    (packages / "toolkit_paths.py").write_text(PATHS.format(len(folders)))


def python_folders() -> list[str]:
    """The folders of this toolkit and of the packages that it is installed with."""
    folders = [str(distribution.PACKAGE.parent), *site.getsitepackages()]
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    return [folder for folder in dict.fromkeys(folders) if Path(folder).is_dir()]


def this_python() -> tuple[Path, ...]:
    """What a container must see to run this Python with its packages, and the programs next to it.

    Never /usr whole, which would hide the image's own.
    """
    installed = Path(sysconfig.get_path("scripts")).parent  # /usr/local for a Python in /usr
    standard = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
    named = [distribution.PACKAGE, *map(Path, [*python_folders()[1:], *standard])]
    named += [find_libpython(), Path(sys.executable).resolve()]
    return installed, *dict.fromkeys(path for path in named if not path.is_relative_to(installed))


def find_libpython() -> Path:
    """This Python's shared library, which the Python backend links to."""
    name = f"libpython{PYTHON}.so.1.0"
    multiarch = sysconfig.get_config_var("MULTIARCH") or f"{platform.machine()}-linux-gnu"
    candidates = [sysconfig.get_config_var("LIBDIR"), f"{sys.base_prefix}/lib", f"{sys.base_prefix}/lib64"]
    candidates += [f"{root}/lib/{multiarch}" for root in (sys.base_prefix, "/usr")] + ["/usr/lib64"]
    for folder in filter(None, candidates):
        with contextlib.suppress(PermissionError):  # a folder of another user
            if (Path(folder) / name).is_file():
                return Path(folder) / name
    raise ToolkitError(
        f"{name} is missing, and Triton's Python backend needs it",
        hint=f"Debian or Ubuntu: apt-get install libpython{PYTHON}; Fedora: dnf install python{PYTHON}-libs; "
        f"pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install {PYTHON}; "
        f"uv: uv python install {PYTHON}.",
    )
