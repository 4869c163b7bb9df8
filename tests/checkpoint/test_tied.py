"""Tied models that store their output matrix as well: an equal one is taken, for another readers disagree."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from toolkit.checkpoint import convert
from toolkit.checkpoint.verify import verify
from toolkit.errors import ToolkitError

EMBEDDING, LM_HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def tied(tmp_path: Path, make_llama) -> Path:
    make_llama(tmp_path / "tied", tie_word_embeddings=True, num_hidden_layers=1)
    assert LM_HEAD not in load_file(tmp_path / "tied" / "model.safetensors")
    return tmp_path / "tied"


def store(directory: Path, matrix: torch.Tensor) -> None:
    file = directory / "model.safetensors"
    save_file(load_file(file) | {LM_HEAD: matrix}, file)


def embedding(directory: Path) -> torch.Tensor:
    return load_file(directory / "model.safetensors")[EMBEDDING]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_an_equal_one_is_taken(tied: Path, deploy, dtype: torch.dtype) -> None:
    store(tied, embedding(tied).to(dtype))
    deployment = deploy(tied)
    convert(deployment)
    assert verify(deployment.checkpoint_dir, tied, meaning=False).same


def test_zeros_of_the_other_sign_are_equal(tied: Path, deploy) -> None:
    file = tied / "model.safetensors"
    tensors = load_file(file)
    tensors[EMBEDDING][3, 4] = 0.0
    matrix = tensors[EMBEDDING].clone()
    matrix[3, 4] = -0.0
    save_file(tensors | {LM_HEAD: matrix}, file)
    convert(deploy(tied))


def last_value(matrix: torch.Tensor) -> torch.Tensor:
    changed = matrix.clone()
    changed[-1, -1] += 1
    return changed


@pytest.mark.parametrize(
    "other",
    [last_value, torch.zeros_like, lambda matrix: matrix[:-1], lambda matrix: last_value(matrix).float()],
    ids=["last value", "all values", "shape", "last value in float32"],
)
def test_another_one_is_refused(tied: Path, deploy, other) -> None:
    """transformers 5 computes with the stored one, transformers 4 with the embedding."""
    deployment = deploy(tied)
    convert(deployment)
    store(tied, other(embedding(tied)).contiguous())
    for read in (lambda: convert(deployment), lambda: verify(deployment.checkpoint_dir, tied, meaning=False)):
        with pytest.raises(ToolkitError) as caught:
            read()
        assert str(caught.value) == (
            f"{tied}/model.safetensors: lm_head.weight: differs from model.embed_tokens.weight, and config.json says "
            "tie_word_embeddings: true. Set tie_word_embeddings to false if lm_head.weight was trained; else remove "
            "that tensor."
        )


def test_the_remedy_helps(tied: Path, deploy) -> None:
    store(tied, last_value(embedding(tied)))
    config = tied / "config.json"
    config.write_text(config.read_text().replace('"tie_word_embeddings": true', '"tie_word_embeddings": false'))
    deployment = deploy(tied)
    convert(deployment)
    assert verify(deployment.checkpoint_dir, tied, meaning=False).same
