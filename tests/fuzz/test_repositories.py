"""Model repositories with anything in their files, through `toolkit lint`."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.commands import toolkit
from tests.lint.repositories import FLAGSHIP, write_repository

from .fuzzing import JSON_PIECES, TEXTS, changed, checked, damaged, examples, printed

pytestmark = pytest.mark.thorough

PIECES = [*JSON_PIECES, b"parameters {", b"}", b'key: "a"', b"value: {", b"input [{", b"999999999999", b"-1", b"${x}"]
PIECES += [b"string_value: ", b"dims: [ -1 ]", b"data_type: TYPE_STRING", b"max_batch_size: ", b"\n", b"#", b'"\\xff"']
PIECES += [b"&a ", b"*a", b"<<: *a", b": ", b"- ", b"1:1:1", b"\x1b[31m", b"kv_cache_config:", b"model: /dev/zero\n"]


@pytest.fixture(scope="module")
def repositories(tmp_path_factory, tiny_llama) -> dict[str, Path]:
    """The flagship's, and that of its twin without engines."""
    folder = tmp_path_factory.mktemp("repositories")
    twin = FLAGSHIP.with_name(f"{FLAGSHIP.stem}-pytorch.yaml")
    found = {}
    for name, file in (("tensorrt", FLAGSHIP), ("pytorch", twin)):
        (folder / name).mkdir()
        found[name] = write_repository(folder / name, tiny_llama, file)
    return found


FILES = ("config.pbtxt", "model.yaml", "config.json")


@st.composite
def spoilt(draw, file: Path) -> bytes:
    """The file with other bytes, or with other values where they stand."""
    content = file.read_bytes()
    if draw(st.booleans()):
        return draw(damaged(content, PIECES))
    if file.suffix == ".json":
        return json.dumps(draw(changed(json.loads(content)))).encode()
    if file.suffix == ".yaml":
        return yaml.safe_dump(draw(changed(yaml.safe_load(content)))).encode("utf-8", "surrogatepass")
    values = re.findall(rb'string_value: "[^"]*"|-?\b\d+\b|TYPE_\w+|KIND_\w+|\btrue\b', content)
    old = draw(st.sampled_from(values))
    text = draw(st.sampled_from([*TEXTS, "1e999", "99999999999", "0.9", "a,b", "{}", "[" * 3000, "\x00"]))
    new = f'string_value: "{text_format_escape(text)}"' if old.startswith(b"string") else draw(st.sampled_from(BARE))
    return content.replace(old, new.encode(), 1)


BARE = ["0", "-1", "9999999999999999999999", "1.5", "TYPE_FP16", "KIND_GPU", "false", "x", '"x"', "{}", "inf", "nan"]


def text_format_escape(text: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in text.encode())


@pytest.mark.parametrize("name", ["tensorrt", "pytorch"])
@examples(8)
@given(data=st.data())
def test_repositories(tmp_path, repositories, name, data):
    folder = tmp_path / "all"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(repositories[name].parent, folder)
    files = sorted(file for file in folder.rglob("*") if file.name in FILES)
    for file in data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=2, unique=True)):
        file.write_bytes(data.draw(spoilt(file)))
    if data.draw(st.integers(0, 3)) == 0:
        found = data.draw(st.sampled_from([file for file in sorted(folder.rglob("*")) if file.is_file()]))
        found.unlink()
    done = checked(lambda: toolkit("lint", folder / "repository", "--engine", folder / "engine"), folder)
    printed(done)
    assert all(len(line) < 2000 for line in done.stdout.splitlines())
    assert done.returncode in (0, 1)
