"""`toolkit plan` as it is typed: what it prints, what its JSON holds, what it refuses."""

import json
import subprocess
import sys
import time
from pathlib import Path
from subprocess import DEVNULL, PIPE

import pytest
import yaml
from click.testing import CliRunner, Result

from toolkit.cli.main import cli
from toolkit.errors import ToolkitError
from toolkit.steptimes.step import StepWork

FLAGSHIP = Path(__file__).parents[2] / "build_configs" / "llama3-70b-h100-pp4tp2-fp16.yaml"

pytestmark = pytest.mark.usefixtures("remembered")

SHORT = {"workload": {"rate": 3, "requests": 60, "output_tokens": 16}}


MET = {"slo": {"ttft_ms": {"p99": 60_000}}}
MISSED = {"slo": {"ttft_ms": {"p99": 1}}}


def ran(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["plan", *map(str, arguments)])


def plan(*arguments: object) -> str:
    result = ran(*arguments)
    if result.exception:
        raise result.exception
    return result.stdout


def test_each_target_has_limit_prediction_margin_and_verdict(flagship):
    file = flagship(**SHORT)
    text, data = plan(file), json.loads(plan(file, "--json"))
    targets = {target["name"]: target for target in data["prediction"]["targets"]}
    assert len(targets) == 9
    rows = {line.split("  ")[0]: line for line in text.splitlines()}
    for target in targets.values():
        row = rows[target["label"]]
        assert row.endswith("PASS" if target["passed"] else "FAIL")
        assert f"{abs(target['margin']) * 100:,.{0 if abs(target['margin']) >= 0.1 else 1}f} %" in row
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.thorough
def test_comparing_for_another_machine(flagship):
    """A layout that needs more GPUs than there are is put aside; the table's own memory counts."""
    text = plan(flagship(**SHORT), "--compare", "--gpus", 4, "--hardware", "h200-sxm")
    assert "2 x tp2" in text and "yours" not in text.split("layout ")[1].split("best")[0]
    assert max(map(len, text.splitlines())) <= 100
    data = json.loads(plan(flagship(**SHORT), "--compare", "--json"))["comparison"]
    assert data["own"] == "pp4 x tp2" and len(data["layouts"]) == 10
    assert all(layout["reason"] for layout in data["layouts"])


def test_a_rate_that_no_layout_meets_says_the_best_reachable(flagship):
    slo = {"slo": {"ttft_ms": {"p99": 1500}, "requests_per_s": 1000}}
    assert "no layout meets the SLO; the best reachable is" in plan(flagship(**SHORT, **slo), "--compare", "--gpus", 4)
    slow = {"slo": {"tpot_ms": {"p50": 1}, "requests_per_s": 8}}
    assert "no layout meets the latencies at any rate;" in plan(flagship(**SHORT, **slow), "--compare", "--gpus", 4)


def test_comparing_where_the_own_layout_or_none_fits(flagship):
    """A layout that does not fit is a row with its reason, and keeps nobody from seeing the others."""
    own = flagship(**SHORT, parallel={"tp": 2, "pp": 1, "replicas": 2}, hardware__gpus=4)
    text = plan(own, "--compare")
    assert "does not fit by 4.5 GiB" in text and "yours, 2 x tp2" in text
    data = json.loads(plan(own, "--compare", "--json"))
    assert "prediction" not in data and data["comparison"]["best"] == "tp4"
    assert "no layout fits" in plan(flagship(**SHORT), "--compare", "--hardware", "l40s", "--gpus", 1)


@pytest.mark.thorough
def test_what_if_takes_several(flagship):
    data = json.loads(plan(flagship(**SHORT), "--json", "--what-if", "max_batch_size=128", "dtype=fp8", "rate=12"))
    assert data["max_batch_size_per_micro_batch"] == 128
    assert data["model"]["quantization"] == "fp8" and data["prediction"]["workload"]["rate"] == 12


def test_a_calibration_is_predicted_with_and_shown(flagship, tmp_path):
    """Kernels twice as slow as the table's must be predicted, and shown as 2.00 times the table."""
    from toolkit.config.load import load_deployment
    from toolkit.sizing.gpus import GPUS
    from toolkit.steptimes.fit import Timing, closed_form, predicted_s

    file = flagship(**SHORT)
    deployment = load_deployment(file)
    form = closed_form(deployment.shape, GPUS["h100-sxm"], 2, fp8=False)
    rows = []
    for part, sizes in (("linear", ((1, 0), (16, 0), (256, 0), (1024, 0), (4096, 0))), ("lm_head", ((1, 0), (16, 0)))):
        for tokens, context in sizes:
            seconds = 2 * predicted_s(form, Timing(part, 2, tokens, context, 1.0))
            rows.append({"part": part, "tp": 2, "tokens": tokens, "context": context, "seconds": seconds})
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    content = {
        "format": "toolkit-step-times/1",
        "kind": "layers",
        "device": {"cores": 132},
        "dtype": "float16",
        "model": {name: getattr(deployment.shape, name) for name in names},
        "rows": rows,
    }
    measured = tmp_path / "calibration.json"
    measured.write_text(json.dumps(content))
    text = plan(file, "--calibration", measured)
    assert "2.00 (2.00 to 2.00)" in text and "table refitted by" in text
    slow, fast = (json.loads(plan(file, "--json", *more))["prediction"] for more in (("--calibration", measured), ()))
    assert 1.7 < slow["decode_step_ms"] / fast["decode_step_ms"] < 2.0  # attention and all-reduces stay the table's


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rate=3"], "Got 'rate=3' after CONFIG. Settings follow --what-if."),
        (["--calibration", "x.json", "--estimator", "aiconfigurator"], "two sources of step times"),
        (["--gpus", "0"], "Invalid value for '--gpus'"),
        (["--objective", "fun"], "Invalid value for '--objective'"),
        (["--write", "x.yaml"], "--write needs changed settings: --what-if NAME=VALUE."),
        (["--write", "x.yaml", "--gpus", "4", "--compare"], "--write cannot be combined with --compare"),
        (["--force"], "--force needs --write."),
    ],
)
def test_wrong_usage(flagship, arguments, message):
    result = CliRunner().invoke(cli, ["plan", str(flagship(**SHORT)), *arguments])
    assert result.exit_code == 2 and message in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hardware", "h900"], "hardware: 'h900' is unknown. Use h100-sxm"),
        (["--gpus", "4"], "parallel: tp 2 x pp 4 needs 8 GPUs, hardware.gpus is 4"),
        (["--calibration", "nowhere.json"], "nowhere.json: no such file. Make one with: toolkit calibrate CONFIG"),
        (["--html", "nowhere/plan.html"], "nowhere/plan.html: cannot be written"),
        (["--what-if", "tp=4", "pp=2", "--write", "nowhere/x.yaml"], "nowhere/x.yaml: cannot be written"),
    ],
)
def test_a_mistake_is_one_line(flagship, arguments, message):
    with pytest.raises(ToolkitError, match=message) as error:
        plan(flagship(**SHORT), *arguments)
    assert "\n" not in str(error.value)


def test_what_cannot_be_written_is_said_before_the_work(flagship, tmp_path):
    """Nothing has been printed by then."""
    (tmp_path / "folder").mkdir()
    for target, message in (("folder", "is a directory, expected a file"), ("no/plan.html", "cannot be written: No")):
        result = ran(flagship(**SHORT), "--html", tmp_path / target)
        assert result.stdout == "" and message in str(result.exception)


def test_checking_for_ci(flagship):
    """0 where the SLO is met, 1 where it is missed, 3 where nothing can be said; without --check always 0."""
    missed = flagship(**SHORT, **MISSED)
    assert ran(missed, "--check").exit_code == 1
    assert json.loads(ran(missed, "--check", "--json").stdout)["prediction"]["meets_slo"] is False
    assert ran(missed).exit_code == 0
    assert ran(flagship(**SHORT, **MET), "--check").exit_code == 0
    idle = flagship(**SHORT, slo={"ttft_ms": {"p99": 60_000}, "gpu_utilisation": [0.98, 0.99]})
    assert "FAIL" in ran(idle).stdout and ran(idle, "--check").exit_code == 1, "the exit code is the printed verdict"
    error = ran(flagship(**SHORT, hardware__gpu="h900"), "--check").exception
    assert isinstance(error, ToolkitError) and error.exit_code == 3


def test_next_names_what_was_planned(flagship, tmp_path):
    """What no file says yet is to be written first, and then built."""
    file, target = flagship(**SHORT, **MET), tmp_path / "small.yaml"
    assert f"next: toolkit build {file}" in ran(file).stderr
    changed = ran(file, "--what-if", "max_num_tokens=256", "--gpus", 8).stderr
    assert f"next: toolkit plan {file} --what-if limits.max_num_tokens=256 --write changed-changed.yaml" in changed
    rehearsed = ran(file, "--engine", "rehearsal").stderr
    assert f"next: toolkit build {file} --engine rehearsal" in rehearsed
    written = ran(file, "--what-if", "max_num_tokens=256", "--write", target).stderr
    assert f"written: {target}\nnext: toolkit build {target}" in written
    assert "max_num_tokens: 256" in target.read_text()
    again = ran(file, "--what-if", "max_num_tokens=512", "--write", target)
    assert "is already there" in str(again.exception) and "max_num_tokens: 256" in target.read_text()


def test_layouts_are_said_in_words(flagship):
    text = plan(flagship(**SHORT, parallel={"tp": 4, "replicas": 2}))
    assert "layout      2 x tp4: 2 replicas of one stage on 4 GPUs" in text


@pytest.mark.slow
def test_sigterm_leaves_no_page_that_was_begun(flagship, tmp_path):
    """In the middle of the work: the first half is printed by then."""
    arguments = ["plan", FLAGSHIP, "--html", tmp_path / "plan.html"]
    process = subprocess.Popen([sys.executable, "-m", "toolkit", *arguments], stdout=PIPE, stderr=DEVNULL)
    process.stdout.readline()
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143 and list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_sigterm_leaves_no_yaml_that_init_has_begun(tmp_path):
    model, output = tmp_path / "model", tmp_path / "out"
    model.mkdir(), output.mkdir()
    config = yaml.safe_load(FLAGSHIP.read_text())["model"]["config"]
    (model / "config.json").write_text(json.dumps(config))
    process = subprocess.Popen(
        [sys.executable, "-m", "toolkit", "init", model, "--output", output / "made.yaml"],
        stdout=DEVNULL,
        stderr=DEVNULL,
    )
    while not list(output.iterdir()):
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    assert process.wait(60) == 143 and list(output.iterdir()) == []


def test_the_page_is_written_beside_the_text(flagship, tmp_path):
    page = tmp_path / "plan.html"
    plan(flagship(**SHORT), "--html", page)
    assert page.read_text().lower().startswith("<!doctype html>")
    assert [path.name for path in tmp_path.glob("*partial*")] == []


def test_steps_are_counted_as_the_simulator_counts_them():
    assert StepWork(10, 55, 1, 3, 300, 4).tokens == 13


@pytest.mark.parametrize(
    ("workload", "said"),
    [
        ("foo", "workload: 'foo' is not a trace. Use trace:FILE"),
        ("trace:", "workload: 'trace:' is not a trace. Use trace:FILE"),
        ("trace:none #2: all.jsonl", "none #2: all.jsonl: cannot be read: No such file or directory"),
    ],
)
def test_a_workload_that_is_no_trace_is_one_line(workload, said):
    with pytest.raises(ToolkitError) as error:
        plan(FLAGSHIP, "--workload", workload)
    assert said in str(error.value)
