"""Kinds of engine: facts in one table, and nobody compares names."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import toolkit as package
from tests.commands import toolkit
from toolkit.config.engine_kind import KINDS, PYTORCH

ROOT = Path(package.__file__).parent
NAMES = "|".join(KINDS)


def test_nothing_outside_of_config_compares_a_kind_by_its_name():
    comparison = re.compile(rf"""(?<!\w)(engine|kind)(\.name)?\s*(==|!=|in|not in)\s*[("'\[{{]*({NAMES})\b""")
    for file in ROOT.rglob("*.py"):
        if file.parent.name != "config":
            assert not comparison.search(file.read_text()), file


@pytest.fixture
def fourth(monkeypatch) -> str:
    """A kind that no module knows: on GPUs, without engine files, with the Python models of another."""
    monkeypatch.setitem(KINDS, "fourth", replace(PYTORCH, name="fourth"))
    return "fourth"


def test_a_fourth_kind_is_an_entry_of_the_table(fourth, tmp_path, tiny_llama):
    content = {
        "engine": {"kind": fourth, "version": "1.2.1"},
        "model": {"path": str(tiny_llama)},
        "parallel": {"tp": 2, "pp": 1},
        "limits": {"max_sequences": 8, "max_num_tokens": 128, "max_seq_len": 128},
        "hardware": {"gpu": "h100-sxm", "gpus": 2},
        "workload": {"rate": 4, "prompt_tokens": 32, "output_tokens": 16, "requests": 100},
        "output": "out",
    }
    file = tmp_path / "fourth.yaml"
    file.write_text(yaml.safe_dump(content))
    for command, word in ((["plan"], "2 GPUs"), (["repo"], "out/repository"), (["serve", "--dry-run"], "mpirun")):
        ran = toolkit(*command, file)
        assert ran.returncode == 0, ran.stderr
        assert word in ran.stdout, ran.stdout
    models = {folder.name for folder in (tmp_path / "out" / "repository").iterdir() if folder.is_dir()}
    assert models >= {*PYTORCH.models}


def test_an_unknown_kind_is_told_which_there_are(tmp_path, tiny_llama):
    file = tmp_path / "no.yaml"
    file.write_text(yaml.safe_dump({"engine": "vllm", "model": {"path": str(tiny_llama)}}))
    ran = toolkit("plan", file)
    assert ran.returncode == 1
    assert "engine: " in ran.stderr and "'tensorrt', 'pytorch' or 'rehearsal', got 'vllm'" in ran.stderr
