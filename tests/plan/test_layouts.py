"""Every layout, ranked, with its reason; the first YAML that comes of it; the requirements' claims."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from toolkit.cli.main import cli
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.plan.claims import claims, roofline
from toolkit.plan.layouts import compare, rank, variants
from toolkit.plan.show.reasons import reason, without_a_pipeline

FLAGSHIP = Path(__file__).parents[2] / "build_configs" / "llama3-70b-h100-pp4tp2-fp16.yaml"


def test_every_layout_of_eight_gpus_once():
    found = [(v.parallel.tp, v.parallel.pp, v.parallel.replicas) for v in variants(load_deployment(FLAGSHIP))]
    assert sorted(found) == sorted(
        (tp, pp, 8 // (tp * pp)) for tp in (1, 2, 4, 8) for pp in (1, 2, 4, 8) if tp * pp <= 8
    )


def test_ranking_and_reasons(flagship_compared):
    names = [layout.name for layout in flagship_compared.layouts]
    assert len(names) == 10 and names[0] == "pp2 x tp4"
    assert flagship_compared.own.name == "pp4 x tp2" and not flagship_compared.own.meets_slo
    reasons = {layout.name: reason(layout, flagship_compared) for layout in flagship_compared.layouts}
    assert reasons["pp2 x tp4"].startswith("meets the SLO with the largest margin")
    assert reasons["2 x tp4"].startswith("misses GPU utilisation")
    assert "idle bubble" in reasons["pp4 x tp2"]
    assert reason(flagship_compared.own, flagship_compared).startswith("misses TTFT P99 (no steady state)")
    # 66.688 GiB of weights, 4.16 of workspace and 8192 tokens of 163,840 B, against 67.66 GiB.
    assert reasons["4 x tp2"] == f"does not fit by {66.688 + 4.16 + 1.25 - 67.66:.1f} GiB a GPU; " + (
        "fits with hardware.gpu_memory_limit: 0.91"
    )
    assert all(reasons.values())


def test_each_layout_has_the_limits_it_serves_best_with(flagship_compared):
    """Never more tokens than the YAML's 8,192, nor more sequences in a replica than its 64."""
    own, row = flagship_compared.own, flagship_compared.own_row
    assert own.deployment.limits.max_num_tokens == 8192 and not own.meets_slo
    assert row.deployment.limits.max_num_tokens == 256
    assert [target.name for target in row.missed] == ["gpu_utilisation"], "no size of its steps meets all targets"
    assert row.prediction.capacity.highest > 1.5 * own.prediction.capacity.highest
    for layout in flagship_compared.layouts:
        limits, parallel = layout.deployment.limits, layout.deployment.parallel
        assert limits.max_num_tokens <= 8192 and limits.max_sequences <= 64 * parallel.replicas
    two = next(layout for layout in flagship_compared.layouts if layout.name == "2 x tp4")
    assert two.deployment.limits.max_sequences > 64, "a second replica has 64 of its own"


def test_a_band_of_gpu_utilisation_that_wants_a_pipeline(flagship_compared):
    text = without_a_pipeline(flagship_compared)
    assert "within 70 % to 85 %: no layout without a pipeline can meet it" in text and "2 x tp4 serves most" in text
    flat = [layout for layout in flagship_compared.layouts if layout.prediction and layout.deployment.parallel.pp == 1]
    assert flat and all([target.name for target in layout.missed] == ["gpu_utilisation"] for layout in flat)


def test_objectives_order_by_their_own_figure(flagship_compared):
    fitting = [layout for layout in flagship_compared.layouts if layout.prediction]
    soonest = min(fitting, key=lambda layout: rank(layout, "latency"))
    assert soonest.name == "tp8"
    most = min(fitting, key=lambda layout: rank(layout, "throughput"))
    assert most.prediction.capacity.saturated == max(layout.prediction.capacity.saturated for layout in fitting)


@pytest.mark.thorough
def test_the_cheapest_layout_leaves_gpus_unused(flagship):
    workload = {"rate": 2, "requests": 100, "output_tokens": 32}
    comparison = compare(load_deployment(flagship(workload=workload, slo={"requests_per_s": 2})), "cost")
    assert comparison.best.meets_slo and comparison.best.gpus == 4
    assert min(layout.gpus for layout in comparison.layouts if layout.meets_slo) == 4


def test_no_layout_at_all(flagship):
    """6007 GPUs: one stage for as many ranks, more stages than layers, or more replicas than there are ports."""
    with pytest.raises(ToolkitError, match=r"hardware.gpus: no tp x pp spreads this model over 6007 GPUs"):
        compare(load_deployment(flagship(hardware__gpus=6007)))


def test_claims_by_hand(flagship_compared):
    prediction = flagship_compared.own.prediction
    found = {claim.said: claim for claim in claims(prediction)}
    numbers = [*found.values()][:10]  # the features that are named come after them
    assert "true" not in {claim.verdict for claim in numbers} and len(found) == 16
    texts = " ".join(claim.because for claim in found.values())
    for figure in (
        "40,960 B",
        "488,281 tokens",
        "42.9%",
        "11.7%",
        "6.0%",
        "4.8%",
        "20.7 ms",
        "18.7 requests/s",
        "18.1 GiB",
    ):
        assert figure in texts
    # By hand: 2 x 69.50e9 parameters x 1024 tokens and attention at 8 x 989e12, then 127 steps of 16 sequences.
    prefill = (2 * 69.503e9 * 1024 + 4 * 8192 * 80 * 1024 * 1025 / 2) / (8 * 989e12)
    step = (69.503e9 * 2 + 16 * 327_680 * 1088) / (8 * 3.35e12)
    assert roofline(prediction.deployment, prediction) == pytest.approx(1 / (prefill + 127 * step / 16), rel=1e-3)


@pytest.mark.parametrize("option", ["--claims", "--compare"])
def test_a_rehearsal_has_one_layout_and_no_claims(option):
    rehearsal = FLAGSHIP.with_name("tiny-llama-rehearsal.yaml")
    result = CliRunner().invoke(cli, ["plan", str(rehearsal), option])
    assert isinstance(result.exception, ToolkitError) and option in str(result.exception)
