"""The flagship's plan against hand arithmetic from the published shape of Llama-3-70B."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.config.load import load_deployment
from toolkit.model.rank_mapping import RankMapping
from toolkit.sizing.memory import plan_memory

BUILD_CONFIGS = Path(__file__).parents[2] / "build_configs"
FLAGSHIP = BUILD_CONFIGS / "llama3-70b-h100-pp4tp2-fp16.yaml"

# One layer at TP 2, in elements: qkv [5120, 8192], dense [8192, 4096], fc and gate [14336, 8192], proj [8192, 14336],
# and two norms of 8192.
LAYER = 5120 * 8192 + 8192 * 4096 + 2 * 14336 * 8192 + 8192 * 14336 + 2 * 8192
EMBEDDING = 128256 * 8192


def test_the_flagship_by_hand() -> None:
    flagship = load_deployment(FLAGSHIP)
    memory = plan_memory(flagship)
    assert flagship.shape.parameters == 70_553_706_496
    assert [stage.weight_bytes for stage in memory.stages] == [
        2 * (20 * LAYER + EMBEDDING),
        2 * 20 * LAYER,
        2 * 20 * LAYER,
        2 * (20 * LAYER + EMBEDDING // 2 + 8192),
    ]
    assert [tuple(stage.gpus) for stage in memory.stages] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert [(stage.layers.start, stage.layers.stop) for stage in memory.stages] == [
        (0, 20),
        (20, 40),
        (40, 60),
        (60, 80),
    ]
    assert {stage.kv_bytes_per_token for stage in memory.stages} == {20 * 2 * 4 * 128 * 2} == {40_960}
    assert memory.wanted_tokens * 40_960 == 20 * 2**30, "64 sequences of 8192 tokens take 20 GiB a GPU"
    fullest = memory.stages[0]
    left = memory.limit_bytes - fullest.weight_bytes - memory.workspace_bytes
    assert memory.token_capacity == left // 40_960
    assert memory.headroom_bytes == left - 20 * 2**30


@pytest.mark.parametrize(
    ("tp", "pp", "gib"),
    [
        (4, 2, [17.896, 16.428]),
        (8, 1, [18.142]),
        (1, 8, [17.895] + 6 * [15.938] + [17.895]),
        (4, 1, [34.324]),
    ],
)
def test_weights_of_other_layouts(tp: int, pp: int, gib: list[float]) -> None:
    """GiB a GPU by stage, from the published shapes by hand: 855.65 M elements a layer, 1050.67 M an embedding."""
    flagship = load_deployment(FLAGSHIP)
    layout = flagship.model_copy(update={"parallel": flagship.parallel.model_copy(update={"tp": tp, "pp": pp})})
    assert [stage.weight_bytes / 2**30 for stage in plan_memory(layout).stages] == pytest.approx(gib, abs=6e-4)


def test_a_remainder_of_layers_goes_to_the_first_stages() -> None:
    mapping = RankMapping(tp=2, pp=4)
    assert [len(mapping.layers(30, stage)) for stage in range(4)] == [8, 8, 7, 7]
    assert [layer for stage in range(4) for layer in mapping.layers(30, stage)] == list(range(30))
