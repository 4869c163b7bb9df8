"""Files and directories that the user may not open: one line each, and none of them counts as missing."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import toolkit

PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2
TEXT_MODEL = """backend: "python"
parameters { key: "tokenizer_dir" value: { string_value: "../preprocessing/1/tokenizer" } }
"""
LIBC = ctypes.CDLL(None)


def _as_any_user() -> None:
    """Let permissions hold for root, too; another user may not drop these, and does not have them."""
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, preexec_fn=_as_any_user, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The deployments of build_configs with the tiny model, and the folders that its commands leave behind."""
    folder = tmp_path_factory.mktemp("permissions")
    assert toolkit("sample", "configs", folder / "build_configs").returncode == 0
    assert toolkit("sample", "tiny-llama", folder / "tests/fixtures/tiny-llama").returncode == 0
    for name in ("checkpoint", "engine", "report", "run"):
        (folder / "work/tiny-llama-rehearsal" / name).mkdir(parents=True)
    (folder / "engine").mkdir()
    for name in ("preprocessing", "postprocessing"):
        (folder / "repository" / name).mkdir(parents=True)
        (folder / "repository" / name / "config.pbtxt").write_text(TEXT_MODEL)
    return folder


@pytest.fixture
def closed(request: pytest.FixtureRequest, folder: Path) -> Iterator[Path]:
    directory = folder / request.param
    directory.chmod(0)
    try:
        if _run([sys.executable, "-c", "import os, sys; os.listdir(sys.argv[1])", str(directory)]).returncode == 0:
            pytest.skip("this user may open everything")
        yield directory
    finally:
        directory.chmod(0o755)


CONFIG = "build_configs/tiny-llama-rehearsal.yaml"
OUTPUT = "work/tiny-llama-rehearsal"


@pytest.mark.parametrize(
    ("closed", "command", "code"),
    [
        ("repository/preprocessing", ("lint", "repository"), 1),
        ("engine", ("lint", "repository", "--engine", "engine"), 1),
        (f"{OUTPUT}/report", ("compare", CONFIG, CONFIG), 3),
        (f"{OUTPUT}/checkpoint", ("build", CONFIG), 1),
        (f"{OUTPUT}/engine", ("serve", CONFIG), 1),
        (f"{OUTPUT}/run", ("status", CONFIG), 1),
        (OUTPUT, ("stop", CONFIG), 1),
        (OUTPUT, ("serve", CONFIG), 1),
        (OUTPUT, ("doctor", CONFIG), 1),
    ],
    indirect=["closed"],
)
def test_a_directory_that_may_not_be_opened_is_one_line(
    folder: Path, closed: Path, command: tuple[str, ...], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    result = _run([sys.executable, "-m", "toolkit", *command])
    assert (result.returncode, result.stderr.count("\n")) == (code, 1), result.stderr
    assert result.stderr.startswith("error: ") and closed.name in result.stderr
    assert result.stderr.endswith(": cannot be opened: Permission denied. Check its permissions.\n")
