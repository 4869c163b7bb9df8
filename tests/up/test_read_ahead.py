"""Engines are read into the page cache, as far as memory allows."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import pytest

from toolkit.config.load import load_deployment
from toolkit.up.read_ahead import engine_files, read_ahead

PAGE = mmap.PAGESIZE


def cached(file: Path) -> float:
    """The share of its pages that are in the page cache, by mincore(2)."""
    size = file.stat().st_size
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_COPY) as pages:
        first = (ctypes.c_char * size).from_buffer(pages)
        flags = (ctypes.c_ubyte * -(-size // PAGE))()
        assert ctypes.CDLL(None).mincore(ctypes.byref(first), ctypes.c_size_t(size), flags) == 0
        del first
    return sum(flag & 1 for flag in flags) / len(flags)


def evict(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached(file):
        pytest.skip("this file system keeps what it was told to forget")


@pytest.fixture
def files(tmp_path) -> list[Path]:
    files = [tmp_path / f"rank{number}.engine" for number in range(3)]
    for file in files:
        file.write_bytes(os.urandom(4 << 20))
        evict(file)
    return files


def test_all_of_it_is_cached(files):
    assert read_ahead(files).startswith("0.0 GB of engines read ahead")
    assert min(cached(file) for file in files) > 0.9, "a kernel that is short of memory may take some pages back"


def test_as_far_as_memory_allows(files):
    assert "does not fit" not in read_ahead(files[:1], room_bytes=9 << 20)
    assert read_ahead(files, room_bytes=9 << 20).endswith("; 0.0 GB do not fit into memory")
    assert cached(files[2]) == 0
    assert read_ahead([files[0].with_name("absent")])


def test_which_files(tmp_path):
    rehearsal = Path(__file__).parents[2] / "build_configs" / "tiny-llama-rehearsal.yaml"
    deployment = load_deployment(rehearsal).model_copy(update={"output": tmp_path})
    deployment.engine_dir.mkdir(parents=True, exist_ok=True)
    for name in ("rank0.engine", "config.json"):
        (deployment.engine_dir / name).touch()
    assert engine_files((deployment, *deployment.per_replica())) == [deployment.engine_dir / "rank0.engine"]
    flagship = Path(__file__).parents[2] / "build_configs" / "llama3-70b-h100-pp4tp2-fp16-pytorch.yaml"
    assert engine_files((load_deployment(flagship),)) == []
