"""Repositories and engines that hold what Triton, protobuf or a file system cannot: findings, and never a traceback."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.lint.repositories import START, edit
from toolkit.lint import Finding, lint


def test_long_texts_are_cut():
    found = Finding("x", START, Path("a"), "w" * 10**6, "f" * 10**6)
    assert all(len(line) < 700 for line in str(found).splitlines()) and len(found.annotation()) < 1200


@pytest.mark.parametrize("kind", ["-1", "99"])
def test_a_number_that_no_enum_of_triton_has(repository, kind):
    for name, old in (("data_type: ", r"data_type: TYPE_STRING"), ("kind: ", r"kind: KIND_\w+")):
        edit(repository / "preprocessing" / "config.pbtxt", old, f"{name}{kind}")
    assert any(f"is {kind}" in one.what for one in lint(repository))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            r"max_batch_size: \d+",
            "max_batch_size: 9999999999999999999999",
            "Value out of range: 9999999999999999999999",
        ),
        (r"max_batch_size: \d+", "max_batch_size: " + "9" * 5000, "is not a model configuration: "),
        (r'name: "', 'name: "\\\\377', "is not a model configuration: "),
        (r"input \{", "[" * 3000, "is not a model configuration: "),
    ],
)
def test_what_a_field_cannot_hold(repository, old, new, says):
    edit(repository / "preprocessing" / "config.pbtxt", old, new)
    (found,) = [one for one in lint(repository) if one.kind == "syntax"]
    assert says in found.what and len(found.what) < 500


ENGINE = [
    (("pretrained_config", "mapping", "world_size"), "8"),
    (("pretrained_config", "mapping", "pp_size"), None),
    (("build_config", "max_beam_width"), [1]),
    (("version",), 1.2),
]


@pytest.mark.parametrize(("place", "value"), ENGINE, ids=lambda value: str(value)[-20:])
def test_values_that_no_engine_has(repository, place, value):
    file = repository.parent / "engine/config.json"
    content = json.loads(file.read_text())
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    file.write_text(json.dumps(content))
    assert all(len(str(one)) < 1500 for one in lint(repository))


def test_a_version_s_folder_that_is_no_number(repository):
    (repository / "preprocessing" / "²").mkdir()
    lint(repository)


@pytest.mark.parametrize("path", [r"a\000b", "x" * 5000, "/dev/zero", "~nosuchuser/x"])
def test_paths_in_parameters_that_lead_nowhere(repository, path):
    file = repository / "tensorrt_llm" / "config.pbtxt"
    text = file.read_text()
    old = re.search(r'key: "gpt_model_path"\s+value \{\s+string_value: ("[^"]*")', text)[1]
    file.write_text(text.replace(old, f'"{path}"'))
    (found,) = [one for one in lint(repository) if one.kind == "engine-path"]
    assert len(str(found)) < 1500 and all(c.isprintable() or c == "\n" for c in str(found))
