"""Token ids to hidden states, whole or sharded over two ranks: any INT32, as TensorRT-LLM takes them."""

from types import SimpleNamespace

import pytest
import torch

from toolkit.engine.rehearsal.model import Stage

VOCABULARY, HIDDEN = 10, 6
TABLE = torch.randn(VOCABULARY, HIDDEN, generator=torch.Generator().manual_seed(2))
IDS = torch.tensor([0, 9, 4, 5, 10, 11, -1, 2**31 - 1, -(2**31)])
SPLITS = {None: [TABLE], 0: TABLE.split(5, 0), 1: TABLE.split(3, 1)}


@pytest.mark.parametrize("split", SPLITS)
def test_known_ids_have_their_row_and_others_zeros(split):
    parts = []
    for rank, weight in enumerate(SPLITS[split]):
        stage = SimpleNamespace(
            weights={"transformer.vocab_embedding.weight": weight},
            embedding_split=split,
            tp_rank=rank,
            hidden_size=HIDDEN,
            all_reduce=lambda part: part,
        )
        parts.append(Stage._embedded(stage, IDS))  # type: ignore[arg-type]
    hidden = sum(parts)
    assert torch.equal(hidden[:4], TABLE[IDS[:4]])
    assert not hidden[4:].any()
