"""Deployments' YAML files with anything in them, and all that is derived from those that are taken."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from toolkit.config.edit_yaml import edited
from toolkit.config.load import load_deployment
from toolkit.engine.tensorrt.flags import derive
from toolkit.repository.llm_args import llm_args
from toolkit.repository.migrate import twin_of
from toolkit.sizing.memory import plan_memory

from .fuzzing import changed, checked, damaged, examples, strange

pytestmark = pytest.mark.thorough

FILES = sorted((Path(__file__).parents[2] / "build_configs").glob("*.yaml"))
TEXTS = {file.name: file.read_text() for file in FILES}
CONTENTS = {name: yaml.safe_load(text) for name, text in TEXTS.items()}
PIECES = [b"&a ", b"*a", b"<<: *a", b"!!int ", b"!!python/name:os.system ", b"? ", b"|\n", b">-\n", b"---\n", b"...\n"]
PIECES += [b"\t", b"%YAML 1.1\n", b"1:1:1", b": ", b"- ", b"{", b"}", b"[", b"]", b"#", b"'", b'"', b"\n", b"\r", b"@"]
PIECES += [
    b".inf",
    b".nan",
    b"2001-01-01",
    b"0x",
    b"=",
    b"~",
    b"\0",
    b"\x1b",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
]


def used(file: Path) -> None:
    """Whatever a file may be taken for has to be of use."""
    deployment = load_deployment(file)
    deployment.model_dump_json()
    assert deployment.shape.parameters > 0 and deployment.url("http") and deployment.per_replica()
    plan_memory(deployment)
    if deployment.engine == "tensorrt":
        derive(deployment)
        twin_of(deployment)
    elif deployment.engine == "pytorch":
        llm_args(deployment)
    assert yaml.safe_load(edited(file.read_text(), {"slo.requests_per_s": 3}))["slo"]["requests_per_s"] == 3


def write(folder: Path, content: bytes) -> Path:
    (folder / "configs").mkdir(exist_ok=True)
    file = folder / "configs" / "x.yaml"
    file.write_bytes(content)
    return file


@examples(60)
@given(st.sampled_from(sorted(CONTENTS)).flatmap(lambda name: changed(CONTENTS[name])))
def test_any_value_anywhere(tmp_path, content):
    try:
        text = yaml.safe_dump(content).encode("utf-8", "surrogatepass")
    except RecursionError:
        return
    file = write(tmp_path, text)
    checked(lambda: used(file), tmp_path)


@examples(60)
@given(st.sampled_from(sorted(TEXTS)).flatmap(lambda name: damaged(TEXTS[name].encode(), PIECES)))
def test_any_bytes_in_between(tmp_path, content):
    file = write(tmp_path, content)
    checked(lambda: used(file), tmp_path)


@pytest.mark.parametrize("name", ["name", "output", "serving.host", "model.path", "runtime.image", "engine.version"])
@examples(10)
@given(value=strange)
def test_any_value_of(tmp_path, name, value):
    file = write(tmp_path, TEXTS["llama3-70b-h100-pp4tp2-fp16.yaml"].encode())

    def use() -> None:
        changes = {"engine": {"kind": "tensorrt", "version": value}} if name == "engine.version" else {name: value}
        deployment = load_deployment(file, changes=changes)
        deployment.model_dump_json()

    checked(use, tmp_path)
