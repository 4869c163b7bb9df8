"""The commands that messages name: they can be pasted, and keep the engine that the user chose."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

import toolkit as package
from tests.commands import toolkit
from toolkit.config.load import load_deployment

ROOT = Path(package.__file__).parent
CONFIGS = Path(__file__).parents[2] / "build_configs"
FLAGSHIP = CONFIGS / "llama3-70b-h100-pp4tp2-fp16.yaml"


def test_a_command_names_the_engine_that_replaces_that_of_the_yaml():
    assert load_deployment(FLAGSHIP).command("build") == f"toolkit build {FLAGSHIP}"
    assert load_deployment(FLAGSHIP, "tensorrt").command("build") == f"toolkit build {FLAGSHIP}"
    rehearsed = load_deployment(FLAGSHIP, "rehearsal")
    assert rehearsed.command("build") == f"toolkit build {FLAGSHIP} --engine rehearsal"
    assert rehearsed.command("up", "--detach") == f"toolkit up {FLAGSHIP} --detach --engine rehearsal"
    assert "engine_given" not in rehearsed.model_dump()


def test_a_replica_keeps_it():
    pair = load_deployment(CONFIGS / "smollm2-2x-rehearsal.yaml", "tensorrt")
    assert {replica.command("stop").partition(" --")[2] for replica in pair.per_replica()} == {"engine tensorrt"}


def test_a_command_can_be_pasted(tmp_path):
    (tmp_path / "a b").mkdir()
    file = tmp_path / "a b" / "x$y.yaml"
    file.write_text(f"name: mine\n{FLAGSHIP.read_text().replace('name: ', '# ')}")
    assert shlex.split(load_deployment(file).command("serve")) == ["toolkit", "serve", str(file)]


@pytest.mark.parametrize(
    ("command", "hint"), [("serve", "toolkit build"), ("repo", "toolkit build"), ("loadtest", "toolkit serve")]
)
def test_hints_keep_the_engine(command, hint, tiny_llama, tmp_path):
    text = (CONFIGS / "tiny-llama-rehearsal.yaml").read_text()
    file = tmp_path / "x.yaml"
    file.write_text(re.sub(r"engine: .*", "engine: tensorrt", re.sub(r"path: .*", f"path: {tiny_llama}", text)))
    done = toolkit(command, file, "--engine", "rehearsal")
    assert done.returncode != 0
    assert f"{hint} {file} --engine rehearsal" in done.stdout + done.stderr


def test_no_module_writes_such_a_command_by_hand():
    """In an f-string, `toolkit NAME {deployment.file}` would lose the engine."""
    by_hand = re.compile(r"toolkit \w+ (--\w+ )*\{[\w.]*deployment\.file")
    for file in ROOT.rglob("*.py"):
        strings = (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.JoinedStr))
        assert not [text for node in strings if by_hand.search(text := ast.unparse(node))], file
