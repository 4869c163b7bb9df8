"""Checkpoints written by hand as the vendor's converter writes them, of several releases and options."""

from __future__ import annotations

import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.checkpoint.verify.vendor import NEW_MAPPING, OLD_MAPPING, write
from tests.engine.conftest import started
from toolkit.checkpoint.verify import verify
from toolkit.engine import build
from toolkit.errors import ToolkitError

PROMPT, LENGTH = [5, 80, 33, 2, 100, 51, 7], 8
EXTRA = {"head_size": 8, "kv_cache_block_size": 64, "share_embedding_table": False, "tie_word_embeddings": False}


@pytest.mark.parametrize("embedding_dim", [None, 0, 1])
@pytest.mark.parametrize(("mapping", "extra"), [(OLD_MAPPING, {}), (NEW_MAPPING, EXTRA)], ids=["older", "newer"])
@pytest.mark.parametrize(("tp", "pp"), [(1, 2), (2, 2), (4, 1), (8, 3)])
def test_verify_accepts_it(llama, tmp_path, tp, pp, mapping, extra, embedding_dim):
    result = verify(write(tmp_path / "vendor", llama, tp, pp, mapping, embedding_dim, **extra), llama)
    assert result.same, result.differences
    assert result.meaning.logits_error < 1e-5


def test_embedding_shares_exchanged_between_ranks_are_named(llama, tmp_path):
    for dimension in (0, 1):
        directory = write(tmp_path / f"cut{dimension}", llama, 2, 1, OLD_MAPPING, dimension)
        swap_files(directory / "rank0.safetensors", directory / "rank1.safetensors")
        result = verify(directory, llama)
        pattern = (
            "transformer.vocab_embedding.weight: .* holds the share of tensor parallel rank 1 of model.embed_tokens"
        )
        assert any(re.search(pattern, str(each)) for each in result.bytes.differences)
        assert result.meaning.differences[0].where == "embedding (stage 0)"


def swap_files(one, other) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def greedy(model_dir) -> list[int]:
    """What transformers generates with the weights rounded as the checkpoint's are."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float16).float().eval()
    tokens = list(PROMPT)
    with torch.inference_mode():
        for _ in range(LENGTH):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(PROMPT) :]


def test_an_engine_built_from_it_generates_the_same(llama, deploy, tmp_path):
    """One rank, whatever is missing from an older config.json."""
    deployment = deploy(llama)
    assert build(deployment, checkpoint=write(tmp_path / "vendor", llama, 1, 1, OLD_MAPPING))
    with started(deployment) as group:
        assert group.generate(PROMPT, LENGTH) == greedy(llama)


@pytest.mark.slow
@pytest.mark.parametrize("embedding_dim", [None, 0, 1])
def test_ranks_with_a_share_of_the_embedding_generate_the_same(llama, deploy, tmp_path, embedding_dim):
    deployment = deploy(llama, 2, 2)
    assert build(deployment, checkpoint=write(tmp_path / "vendor", llama, 2, 2, NEW_MAPPING, embedding_dim, **EXTRA))
    with started(deployment) as group:
        assert group.generate(PROMPT, LENGTH) == greedy(llama)


def test_it_is_locked_to_its_content(llama, deploy, tmp_path):
    deployment, directory = deploy(llama, 2, 1), write(tmp_path / "vendor", llama, 2, 1, OLD_MAPPING)
    assert build(deployment, checkpoint=directory) is True
    assert build(deployment, checkpoint=directory) is False
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config))  # the same, written otherwise
    assert build(deployment, checkpoint=directory) is True
    assert build(deployment) is True, "our own checkpoint is another one"


@pytest.mark.parametrize(
    ("deployed", "extra", "message"),
    [
        ({"tp": 1}, {}, "has tp 2, "),
        ({"pp": 2}, {}, "has pp 1, "),
        ({"dtype": "bfloat16"}, {}, "has dtype float16, "),
        ({}, {"norm_epsilon": 1e-3}, "config.json: norm_epsilon is 0.001, the source has 1e-06"),
        ({}, {"use_parallel_embedding": True}, "vocab_embedding.weight has shape [101, 64], expected [51, 64]"),
    ],
)
def test_one_of_another_deployment_is_refused(llama, deploy, tmp_path, deployed, extra, message):
    directory = write(tmp_path / "vendor", llama, 2, 1, OLD_MAPPING, **extra)
    with pytest.raises(ToolkitError) as caught:
        build(deploy(llama, **{"tp": 2, **deployed}), checkpoint=directory)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
