"""Deployments of each kind, and container programs that only note what they are asked."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import yaml

import toolkit
from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment

FLAGSHIP = Path(toolkit.__file__).parents[1] / "build_configs" / "llama3-70b-h100-pp4tp2-fp16.yaml"

FAKE = """#!{python}
import json, os, sys, time
with open({log!r}, "a") as log:
    log.write(json.dumps([{name!r}, *sys.argv[1:], dict(os.environ)]) + "\\n")
for start, (status, out, err, wait) in json.loads({answers!r}).items():
    if " ".join(sys.argv[1:]).startswith(start):
        time.sleep(wait)
        sys.stdout.write(out), sys.stderr.write(err), sys.exit(status)
"""


@pytest.fixture
def deploy(tmp_path):
    """Makes the flagship with another `runtime` and other sections, in a folder with a space in its name."""

    def make(runtime: object = "host", **sections: object) -> Deployment:
        content = yaml.safe_load(FLAGSHIP.read_text()) | {"runtime": runtime, **sections}
        folder = tmp_path / "my configs"
        folder.mkdir(exist_ok=True)
        (folder / "flagship.yaml").write_text(yaml.safe_dump(content))
        return load_deployment(folder / "flagship.yaml")

    return make


class Programs:
    """A PATH of its own. A program answers by how its arguments begin: (status, stdout, stderr, seconds)."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder / "bin", folder / "log"
        self.folder.mkdir()

    def add(self, name: str, **answers: tuple[int, str, str, float]) -> None:
        starts = {start.replace("_", " "): answer for start, answer in answers.items()}
        text = FAKE.format(python=sys.executable, log=str(self.log), name=name, answers=json.dumps(starts))
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    @property
    def calls(self) -> list[list]:
        """Of each call: the program, its arguments, and its environment."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []


@pytest.fixture
def programs(tmp_path, monkeypatch):
    made = Programs(tmp_path)
    monkeypatch.setenv("PATH", str(made.folder))
    return made


@pytest.fixture
def user_1000(monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    monkeypatch.setattr(os, "getgid", lambda: 1000)
