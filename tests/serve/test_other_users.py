"""Users without a name or a home, and users whose deployment it is not."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.other_user import UID, as_other_user, skip_where_impossible
from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.serve.state import exclusive

TOOLKIT = (sys.executable, "-m", "toolkit")


@pytest.fixture
def readable(deploy) -> Iterator[Deployment]:
    """A deployment whose files others can read: pytest's own folders are closed to them."""
    skip_where_impossible()
    made = deploy(pp=2)
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        shutil.copytree(made.output, folder / "out")
        shutil.copytree(made.model.path, folder / "model")
        content = yaml.safe_load(made.file.read_text())
        content |= {"output": str(folder / "out"), "model": {"path": str(folder / "model")}}
        (folder / "trial.yaml").write_text(yaml.safe_dump(content))
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        yield load_deployment(folder / "trial.yaml")


@pytest.fixture
def theirs(readable) -> Deployment:
    """One that is the other user's own."""
    for path in (readable.file.parent, *readable.file.parent.rglob("*")):
        os.chown(path, UID, UID)
    return readable


@pytest.mark.slow
@pytest.mark.parametrize("home", [None, "/"], ids=["no home", "a home that is closed"])
def test_a_user_without_a_name_serves(theirs, home):
    environ = {"PATH": os.environ["PATH"], "TMPDIR": str(theirs.file.parent), **({"HOME": home} if home else {})}

    def succeed(*arguments: object) -> str:
        done = as_other_user(*TOOLKIT, *map(str, arguments), theirs.file, environ=environ)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    output = succeed("serve", "--detach")
    assert "ready: " in output and "warning" not in output
    assert "ready since" in succeed("status")
    assert "stopped process" in succeed("stop")
    assert not [*theirs.file.parent.glob("toolkit-run-*")]


@pytest.mark.parametrize("command", ["status", "stop", "serve", "serve --detach"])
def test_another_user_s_deployment_is_one_line(readable, command):
    with exclusive(readable):
        done = as_other_user(*TOOLKIT, *command.split(), readable.file)
    hint = "Run this as that user, or set `output` in the YAML to another folder."
    message = f"error: {readable.run_dir}: belongs to user root, and other users cannot open it. {hint}\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", message)


def test_another_user_s_doctor_looks_at_the_rest(readable):
    with exclusive(readable):
        done = as_other_user(*TOOLKIT, "doctor", readable.file)
    assert "ports" in done.stdout and done.stderr == ""
