"""The Makefile, with doubles for the programs that it runs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import neighbours

ROOT = Path(__file__).parents[2]
PYTEST = """#!/bin/sh
case "$*" in
*"not slow"*) printf '..F\\nFAILED tests/test_a.py::test_b - wrong\\n== 1 failed, 2 passed in 1.50s ==\\n'; exit 1;;
*"not alone"*) printf 's\\nSKIPPED [1] tests/test_c.py:3: there is no GPU\\n== 1 skipped in 61.20s (0:01:01) ==\\n';;
*) printf '.\\n== 1 passed in 9.00s ==\\n';;
esac
"""
PIP = """#!/bin/sh
echo "Collecting torch>=2.4 (from triton-llm-toolkit==0.1.0)"
echo "  Downloading torch.whl (190.0 MB)"
echo "Installing collected packages: torch"
exit %d
"""


@pytest.fixture
def project(tmp_path) -> Path:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    python = tmp_path / ".venv/bin/python"
    python.write_text('#!/bin/sh\nmodule=$2; shift 2; exec ".venv/bin/$module" "$@"\n')  # python -m MODULE ...
    python.chmod(0o755)
    program(tmp_path, "toolkit", "#!/bin/sh\n")
    program(tmp_path, "pytest", PYTEST)
    return tmp_path


def program(project: Path, name: str, text: str) -> None:
    file = project / ".venv/bin" / name
    file.write_text(text)
    file.chmod(0o755)


def make(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)


def test_all_parts_run_and_the_end_says_what_failed_and_what_was_skipped(project) -> None:
    (project / ".venv/installed").touch()
    done = make(project, "test")
    assert done.returncode == 2
    assert done.stdout.partition("All parts:\n")[2].splitlines() == [
        "FAILED tests/test_a.py::test_b - wrong",
        "== 1 failed, 2 passed in 1.50s ==",
        "SKIPPED [1] tests/test_c.py:3: there is no GPU",
        "== 1 skipped in 61.20s (0:01:01) ==",
        "== 1 passed in 9.00s ==",
    ]
    program(project, "pytest", PYTEST.replace("exit 1", "exit 0"))
    assert make(project, "test").returncode == 0


def test_an_install_shows_what_it_gets_and_fails_when_pip_fails(project) -> None:
    for code in (1, 0):
        program(project, "pip", PIP % code)
        done = make(project, "install", "PYTHON=true")
        assert done.returncode == 2 * code, done.stderr
        assert "torch \ninstalling all of them\n" in done.stdout
        assert (project / ".venv/installed").exists() == (code == 0)


def test_one_room_and_its_neighbours(project) -> None:
    """Only their tests run; a part without any of them is no failure, and an unknown room runs nothing."""
    (project / ".venv/installed").touch()
    program(project, "tests.neighbours", '#!/bin/sh\n[ "$1 $2" = "slo plan" ] && echo tests/slo tests/plan\n')
    program(project, "pytest", '#!/bin/sh\necho "pytest $*" | grep -o "tests/.*"; exit 5\n')
    for target, parts in (("test", 3), ("test-fast", 1)):
        done = make(project, target, "ONLY=slo plan")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("tests/slo tests/plan\n") == parts
        wrong = make(project, target, "ONLY=nowhere")
        assert wrong.returncode == 2 and "tests/slo" not in wrong.stdout
        assert make(project, target).returncode == 2, "without ONLY no test is a failure"


def test_neighbours_are_the_rooms_that_import_a_room(capsys) -> None:
    assert neighbours.main(["slo"]) == 0
    chosen = capsys.readouterr().out.split()
    assert {"tests/slo", "tests/reports", "tests/load", "tests/plan"} <= {*chosen}
    assert not {"tests/lint", "tests/serve", "tests/checkpoint"} & {*chosen}
    assert neighbours.main(["secrecy"]) == 0 and "tests/test_secrecy.py" in capsys.readouterr().out.split()
    assert neighbours.main(["nowhere"]) == 1 and "'nowhere' is not a room. Use one of " in capsys.readouterr().err
