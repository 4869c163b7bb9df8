"""Every layout, ranked, with its reason; the first YAML that comes of it; the requirements' claims."""

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from toolkit.cli.main import cli
from toolkit.config import Deployment
from toolkit.errors import ToolkitError
from toolkit.plan.claims import claims, roofline
from toolkit.plan.layouts import compare, rank, reason, variants
from toolkit.plan.starter import Wanted, start

FLAGSHIP = Path(__file__).parents[2] / "build_configs" / "llama3-70b-h100-pp4tp2-fp16.yaml"


def test_every_layout_of_eight_gpus_once():
    found = [(v.parallel.tp, v.parallel.pp, v.parallel.replicas) for v in variants(Deployment.load(FLAGSHIP))]
    assert sorted(found) == sorted(
        (tp, pp, 8 // (tp * pp)) for tp in (1, 2, 4, 8) for pp in (1, 2, 4, 8) if tp * pp <= 8
    )


def test_ranking_and_reasons(flagship_compared):
    names = [layout.name for layout in flagship_compared.layouts]
    assert len(names) == 10 and names[0] == "2 x tp4"
    assert flagship_compared.own.name == "pp4 x tp2" and not flagship_compared.own.meets
    reasons = {layout.name: reason(layout, flagship_compared) for layout in flagship_compared.layouts}
    assert reasons["2 x tp4"] == "meets the SLO with the most to spare"
    assert "one GPU lost takes 100%, not 50%" in reasons["tp8"]
    assert "meets with limits.max_num_tokens: 256" in reasons["pp4 x tp2"] and "idle bubble" in reasons["pp4 x tp2"]
    # 66.688 GiB of weights, 4.16 of workspace and 8192 tokens of 163,840 B, against 67.66 GiB.
    assert reasons["4 x tp2"] == f"does not fit by {66.688 + 4.16 + 1.25 - 67.66:.1f} GiB a GPU; " + (
        "fits with hardware.gpu_memory_limit: 0.91"
    )
    assert all(reasons.values())


def test_objectives_order_by_their_own_figure(flagship_compared):
    fitting = [layout for layout in flagship_compared.layouts if layout.prediction]
    soonest = min(fitting, key=lambda layout: rank(layout, "latency"))
    assert soonest.name == "tp8"
    most = min(fitting, key=lambda layout: rank(layout, "throughput"))
    assert most.prediction.capacity.saturated == max(layout.prediction.capacity.saturated for layout in fitting)


def test_the_cheapest_layout_leaves_gpus_unused(flagship):
    workload = {"rate": 2, "requests": 100, "output_tokens": 32}
    comparison = compare(Deployment.load(flagship(workload=workload, slo={"requests_per_s": 2})), "cost")
    assert comparison.best.meets and comparison.best.gpus == 4
    assert min(layout.gpus for layout in comparison.layouts if layout.meets) == 4


def test_no_layout_at_all(flagship):
    """97 GPUs: one stage for 97 ranks or more stages than layers, or more replicas than sequences."""
    with pytest.raises(ToolkitError, match=r"hardware.gpus: no tp x pp spreads this model over 97 GPUs"):
        compare(Deployment.load(flagship(hardware__gpus=97)))


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


@pytest.fixture
def model(tmp_path) -> Path:
    directory = tmp_path / "My Llama"
    directory.mkdir()
    config = yaml.safe_load(FLAGSHIP.read_text())["model"]["config"]
    (directory / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 8}))
    return directory


def test_init_writes_a_yaml_that_every_command_reads(model, tmp_path):
    file = tmp_path / "first.yaml"
    started = start(Wanted(model, file, gpus=2, rate=4, slo=("requests_per_s=3", "ttft_ms.p99=900")))
    deployment = Deployment.load(file)
    assert deployment.model.path == model and deployment.model.dtype == "bfloat16"
    assert deployment.parallel == started.comparison.best.deployment.parallel
    assert (deployment.slo.requests_per_s, deployment.slo.ttft_ms.p99, deployment.workload.rate) == (3, 900, 4)
    comments = [line for line in file.read_text().splitlines() if line.startswith("#")]
    assert len(comments) > 10
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".yaml"] == ["My Llama"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hardware": "h900"}, "hardware.gpu: 'h900' is not in the planner's table"),
        ({"workload": "chat"}, "--workload: 'chat' is unknown. Use chat-1k"),
        ({"slo": ("fast",)}, "--slo: 'fast' is no target"),
        ({"slo": ("ttft_ms.p99=-1",)}, "slo.ttft_ms.p99: input should be greater than 0"),
        ({"slo": ("speed=1",)}, "slo.speed: unknown key"),
        ({"gpus": 1, "hardware": "l40s"}, "no layout fits on 1 l40s"),
    ],
)
def test_a_bad_init_is_one_line_and_leaves_nothing(model, tmp_path, changes, message):
    if changes.get("hardware") == "l40s":  # 80 layers do not fit, 8 would
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 80}))
    with pytest.raises(ToolkitError, match=message):
        start(Wanted(model, tmp_path / "first.yaml", **changes))
    assert [path.name for path in tmp_path.iterdir()] == ["My Llama"]


def test_init_replaces_nothing_unasked(model, tmp_path):
    file = tmp_path / "first.yaml"
    file.write_text("mine")
    with pytest.raises(ToolkitError, match=r"first.yaml: is already there"):
        start(Wanted(model, file))
    assert file.read_text() == "mine"
    start(Wanted(model, file, gpus=1), force=True)
    assert Deployment.load(file).parallel.tp == 1
