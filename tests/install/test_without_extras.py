"""What a plain `pip install` gives: planning without torch, and one line for what needs an extra."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from toolkit.files.distribution import install

ROOT = Path(__file__).parents[2]
FLAGSHIP = ROOT / "build_configs/llama3-70b-h100-pp4tp2-fp16.yaml"
QUICK = ROOT / "build_configs/llama3-70b-h100-tp8-fp16.yaml"
"""Planned in a second or two: there is nothing to remedy."""
ABSENT = ("torch", "transformers", "locust", "gevent", "grpclib", "gguf", "pytriton")
"""Modules that only extras bring."""


@pytest.fixture
def run(tmp_path):
    """run(*arguments) of `toolkit`, in another folder, by a Python that cannot import `ABSENT`."""
    hook = f"import sys\nsys.modules |= dict.fromkeys({ABSENT})\n"
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook/sitecustomize.py").write_text(hook)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'hook'}:{ROOT}"}

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "toolkit", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


@pytest.fixture
def rehearsal(tmp_path, tiny_llama) -> Path:
    content = yaml.safe_load((ROOT / "build_configs/tiny-llama-rehearsal.yaml").read_text())
    content |= {"model": {"path": str(tiny_llama), "dtype": "float16"}, "output": str(tmp_path / "output")}
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture
def llama(tmp_path) -> None:
    """A folder of this name with the config.json of a model that fits one GPU."""
    config = yaml.safe_load(FLAGSHIP.read_text())["model"]["config"]
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama/config.json").write_text(json.dumps(config | {"num_hidden_layers": 8}))


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("plan", QUICK), marks=pytest.mark.thorough),
        ("plan", "tiny.yaml"),
        pytest.param(("init", "llama", "--gpus", "1", "--workload", "rag-4k"), marks=pytest.mark.thorough),
        ("build", "--dry-run", FLAGSHIP),
        ("build", "--dry-run", "tiny.yaml"),
        ("serve", "--dry-run", FLAGSHIP),
        ("migrate", "--dry-run", FLAGSHIP),
        ("sample", "configs", "copied"),
    ],
    ids=lambda arguments: " ".join(str(getattr(part, "name", part)) for part in arguments),
)
def test_it_works(run, rehearsal, llama, arguments) -> None:
    done = run(*arguments)
    assert done.returncode == 0, done.stderr


def test_a_repository_is_made_and_linted(run, rehearsal, tmp_path) -> None:
    done = run("repo", rehearsal, "--engine", "pytorch")
    assert done.returncode == 0, done.stderr
    done = run("lint", tmp_path / "output/repository")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_doctor_names_the_extra(run, rehearsal) -> None:
    done = run("doctor", rehearsal)
    assert done.returncode == 1 and done.stderr == ""
    assert install("rehearsal") in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    "arguments, extra, code",
    [
        (("convert", "tiny.yaml"), "rehearsal", 1),
        (("build", "tiny.yaml"), "rehearsal", 1),
        (("convert", "tiny.yaml", "--engine", "tensorrt"), "convert", 1),
        (("calibrate", "tiny.yaml"), "rehearsal", 1),
        (("calibrate", "--dry-run", FLAGSHIP), "convert", 1),
        (("verify", "checkpoint", "--against", ROOT / "tests/fixtures/tiny-llama"), "verify", 1),
        (("serve", "tiny.yaml"), "rehearsal", 1),
        (("known-truth",), "loadtest", 1),
        (("loadtest", "tiny.yaml"), "loadtest", 3),
        (("loadtest", "tiny.yaml", "--workload", "short", "--find-capacity"), "loadtest", 3),
    ],
    ids=lambda value: " ".join(str(getattr(part, "name", part)) for part in value) if type(value) is tuple else None,
)
def test_what_needs_an_extra_says_so_in_one_line(run, rehearsal, arguments, extra, code) -> None:
    done = run(*arguments)
    said = done.stdout + done.stderr
    assert (done.returncode, said.count("\n")) == (code, 1), said
    assert f"Run: {install(extra)}" in said
