"""What an argument of a command may hold: names that are no text, too long, or hold what moves a cursor."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from tests.commands import toolkit
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.files.atomic import atomic_file

LONG = "a" * 5000
HALF = os.fsdecode(b"caf\xe9.yaml")
"""A file's name that is not UTF-8, as Python has it."""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("plan", HALF), 2),
        (("status", HALF), 2),
        (("lint", HALF), 2),
        (("init", HALF), 2),
        (("ask", "x.yaml", HALF), 2),
        (("loadtest", "x.yaml", "--workload", HALF), 3),
        (("compare", "a", HALF), 3),
    ],
    ids=lambda value: str(value)[:12],
)
def test_an_argument_that_is_not_utf_8(arguments, code):
    done = toolkit(*arguments)
    assert done.returncode == code
    line = done.stderr.splitlines()[-1]
    assert line.isprintable() and line.startswith("Error: 'caf\\udce9.yaml' is not UTF-8 text.")


def test_a_name_that_is_not_utf_8_from_the_shell(tmp_path):
    (tmp_path / HALF).write_text("engine: rehearsal\n")
    done = subprocess.run([sys.executable, "-m", "toolkit", "plan", tmp_path / HALF], capture_output=True)
    assert done.returncode == 2 and b"is not UTF-8 text" in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("plan", LONG), 1),
        (("lint", LONG), 1),
        (("verify", LONG, "--against", LONG), 1),
        (("init", LONG), 1),
        (("compare", LONG, LONG), 3),
        (("sample", "configs", LONG), 1),
        (("known-truth", "--host", "a" * 300), 1),
        (("known-truth", "--record", LONG), 1),
    ],
    ids=lambda value: str(value)[:12],
)
def test_a_name_that_is_too_long(arguments, code):
    done = toolkit(*arguments)
    assert done.returncode == code
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and len(done.stderr) <= 1010


@pytest.mark.parametrize("url", ["http://HOST:1", "grpc://HOST:1", "openai+http://HOST"])
@pytest.mark.parametrize("host", ["a" * 300, "a..b", "a." * 200, "é" * 100], ids=lambda host: host[:4])
def test_a_host_that_no_name_can_be(tiny_llama, tmp_path, url, host):
    config = tmp_path / "x.yaml"
    config.write_text(f"engine: rehearsal\nmodel: {{path: {tiny_llama}}}\nlimits: {{max_seq_len: 512}}\n")
    done = toolkit("ask", config, "Why?", "--target", url.replace("HOST", host))
    assert done.returncode == 1
    assert "is not the address of a server. Use http://HOST:PORT" in done.stderr and len(done.stderr) < 500


@pytest.mark.parametrize(
    "setting", ["rate=" + "9" * 5000, "rate=!!timestamp x", "rate=1" + ":1" * 200 + ".5", "rate=" + "[" * 5000]
)
def test_a_setting_that_yaml_chokes_on(setting, tmp_path, tiny_llama):
    config = tmp_path / "x.yaml"
    config.write_text(f"engine: rehearsal\nmodel: {{path: {tiny_llama}}}\nlimits: {{max_seq_len: 512}}\n")
    done = toolkit("plan", config, "--what-if", setting)
    assert done.returncode == 1 and done.stderr.startswith("error: --what-if: the value of 'rate=")
    assert done.stderr.count("\n") == 1 and len(done.stderr) < 500


def test_a_first_yaml_for_a_model_in_a_folder_of_any_name(tiny_llama, tmp_path):
    """The name stands in a comment and as a path, and is nothing else there."""
    name = "m\nparallel: {tp: 64}\n#é\x1b[31m'\"{}&*" + " b" * 20
    shutil.copytree(tiny_llama, tmp_path / name)
    arguments = ["--gpus", 1, "--workload", "short", "--output", tmp_path / "made.yaml"]
    done = toolkit("init", tmp_path / name, *arguments)
    assert done.returncode == 0, done.stderr
    made = load_deployment(tmp_path / "made.yaml")
    assert made.model.path == tmp_path / name and made.parallel.tp == 1
    assert all(c.isprintable() or c == "\n" for c in done.stdout + done.stderr)


def test_a_page_takes_the_place_of_no_pipe(tmp_path):
    os.mkfifo(tmp_path / "page.html")
    with (
        pytest.raises(ToolkitError, match=r"page\.html: is a named pipe, expected a file"),
        atomic_file(tmp_path / "page.html"),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
