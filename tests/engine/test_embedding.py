"""Token ids to text, with the embedding whole on each rank or cut in two: any INT32, as TensorRT-LLM takes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.checkpoint.verify.vendor import NEW_MAPPING, write
from tests.engine.conftest import started
from toolkit.engine import build

pytestmark = pytest.mark.slow
KNOWN = [5, 300, 17, 150, 151]
STRANGE = [5, 301, -1, 2**31 - 1, 17, -(2**31), 302]
"""With ids outside of the 301 that the model has, also of those that fill up the second rank's half."""
TOKENS = 8


@pytest.fixture(scope="module")
def llama(make_llama) -> Path:
    return make_llama()


@pytest.fixture(scope="module")
def expected(llama) -> list[list[int]]:
    """By transformers, with zeros for an id that the model does not have."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(llama, dtype=torch.float16).float()
    table = model.get_input_embeddings().weight.detach()

    def row(id: int) -> torch.Tensor:
        return table[id] if 0 <= id < len(table) else torch.zeros(table.shape[1])

    def greedy(ids: list[int]) -> list[int]:
        for _ in range(TOKENS):
            embedded = torch.stack([row(id) for id in ids])[None]
            ids = [*ids, int(model(inputs_embeds=embedded).logits[0, -1].argmax())]
        return ids[-TOKENS:]

    with torch.no_grad():
        return [greedy(KNOWN), greedy(STRANGE)]


@pytest.mark.parametrize("embedding_dim", [None, 0, 1], ids=["whole", "rows", "columns"])
def test_known_ids_have_their_row_and_others_zeros(llama, deploy, expected, tmp_path, embedding_dim):
    deployment = deploy(llama, tp=2, dtype="float16")
    build(deployment, checkpoint=write(tmp_path / "vendor", llama, 2, 1, NEW_MAPPING, embedding_dim))
    with started(deployment) as group:
        assert [group.generate(ids, TOKENS) for ids in (KNOWN, STRANGE)] == expected
