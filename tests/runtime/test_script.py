"""The scripts are run: on the host for real, in containers by programs that note what they are asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.runtime import Needs, script, wrap

BASH = "/bin/bash"
ARGUMENTS = ["a b", 'it\'s "$HOME"', "", "*", "back\\slash", "ünï", "two\nlines", "-n", ":"]
ECHO = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ.get('X'), os.environ.get('HF_TOKEN')]))"


def run(text: str, tmp_path: Path, path: str | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "the script.sh"
    file.write_text(text)
    file.chmod(0o755)
    assert subprocess.run([BASH, "-n", file]).returncode == 0
    environment = {"PATH": path or os.environ["PATH"], "HOME": "/nowhere", **variables}
    return subprocess.run([file], env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("kind", ["host", "docker", "enroot", "apptainer"])
def test_every_script_is_bash(deploy, tmp_path, kind):
    (tmp_path / "it's").mkdir()
    needs = Needs((tmp_path / "it's",), (tmp_path / "a b",), (0, 1), (8000,), {"X": "it's\\"}, ("HF_TOKEN",), stop_s=40)
    deployment = deploy({"kind": kind, "options": [] if kind == "host" else ["--x='y"]})
    text = script(deployment, ["echo", *ARGUMENTS], needs)
    assert subprocess.run([BASH, "-n"], input=text, text=True).returncode == 0
    assert text.startswith("#!/usr/bin/env bash\n") and "\nset -euo pipefail\n" in text


def test_a_script_of_the_host_runs(deploy, tmp_path):
    needs = Needs(writes=(tmp_path / "out put",), environment={"X": "it's $HOME"}, secrets=("HF_TOKEN",))
    text = script(deploy(), [sys.executable, "-c", ECHO, *ARGUMENTS], needs)
    done = run(text, tmp_path, HF_TOKEN="hf_of_the_shell")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [ARGUMENTS, "it's $HOME", "hf_of_the_shell"]
    assert (tmp_path / "out put").is_dir()


def test_echo_itself(deploy, tmp_path):
    assert run(script(deploy(), ["/bin/echo", "a  b", "*"], Needs()), tmp_path).stdout == "a  b *\n"


def test_its_status_is_the_command_s(deploy, tmp_path):
    assert run(script(deploy(), ["/bin/sh", "-c", "exit 7"], Needs()), tmp_path).returncode == 7
    missing = run(script(deploy(), ["no-such-program"], Needs()), tmp_path)
    assert missing.returncode == 127 and "no-such-program" in missing.stderr


def test_cores_on_the_host(deploy, tmp_path):
    core = min(os.sched_getaffinity(0))
    command = [sys.executable, "-c", "import os; print(os.sched_getaffinity(0))"]
    done = run(script(deploy(), command, Needs(cores=(core,))), tmp_path)
    assert done.stdout == f"{{{core}}}\n", done.stderr


@pytest.mark.parametrize(
    ("kind", "variable"), [("docker", "HF_TOKEN"), ("enroot", "HF_TOKEN"), ("apptainer", "APPTAINERENV_HF_TOKEN")]
)
@pytest.mark.parametrize("secret", ['hf_it\'s "$HOME"', None])
def test_container_programs_get_what_wrap_says(deploy, programs, tmp_path, kind, variable, secret):
    programs.add(kind)
    needs = Needs(writes=(tmp_path / 'it\'s, "mine"',), gpus=(0, 3), environment={"X": "a\\b"}, secrets=("HF_TOKEN",))
    text = script(deploy(kind), ["trtllm-build", *ARGUMENTS], needs)
    path = f"{programs.folder}:/usr/bin:/bin"
    done = run(text, tmp_path, path, **({"HF_TOKEN": secret} if secret else {}))
    assert done.returncode == 0, done.stderr
    ((*arguments, environment),) = programs.calls
    assert arguments == wrap(deploy(kind), ["trtllm-build", *ARGUMENTS], needs).arguments
    assert environment.get(variable) == secret
    assert secret is None or not any(secret in argument for argument in arguments)


def test_what_a_container_program_says_is_the_script_s_end(deploy, programs, tmp_path):
    programs.add("docker", run=(125, "", "docker: Error response from daemon\n", 0))
    done = run(script(deploy("docker"), ["x"], Needs()), tmp_path, f"{programs.folder}:/usr/bin:/bin")
    assert (done.returncode, done.stderr) == (125, "docker: Error response from daemon\n")
