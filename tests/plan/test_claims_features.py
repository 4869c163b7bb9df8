"""The features that the requirements name, on the flagship: each figure worked out by hand."""

import pytest

from toolkit.config.load import load_deployment
from toolkit.plan.claims_features import feature_claims
from toolkit.plan.predict import predict


@pytest.fixture(scope="module")
def claims(flagship_compared):
    return [(claim.verdict, claim.because) for claim in feature_claims(flagship_compared.own.prediction)]


def of(flagship, **changes) -> list[tuple[str, str]]:
    workload = {"rate": 1, "requests": 20, "output_tokens": 4}
    found = feature_claims(predict(load_deployment(flagship(workload=workload, **changes))))
    return [(claim.verdict, claim.because) for claim in found]


def test_sequence_parallelism_is_none_of_its_names(claims):
    """Half of the tokens on each of two GPUs takes half of the time and the floors of the kernels."""
    verdict, because = claims[0]
    whole, half = (int(because.split(before)[1].split()[0].rstrip(",")) for before in ("takes ", "best "))
    assert verdict == "false" and 0.5 * whole < half < 0.55 * whole
    assert "reduce_fusion" in because and "off here" in because and "cp_size" in because and "steps of 8,192" in because


def test_recomputation_is_of_training(claims):
    """0.78 GiB of hidden states for 8,192 tokens a step, 1 / 32 of that for 256. For 16 sequences, 128,256 x 18 B of
    logits each, and 8,192 x 32 B that the decoder keeps: 0.04 GiB."""
    verdict, because = claims[1]
    assert verdict == "false" and "0.82 GiB a GPU for steps of 8,192 tokens and 0.06 for 256" in because


def test_pools(claims, flagship):
    """(1,024 + 128) x 4 B = 4,608 B; 268,435,456 / 4,608 = 58,254. The KV pool: 1,195,253 tokens x 40,960 B."""
    verdict, because = claims[2]
    assert verdict == "true" and "1,195,253 tokens, 45.6 GiB" in because
    assert "4,608 B of token ids, so 256 MiB hold 58,254 requests" in because
    assert "set to 0 here" in of(flagship, serving={"mode": "orchestrator"})[2][1]


def test_unified_memory(claims, flagship):
    """16 x 1,088 x 40,960 B = 0.713 GB: 0.21 ms at 3.35 TB/s, 11 ms at 64 GB/s."""
    verdict, because = claims[3]
    assert verdict == "false" and "0.71 GB" in because and "0.21 ms from its memory, 11 ms over PCIe" in because
    assert "25.6 GiB are left" in because
    assert of(flagship, hardware__gpu_memory_limit=0.45)[3][0] == "depends"


def test_flash_attention(claims, flagship):
    """64 / 2 heads x 1,024^2 x 2 B = 64 MiB."""
    verdict, because = claims[4]
    assert verdict == "true" and "32 heads x 1,024 x 1,024 x 2 B = 64 MiB a layer" in because
    plain = {"kind": "tensorrt", "extra": {"context_fmha": False}}
    assert of(flagship, engine=plain)[4] == ("false", "engine.extra.context_fmha turns the fused kernel off")


def test_pcie(claims, flagship):
    """80 layers x 2 all-reduces x 1,024 x 8,192 x 2 B x 2 (tp - 1) / tp = 2.68 GB; 450 GB/s and 64 GB/s."""
    verdict, because = claims[5]
    assert verdict == "false" and "move 2.68 GB a GPU, 6.0 ms there and 42 ms over PCIe with 64 GB/s" in because
    assert of(flagship, hardware__gpu="h100-pcie")[5][0] == "true"
