"""Headers of safetensors at random: the same are taken as by the library, and nothing but a ToolkitError comes out."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from toolkit.checkpoint.safetensors_file import read_header
from toolkit.errors import ToolkitError

BYTES = {"F16": 2, "BF16": 2, "F32": 4}
VALID = save({"a": torch.ones(2, 3), "model.b": torch.zeros(4, dtype=torch.bfloat16), "c": torch.zeros(0, 5)})

pytestmark = pytest.mark.thorough
bounded = settings(
    max_examples=300,
    deadline=30_000,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def taken(path: Path) -> dict | None:
    """Shapes by name, or None when the file is refused; any other exception fails the test.

    Of a dtype that is not converted the size is not checked, as the dtype itself is refused later.
    """
    try:
        tensors = read_header(path)
        return {tensor.name: tensor.shape for tensor in tensors} if {t.dtype for t in tensors} <= BYTES.keys() else None
    except ToolkitError as error:
        assert str(path) in str(error) and str(error).isprintable() and len(str(error)) < 2000
        return None


def taken_by_the_library(path: Path) -> dict | None:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError:
        return None


@bounded
@given(st.binary(max_size=200))
def test_random_bytes(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    assert taken(tmp_path / "x") is None


@bounded
@given(st.data())
def test_a_valid_file_with_some_bytes_changed(tmp_path, data):
    content = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(content) - 1))
        change = data.draw(st.sampled_from(["flip", "cut", "insert", "end"]))
        if change == "flip":
            content[position] ^= 1 << data.draw(st.integers(0, 7))
        elif change == "cut":
            del content[position]
        elif change == "insert":
            content.insert(position, data.draw(st.sampled_from(b'0129{}[]",:eE-.\\ u\xff')))
        else:
            content = content[: position + 1]
    (tmp_path / "x").write_bytes(content)
    found = taken(tmp_path / "x")
    if taken_by_the_library(tmp_path / "x") is None:
        assert found is None


counts = st.integers(-1, 9) | st.sampled_from([2**31, 2**62])


@st.composite
def headers(draw) -> dict:
    """Mostly tensors that follow each other, sometimes with another number in one place."""
    entries, position = {}, 0
    for name in draw(st.lists(st.text(max_size=5), max_size=4, unique=True)):
        dtype, shape = draw(st.sampled_from(sorted(BYTES))), draw(st.lists(st.integers(0, 4), max_size=3))
        start, position = position, position + math.prod(shape) * BYTES[dtype]
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, position]}
    for entry in entries.values():
        for key in ("shape", "data_offsets"):
            if entry[key] and draw(st.integers(0, 9)) == 0:
                entry[key][draw(st.integers(0, len(entry[key]) - 1))] = draw(counts)
    return entries


@bounded
@given(headers(), st.integers(0, 3))
def test_the_same_headers_are_taken_as_by_the_library(tmp_path, entries, more):
    end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    text = json.dumps(entries).encode("utf-8")
    data = bytes(min(max(end, 0), 10_000) + (more == 3))
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(text)) + text + data)
    assert taken(tmp_path / "x") == taken_by_the_library(tmp_path / "x")


READ = """
import resource, sys, time
from pathlib import Path
from toolkit.checkpoint.safetensors_file import read_header
from toolkit.errors import ToolkitError
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
begun = time.process_time()
try:
    print(len(read_header(Path(sys.argv[1]))), "tensors")
except ToolkitError as error:
    print(error)
assert time.process_time() - begun < 40
"""
LENGTH = 16 << 20
MANY = b",".join(b'"%d":{"dtype":"F16","shape":[0],"data_offsets":[0,0]}' % n for n in range(270_000))
LARGE = {
    "zeros": (LENGTH, b"\0", "its header is not a JSON object"),
    "as long as the file": ((1 << 40) - 8, b"{", "its header has 1099511627768 bytes, expected at most"),
    "open brackets": (LENGTH, b'{"a":' + b"[" * (LENGTH - 9), "recursion"),
    "many lists": (LENGTH, b'{"a":[' + b"[]," * (LENGTH // 3 - 9) + b"0]}", "a: expected dtype"),
    "long name": (LENGTH, b'{"' + b"a" * (LENGTH - 9) + b'":0}', "a tensor's name has 16777207 characters"),
    "many tensors": (LENGTH, b"{" + MANY + b"}", "its tensors end at byte"),
    "many dimensions": (
        LENGTH,
        b'{"a":{"dtype":"F16","data_offsets":[0,0],"shape":[' + b"9" * 4000 + b",999" * 1_000_000 + b"]}}",
        "a: has 1000001 dimensions",
    ),
}


@pytest.mark.parametrize(("length", "text", "message"), LARGE.values(), ids=LARGE)
def test_little_memory_and_time(tmp_path, length, text, message):
    """In a file of a terabyte of which next to nothing is on the disk, with 1 GiB of memory, and soon (in 2 s)."""
    with (tmp_path / "x").open("wb") as stream:
        stream.write(struct.pack("<Q", length) + text.ljust(LENGTH))
        stream.truncate(1 << 40)
    done = subprocess.run([sys.executable, "-c", READ, tmp_path / "x"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "x: is not a whole safetensors file" in done.stdout and message in done.stdout
