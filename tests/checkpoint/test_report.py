"""`toolkit convert --report`: what the cast does to each tensor, also when it cannot be done."""

from __future__ import annotations

import subprocess

import torch
from safetensors.torch import load_file, save_file

from tests.commands import toolkit

Q_PROJ = "model.layers.3.self_attn.q_proj.weight"
UP_PROJ = "model.layers.0.mlp.up_proj.weight"


def report(file) -> subprocess.CompletedProcess[str]:
    return toolkit("convert", file, "--report")


def lines(output: str) -> dict[str, list[str]]:
    """The columns of each tensor's line, by its name."""
    rows = (line.split() for line in output.splitlines()[1:])
    return {name: rest for name, *rest in rows if rest}


def test_a_line_for_each_tensor(llama_dir, deploy):
    tensors = load_file(llama_dir / "model.safetensors")
    tensors[Q_PROJ] = torch.zeros(64, 64, dtype=torch.bfloat16)
    tensors[Q_PROJ][0, :4] = torch.tensor([-3.0, 2**-20, 2**-30, 2**-14])
    save_file(tensors, llama_dir / "model.safetensors")
    file = deploy(llama_dir, 2, 2).file
    first, again = report(file), report(file)
    assert first.returncode == 0 and "converted" in first.stderr.splitlines()
    assert again.stdout == first.stdout
    assert set(lines(first.stdout)) == set(tensors)
    assert lines(first.stdout)[Q_PROJ] == ["4,096", "3", "0", "0", "1", "1"]


def test_all_that_cannot_be_converted_comes_first(llama_dir, deploy):
    tensors = load_file(llama_dir / "model.safetensors")
    tensors[Q_PROJ][1, 2] = 70000.0
    tensors[UP_PROJ][3, :2] = float("nan")
    save_file(tensors, llama_dir / "model.safetensors")
    deployment = deploy(llama_dir, 2, 2)
    done = report(deployment.file)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert [*lines(done.stdout)][:2] == [UP_PROJ, Q_PROJ]
    assert lines(done.stdout)[UP_PROJ][2:4] == ["2", "0"]
    assert lines(done.stdout)[Q_PROJ][2:4] == ["0", "1"]
    assert not deployment.checkpoint_dir.exists()
