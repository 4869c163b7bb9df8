"""The first YAML: layout and batch limits that are chosen for a model, from its config.json alone."""

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from toolkit.cli.main import cli
from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.plan.predict import predict
from toolkit.plan.starter import Wanted, start

FLAGSHIP = Path(__file__).parents[2] / "build_configs" / "llama3-70b-h100-pp4tp2-fp16.yaml"
SHAPES = Path(__file__).parents[1] / "fixtures" / "shapes"


@pytest.fixture
def model(tmp_path) -> Path:
    directory = tmp_path / "My Llama"
    directory.mkdir()
    config = yaml.safe_load(FLAGSHIP.read_text())["model"]["config"]
    (directory / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 8}))
    return directory


@pytest.mark.thorough
def test_init_writes_a_yaml_that_every_command_reads(model, tmp_path):
    file = tmp_path / "first.yaml"
    started = start(Wanted(model, file, gpus=2, rate=4, slo=("requests_per_s=3", "ttft_ms.p99=900")))
    deployment = load_deployment(file)
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
        ({"slo": ("fast",)}, "--slo: 'fast' is not a target"),
        ({"slo": ("ttft_ms.p99=-1",)}, "slo.ttft_ms.p99: input should be greater than 0"),
        ({"slo": ("speed=1",)}, "slo.speed: unknown key"),
        ({"gpus": 1, "hardware": "l40s"}, "no layout fits on 1 l40s"),
        ({"max_seq_len": 9000}, "--max-seq-len: 9000 is more than the model's context length 8192. Use at most 8192."),
        ({"max_seq_len": 600}, "--workload: chat-1k is longer than --max-seq-len 600 tokens. Use short."),
        ({"quantization": "fp8", "hardware": "a100-sxm"}, "--quantization: a100-sxm has no FP8 tensor cores. Use none"),
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
    with pytest.raises(ToolkitError, match=r"first.yaml: exists already"):
        start(Wanted(model, file))
    assert file.read_text() == "mine"
    start(Wanted(model, file, gpus=1), force=True)
    assert load_deployment(file).parallel.tp == 1


def init(model: str, file: Path, *options: str) -> tuple[str, Deployment]:
    """What the command prints, and the YAML that it writes."""
    result = CliRunner().invoke(cli, ["init", str(SHAPES / model), "--output", str(file), *options])
    if result.exception:
        raise result.exception
    return result.stdout, load_deployment(file)


@pytest.mark.thorough
def test_replicas_of_a_small_model_do_not_starve(tmp_path):
    """Two GPUs side by side share nothing: more requests/s than one layer split over both, each with its own limits."""
    text, deployment = init("llama-3-8b", tmp_path / "two.yaml", "--gpus", "2")
    assert deployment.parallel.replicas == 2 and deployment.mapping.world_size == 1
    assert deployment.limits.max_sequences > 64, "each has more than half of the 64 that both would share"
    assert f"max_sequences {deployment.limits.max_sequences}, max_num_tokens" in text
    assert predict(deployment).meets_slo and "meets the SLO" in text


@pytest.mark.thorough
def test_a_model_that_fits_only_in_fp8_gets_fp8(tmp_path):
    """405 B parameters of 2 bytes are 756 GiB; eight H100 have 637. In FP8 they are 378."""
    text, deployment = init("llama-3.1-405b", tmp_path / "large.yaml", "--rate", "0.5", "--slo", "requests_per_s=0.5")
    assert deployment.model.quantization == "fp8" and ", FP8: " in text
    head = (tmp_path / "large.yaml").read_text().split("\n\n")[0]
    assert "In FP8, because no layout fits in 16 bits." in head and "toolkit build --checkpoint DIR" in head
    assert "toolkit init --quantization none" in head


@pytest.mark.thorough
def test_a_model_that_fits_on_no_node_in_16_bits_gets_two(tmp_path):
    """756 GiB and 8 x 67.7 GiB under the limit are 1.4 nodes. The stages are cut between the nodes."""
    options = ("--quantization", "none", "--rate", "0.5", "--slo", "requests_per_s=0.5")
    text, deployment = init("llama-3.1-405b", tmp_path / "two.yaml", *options)
    parallel = deployment.parallel
    assert parallel.nodes == 2 and parallel.tp * parallel.pp * parallel.replicas == 16 and parallel.pp % 2 == 0
    assert "over 2 nodes" in text
    assert "2 nodes share a group" in (tmp_path / "two.yaml").read_text().split("\n\n")[0]


def test_limits_that_are_asked_for(tmp_path):
    options = ("--gpus", "1", "--max-sequences", "24", "--max-seq-len", "2000", "--quantization", "fp8")
    _, deployment = init("llama-3.2-1b", tmp_path / "small.yaml", *options)
    limits = deployment.limits
    assert limits.max_sequences == 24 and limits.max_seq_len == 2000 and limits.max_num_tokens <= 2000
    assert deployment.model.quantization == "fp8"


@pytest.mark.thorough
def test_no_layout_has_more_replicas_than_sequences(tmp_path):
    _, deployment = init("llama-3.2-1b", tmp_path / "one.yaml", "--gpus", "2", "--max-sequences", "1")
    assert deployment.limits.max_sequences == 1 and deployment.parallel.replicas == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-sequences", "0"], "Invalid value for '--max-sequences'"),
        (["--max-seq-len", "many"], "Invalid value for '--max-seq-len'"),
        (["--quantization", "int4"], "Invalid value for '--quantization'"),
    ],
)
def test_wrong_usage(tmp_path, options, message):
    result = CliRunner().invoke(cli, ["init", str(SHAPES / "llama-3-8b"), "--output", str(tmp_path / "x"), *options])
    assert result.exit_code == 2 and message in result.output
