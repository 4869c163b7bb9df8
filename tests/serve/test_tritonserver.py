import concurrent.futures
import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest

from toolkit.config.engine_kind import TENSORRT
from toolkit.errors import ToolkitError
from toolkit.files.distribution import install
from toolkit.serve import triton_wheel, tritonserver
from toolkit.serve.model_python import find_libpython
from toolkit.serve.mpirun import Mpirun, find_mpirun
from toolkit.serve.tritonserver import find_tritonserver


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A copy of the wheel's layout whose files have no run bit, as some installers leave them."""
    server = tmp_path / "site" / "pytriton" / "tritonserver"
    for name in (
        "bin/tritonserver",
        "backends/python/libtriton_python.so",
        "backends/python/triton_python_backend_utils.py",
        "python_backend_stubs/3.11/triton_python_backend_stub",
        "python_backend_stubs/3.12/triton_python_backend_stub",
        "python_backend_stubs/3.8/triton_python_backend_stub",
    ):
        (server / name).parent.mkdir(parents=True, exist_ok=True)
        (server / name).write_text("#!/bin/sh\necho runs\n")
        (server / name).chmod(0o644)
    origin = SimpleNamespace(origin=str(server.parent / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: origin if name == "pytriton" else None)
    return server


def test_the_installed_server_runs(tmp_path):
    server = find_tritonserver(cache=tmp_path)
    shown = subprocess.run([server.binary, "--help"], env=server.environ(), capture_output=True, text=True)
    assert "--model-repository" in shown.stdout + shown.stderr
    stub = server.backend_directory / "python" / "triton_python_backend_stub"
    assert os.access(stub, os.X_OK)


def test_the_models_python_sees_this_python_s_packages(tmp_path):
    """Triton's stub takes its Python from the first python3 on PATH, isolated from the environment."""
    environment = find_tritonserver(cache=tmp_path).environ()
    code = "import os, sys, numpy, toolkit; print(sys.version_info)"
    code += "; print(*map(os.path.realpath, (numpy.__file__, toolkit.__file__)))"
    seen = subprocess.run(["python3", "-I", "-c", code], env=environment, capture_output=True, text=True).stdout
    here = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert seen == here != ""


def test_what_the_wheel_lacks_is_added_outside_of_it(wheel, tmp_path):
    before = sorted(wheel.rglob("*"))
    server = find_tritonserver(cache=tmp_path / "cache")
    for program in (server.binary, server.backend_directory / "python" / "triton_python_backend_stub"):
        assert subprocess.run([program], capture_output=True, text=True).stdout == "runs\n"
    assert (server.backend_directory / "python" / "libtriton_python.so").resolve().parent.parent.parent == wheel
    assert sorted(wheel.rglob("*")) == before
    assert not os.access(wheel / "bin/tritonserver", os.X_OK)


def test_processes_that_prepare_it_at_once_agree(wheel, tmp_path):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        servers = list(pool.map(lambda _: find_tritonserver(cache=tmp_path / "cache"), range(16)))
    assert len(set(map(str, servers))) == 1
    assert [folder.name for folder in (tmp_path / "cache").iterdir()] == [servers[0].binary.parent.name]


def test_a_python_without_a_stub_is_refused(wheel, tmp_path, monkeypatch):
    monkeypatch.setattr(triton_wheel, "PYTHON", "3.14")
    with pytest.raises(ToolkitError, match=r"no Python backend for Python 3\.14\. Use Python 3\.8, 3\.11, 3\.12"):
        find_tritonserver(cache=tmp_path)


def test_a_cache_that_cannot_be_written(wheel, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ToolkitError, match="Set XDG_CACHE_HOME to a writable folder"):
        find_tritonserver(cache=tmp_path / "cache")


def test_nothing_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(tritonserver, "NGC_BINARY", Path("/nowhere/tritonserver"))
    with pytest.raises(ToolkitError, match=re.escape(install("rehearsal"))):
        find_tritonserver()


def test_engines_need_the_image(monkeypatch, tmp_path):
    monkeypatch.setattr(tritonserver, "NGC_BINARY", tmp_path / "tritonserver")
    with pytest.raises(ToolkitError, match=r"Run this inside nvcr\.io/nvidia/tritonserver:"):
        find_tritonserver(TENSORRT)
    (tmp_path / "tritonserver").touch()
    server = find_tritonserver(TENSORRT)
    assert (server.binary, server.backend_directory, server.environment) == (tmp_path / "tritonserver", None, {})


def test_missing_libpython(monkeypatch):
    monkeypatch.setattr(Path, "is_file", lambda path: False)
    with pytest.raises(ToolkitError, match=r"apt-get install libpython3\.1\d; Fedora: dnf install"):
        find_libpython()


def libpmix_of_somebody_else(folder: Path) -> Path:
    """A folder as that of Debian's libpython, with a library that the wheel's mpirun brings in another version."""
    folder.mkdir()
    (folder / find_libpython().name).symlink_to(find_libpython())
    (folder / "libpmix.so.2").write_bytes(b"another one")
    return folder


def test_other_libraries_beside_libpython_are_not_taken(tmp_path, monkeypatch):
    folder = libpmix_of_somebody_else(tmp_path / "usr")
    monkeypatch.setattr("sysconfig.get_config_var", lambda name: str(folder) if name == "LIBDIR" else None)
    server = find_tritonserver(cache=tmp_path / "cache")
    folders = [Path(part) for part in server.environment["LD_LIBRARY_PATH"].split(":")]
    assert folder not in folders
    assert [sorted(map(str, part.glob("libpython*"))) for part in folders].count([]) < len(folders)
    ran = subprocess.run([find_mpirun().binary, "--version"], env=server.environ(), capture_output=True, text=True)
    assert "Open MPI" in ran.stdout, ran.stderr


def test_other_libraries_on_the_library_path_come_last(tmp_path, monkeypatch):
    """As a cluster's `module load openmpi` has them."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(libpmix_of_somebody_else(tmp_path / "opt")))
    mpirun = find_mpirun()
    ran = subprocess.run(
        [mpirun.binary, "-n", "1", "true"], env=find_tritonserver(cache=tmp_path).environ(), capture_output=True
    )
    assert ran.returncode == 0 or b"root" in ran.stderr, ran.stderr


@pytest.fixture
def mpirun_on_path(tmp_path, monkeypatch):
    """Puts an mpirun that answers --version with a given text on PATH, and none beside this Python."""

    def put(answer):
        program = tmp_path / "mpirun"
        program.write_text(f"#!/bin/sh\necho '{answer}'\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "none"))
        return program

    return put


@pytest.mark.parametrize(
    "answer, version",
    [("mpirun (Open MPI) 4.1.5rc2", (4, 1)), ("mpirun (Open MPI) 5.0.11", (5, 0)), ("mpirun (OpenRTE) 4.1.7", (4, 1))],
)
def test_mpirun_versions(mpirun_on_path, answer, version):
    program = mpirun_on_path(answer)
    assert find_mpirun() == Mpirun(program, version)


@pytest.mark.parametrize(
    "answer, message",
    [
        ("mpirun (Open MPI) 3.1.6", "is Open MPI 3.1, expected 4.1 or newer"),
        ("HYDRA build details: Version 4.0", "is not Open MPI, it says: HYDRA build details"),
    ],
)
def test_other_mpiruns_are_refused(mpirun_on_path, answer, message):
    mpirun_on_path(answer)
    with pytest.raises(ToolkitError, match=message):
        find_mpirun()


def test_no_mpirun(mpirun_on_path):
    mpirun_on_path("").unlink()
    with pytest.raises(ToolkitError, match=f"mpirun is neither on PATH nor .* {re.escape(install('rehearsal'))}"):
        find_mpirun()
