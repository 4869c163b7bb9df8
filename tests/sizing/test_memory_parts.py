"""What the memory plan says beyond weights: the limit as settings, the balance, FP8, replicas, the host."""

from pathlib import Path
from typing import Any

import pytest

from toolkit.config.deployment import Deployment, with_settings
from toolkit.config.load import load_deployment
from toolkit.sizing.host import plan_host, rank_bytes
from toolkit.sizing.memory import plan_memory

GIB = 2**30
LAYER = 5120 * 8192 + 8192 * 4096 + 3 * 14336 * 8192
"""Elements of one layer's matrices at TP 2."""


def flagship(**sections: dict[str, Any]) -> Deployment:
    """The flagship with other values of some keys, by section."""
    file = Path(__file__).parents[2] / "build_configs" / "llama3-70b-h100-pp4tp2-fp16.yaml"
    return with_settings(load_deployment(file), **sections)


def test_the_limit_as_a_fraction_of_what_is_free():
    """No GPU may pass 85 % of 79.6 GiB; TensorRT-LLM takes the fraction of what weights and workspace leave."""
    memory = plan_memory(flagship())
    fullest = 2 * (20 * (LAYER + 2 * 8192) + 128256 * 8192) / GIB + 2.2 + 0.15 + 1 + 0.81
    assert memory.kv_fraction == pytest.approx((0.85 * 79.6 - fullest) / (79.6 - fullest), abs=1e-3)
    for stage in memory.stages:
        used = stage.weight_bytes + memory.workspace_bytes
        assert used + memory.kv_fraction * (memory.gpu_bytes - used) <= memory.limit_bytes


def test_the_limit_as_sequences():
    memory = plan_memory(flagship())
    for sequences, inside in ((memory.full_sequences, True), (memory.full_sequences + 1, False)):
        more = plan_memory(flagship(limits={"max_sequences": sequences}))
        assert (more.headroom_bytes >= 0) == inside


def test_the_pool_is_what_the_yaml_says_if_that_is_less():
    assert plan_memory(flagship(kv_cache={"max_tokens": 100_000})).pool_tokens == 100_000


def test_balance_by_hand():
    deployment = flagship()
    layers, table, head = 20 * (LAYER + 2 * 8192), 128256 * 8192, 64128 * 8192 + 8192
    weights = [layers + table, layers, layers, layers + head]
    mean = sum(weights) / 4
    assert plan_memory(deployment).weight_spread == pytest.approx(table / mean)
    sharded = [layers + table / 2, layers, layers, layers + head]
    assert plan_memory(deployment, parallel_embedding=True).weight_spread == pytest.approx(head / (sum(sharded) / 4))


def test_fp8_halves_the_matrices_and_the_kv_cache_only():
    plain, fp8 = plan_memory(flagship()), plan_memory(flagship(model={"quantization": "fp8"}))
    assert fp8.stages[1].weight_bytes == 20 * (LAYER + 2 * 2 * 8192)
    assert fp8.stages[0].embedding_bytes == plain.stages[0].embedding_bytes
    assert fp8.stages[3].head_bytes == plain.stages[3].head_bytes
    assert fp8.stages[0].kv_bytes_per_token * 2 == plain.stages[0].kv_bytes_per_token
    only_cache = plan_memory(flagship(kv_cache={"dtype": "fp8"}))
    assert only_cache.stages[1].weight_bytes == plain.stages[1].weight_bytes
    assert only_cache.stages[1].kv_bytes_per_token == 20_480


def test_replicas_share_the_sequences():
    two = flagship(parallel={"tp": 4, "pp": 1, "replicas": 2})
    assert two.max_batch_size == 32
    assert plan_memory(two).wanted_tokens == 32 * 8192


def test_the_host():
    """143.2 GB on disk; a build rank holds its weights twice, and 8.5 GB of workspace."""
    deployment = flagship()
    host = plan_host(deployment)
    assert host.checkpoint_bytes == sum(rank_bytes(deployment)) == pytest.approx(143.2e9, rel=1e-3)
    assert host.build_rank_bytes == pytest.approx(2 * 19.214e9 + 8.5e9, rel=1e-3)
    assert host.workers == 5
    assert plan_host(flagship(hardware={"host_memory_gb": 40})).workers == 0
    assert plan_host(flagship(hardware={"host_memory_gb": 1000})).workers == 8
