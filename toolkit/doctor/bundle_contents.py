"""What a bundle holds: each name, and the function that gives its text, or its data for JSON."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import ToolkitError
from toolkit.files import artifacts
from toolkit.files.atomic import open_file
from toolkit.secrecy import is_secret

if TYPE_CHECKING:
    from rich.console import RenderableType

    from toolkit.config.deployment import Deployment
    from toolkit.doctor import Diagnosis

Source = tuple[str, Callable[[], Any]]
"""A name in the bundle, and what gives its content: text or data. An error says why it is missing."""

COMMANDS = {
    "nvidia-smi": ("nvidia-smi",),
    "nvidia-smi-q": ("nvidia-smi", "-q"),
    "nvidia-smi-topo": ("nvidia-smi", "topo", "-m"),
    "nvidia-smi-nvlink": ("nvidia-smi", "nvlink", "--status"),
    "lscpu": ("lscpu",),
    "numactl": ("numactl", "--hardware"),
    "free": ("free", "-b"),
    "df": ("df", "-PT"),
    "ulimit": ("sh", "-c", "ulimit -a"),
    "uname": ("uname", "-a"),
    "docker-version": ("docker", "version"),
    "docker-info": ("docker", "info"),
}
TIMEOUT_S = 30
"""nvidia-smi -q takes some seconds with eight GPUs, and hangs with a broken one."""
SHOWN_VARIABLES = ("NCCL_", "CUDA_", "OMPI_", "TRTLLM_", "NVIDIA_", "UCX_")
"""Variables whose values are in the bundle. Of all others it has only the names."""
LARGEST = 1 << 20
"""Bytes of one file. Of a longer log the end is taken; a longer JSON file is left out."""
MOST_NAMES = 5000


def machine_sources(diagnosis: Diagnosis) -> Iterator[Source]:
    """What a bundle holds about the machine."""
    from toolkit.doctor.report import doctor_data, doctor_text

    yield "doctor.txt", lambda: _shown(doctor_text(diagnosis))
    yield "doctor.json", lambda: artifacts.plain(doctor_data(diagnosis))
    yield "versions.json", _versions
    yield "variables.json", _variables
    for name, command in COMMANDS.items():
        yield f"machine/{name}.txt", partial(_output, command)
    mpirun = diagnosis.machine.programs.mpirun
    yield "machine/mpirun.txt", partial(_output, (str(mpirun.path or "mpirun"), "--version"))
    yield "machine/os-release.txt", partial(_end_of, Path("/etc/os-release").resolve())


def deployment_sources(deployment: Deployment) -> Iterator[Source]:
    """The files of every stage and run that exist. One of each stage is named even if it is missing."""
    from toolkit.engine.tensorrt.build import log_file
    from toolkit.plan.plan import Plan
    from toolkit.reports.loadtest.report import JSON_NAME

    output = deployment.output
    yield "config.yaml", partial(_end_of, deployment.file.resolve())
    yield "deployment.json", lambda: _resolved(deployment)
    plan = Plan(deployment)
    yield "plan.txt", lambda: "\n".join(map(_shown, plan.as_text()))
    yield "plan.json", lambda: artifacts.plain(plan.as_data())
    yield "files.txt", lambda: _names(output)
    stages = (deployment.checkpoint_dir, deployment.engine_dir, deployment.repository_dir)
    for file in _with(output, [folder / artifacts.LOCK_NAME for folder in stages], f"*/{artifacts.LOCK_NAME}"):
        yield _named(output, file), partial(_data, file)
    for folder in stages[:2]:
        yield _named(output, folder / "config.json"), partial(_data, folder / "config.json")
    yield "build.log", partial(_end_of, log_file(deployment))
    for file in _with(deployment.repository_dir, [], "*/config.pbtxt", "*/1/model.yaml"):
        yield _named(output, file), partial(_end_of, file)
    for file in _with(output / "run", [], "**/state.json"):
        yield _named(output, file), partial(_data, file)
    for file in _with(output / "run", [output / "run/mpirun.log"], "**/*.log"):
        yield _named(output, file), partial(_end_of, file)
    for file in (deployment.report_dir / JSON_NAME, deployment.calibration_file):
        yield _named(output, file), partial(_data, file)


def _with(folder: Path, expected: list[Path], *patterns: str) -> list[Path]:
    """The files in the folder that match, and the expected ones, which may be missing."""
    return sorted({*expected, *(file for pattern in patterns for file in folder.glob(pattern))})


def _named(output: Path, file: Path) -> str:
    return file.relative_to(output).as_posix()


def _versions() -> dict[str, Any]:
    packages = {(package.metadata["Name"] or "?"): package.version for package in importlib.metadata.distributions()}
    return {
        "toolkit": packages.get("toolkit"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": dict(sorted(packages.items())),
    }


def _variables() -> dict[str, Any]:
    shown = {name for name in os.environ if name.startswith(SHOWN_VARIABLES) and not is_secret(name)}
    return {
        "values": {name: os.environ[name] for name in sorted(shown)},
        "others, without their values": sorted(set(os.environ) - shown),
    }


def _output(command: tuple[str, ...]) -> str:
    """All that a program prints, and its exit status if that is not 0."""
    program = shutil.which(command[0])
    if program is None:
        raise ToolkitError(f"{command[0]} is not on PATH")
    try:
        ended = subprocess.run(
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise ToolkitError(f"{' '.join(command)} did not end in {TIMEOUT_S} s") from None
    status = f"[exit status {ended.returncode}]\n" if ended.returncode else ""
    return ended.stdout + ended.stderr + status


def _end_of(file: Path) -> str:
    """A text file, or the last lines of a long one."""
    content, size = _read(file)
    if size > len(content):  # from the next whole line: half a secret would not be recognised
        content = content.partition(b"\n")[2]
        content = b"[%d bytes before this are left out]\n" % (size - len(content)) + content
    if b"\0" in content[:4096]:
        raise ToolkitError("is not text")
    return content.decode("utf-8", errors="replace")


def _data(file: Path) -> Any:
    """A JSON file as data. A damaged one as text."""
    content, size = _read(file)
    if size > len(content):
        raise ToolkitError(f"has {size} bytes, more than {LARGEST}")
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        return _end_of(file)
    return data if isinstance(data, (dict, list)) else content.decode("utf-8", errors="replace")


def _read(file: Path) -> tuple[bytes, int]:
    """The last bytes of a file, and its size."""
    if file.is_symlink():
        raise ToolkitError("is a link, which may lead to any file")
    with open_file(file) as stream:
        size = stream.seek(0, io.SEEK_END)
        stream.seek(max(0, size - LARGEST))
        return stream.read(LARGEST), size


def _resolved(deployment: Deployment) -> dict[str, Any]:
    """Every setting, defaults included, and what the toolkit derives from them."""
    from dataclasses import asdict

    return {
        **deployment.model_dump(mode="json"),
        "follows": artifacts.plain(
            {
                "world_size": deployment.mapping.world_size,
                "max_batch_size": deployment.max_batch_size,
                "shape": asdict(deployment.shape),
            }
        ),
    }


def _names(folder: Path) -> str:
    """Size and name of every file in the output folder. It holds the weights too."""
    if not folder.is_dir():
        raise ToolkitError("no such directory")
    names = list(islice(folder.rglob("*"), MOST_NAMES + 1))
    lines = [f"{file.lstat().st_size:>16} {file.relative_to(folder)}\n" for file in sorted(names[:MOST_NAMES])]
    return "".join(lines) + ("... and more\n" if len(names) > MOST_NAMES else "")


def _shown(part: RenderableType) -> str:
    """As on a terminal, without wrapped lines: half a secret would not be recognised."""
    from toolkit.reports.terminal import Terminal

    console = Terminal(file=io.StringIO(), width=100_000, color_system=None)
    console.print(part)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"  # type: ignore[attr-defined]
