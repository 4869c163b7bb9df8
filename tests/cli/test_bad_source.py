"""`toolkit convert` with a source or an output that cannot be: exit code 1, one line on stderr, nothing left."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.commands import toolkit


@pytest.fixture
def config(tmp_path: Path, tiny_llama: Path) -> Path:
    """A YAML for a copy of the tiny model in `model/`, with its output in `work/`."""
    shutil.copytree(tiny_llama, tmp_path / "model")
    file = tmp_path / "x.yaml"
    file.write_text(
        "engine: rehearsal\nmodel: {path: model}\nparallel: {tp: 2, pp: 2}\nlimits: {max_seq_len: 512}\noutput: work\n"
    )
    return file


def pipe(directory: Path) -> None:
    (directory / "config.json").unlink()
    os.mkfifo(directory / "config.json")


def truncated(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def output_is_a_file(directory: Path) -> None:
    (directory.parent / "work").write_text("mine")


def output_holds_others_work(directory: Path) -> None:
    (directory.parent / "work" / "checkpoint").mkdir(parents=True)
    (directory.parent / "work" / "checkpoint" / "thesis.txt").write_text("mine")


CASES = [
    (lambda d: shutil.rmtree(d), "no config.json in"),
    (lambda d: (d / "config.json").rename(d / "adapter_config.json"), "holds a LoRA adapter"),
    (pipe, "config.json: is a named pipe"),
    (truncated, "model.safetensors: is not a whole safetensors file"),
    (output_is_a_file, "work/checkpoint: cannot be written: Not a directory"),
    (output_holds_others_work, "work/checkpoint: holds thesis.txt and no lock.json"),
]


@pytest.mark.parametrize(("spoil", "message"), CASES, ids=lambda case: case if isinstance(case, str) else None)
def test_convert_fails_in_one_line(config: Path, spoil, message: str) -> None:
    spoil(config.parent / "model")
    before = sorted(config.parent.rglob("*"))
    done = toolkit("convert", config)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1 and message in done.stderr
    assert sorted(config.parent.rglob("*")) == before
