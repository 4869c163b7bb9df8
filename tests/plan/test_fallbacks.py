"""What the plan says of the deployments that take over when a GPU is lost."""

import json

import pytest
import yaml
from click.testing import CliRunner

from tests.plan.conftest import FLAGSHIP
from toolkit.cli.main import cli
from toolkit.config.fallbacks import fallbacks_of
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.plan.fallbacks import plan_fallback
from toolkit.plan.predict import predict
from toolkit.plan.show.report import fallback_text
from toolkit.up.fallback import capacity_left, load_fallbacks

SMALL = FLAGSHIP.with_name("llama3-70b-h100-tp4-fp16.yaml")
SHORT = {"workload": {"rate": 3, "requests": 60, "output_tokens": 8}}


def beside(folder, name, **changes):
    """A copy of the small deployment with other settings."""
    file = folder / name
    file.write_text(yaml.safe_dump({**yaml.safe_load(SMALL.read_text()), "output": str(folder / name), **changes}))
    return file


def test_capacity_on_the_gpus_that_are_left(flagship, tmp_path):
    deployment = load_deployment(flagship(**SHORT, recovery={"fallback": [str(SMALL)]}))
    [fallback] = fallbacks_of(deployment)
    own = predict(deployment)
    planned = plan_fallback(deployment, fallback, own)
    alone = predict(load_deployment(beside(tmp_path, "same-load.yaml", **SHORT))).capacity
    assert (planned.saturated, planned.highest) == (alone.saturated, alone.highest or 0.0)
    assert planned.share == planned.saturated / own.capacity.saturated < 1
    text = fallback_text([planned])
    assert text.startswith(f"fallback    llama3-70b-h100-tp4-fp16: 4 of 8 GPUs, {planned.share:.0%} of the capacity\n")
    assert max(map(len, text.splitlines())) <= 100
    assert capacity_left(deployment, fallback) == str(planned), "toolkit up says the same"
    too_small = plan_fallback(deployment, load_deployment(beside(tmp_path, "tp2.yaml", parallel={"tp": 2})), own)
    assert "2 of 8 GPUs; does not fit: the KV pool holds 0 tokens" in str(too_small)
    assert "its capacity needs a calibration" in str(plan_fallback(deployment, fallback, None))


def test_a_rehearsal_says_how_many_ranks_are_left(rehearsals):
    result = CliRunner().invoke(cli, ["plan", str(rehearsals)])
    assert "small: 1 of 2 GPUs\n            its capacity needs a calibration" in result.stdout
    [fallback] = json.loads(CliRunner().invoke(cli, ["plan", str(rehearsals), "--json"]).stdout)["fallbacks"]
    assert (fallback["gpus"], fallback["fits"]) == (1, True)


@pytest.fixture
def rehearsals(tmp_path, tiny_llama):
    """The YAML of two ranks, whose fallback has one."""
    same = {"engine": "rehearsal", "model": {"path": str(tiny_llama)}, "hardware": {"gpu": "none"}}
    same["limits"] = {"max_num_tokens": 256, "max_seq_len": 256}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({**same, "output": str(tmp_path / "small")}))
    more = {"parallel": {"tp": 2}, "recovery": {"fallback": ["small.yaml"]}, "output": str(tmp_path / "large")}
    (tmp_path / "large.yaml").write_text(yaml.safe_dump({**same, **more}))
    return tmp_path / "large.yaml"


def test_one_that_cannot_take_over_is_said_before_the_plan(rehearsals):
    small = rehearsals.with_name("small.yaml")
    small.write_text(yaml.safe_dump({**yaml.safe_load(small.read_text()), "parallel": {"replicas": 2}}))
    with pytest.raises(ToolkitError, match=r"recovery.fallback: small.yaml has 2 replicas. Use one with"):
        fallbacks_of(load_deployment(rehearsals))
    for command in ("plan", "build", "repo"):
        result = CliRunner().invoke(cli, [command, str(rehearsals)])
        assert result.exit_code and "small.yaml has 2 replicas" in str(result.exception)
        assert result.stdout == ""


def test_one_that_is_not_there_names_the_field(rehearsals):
    rehearsals.with_name("small.yaml").unlink()
    result = CliRunner().invoke(cli, ["plan", str(rehearsals)])
    assert str(result.exception).startswith(f"{rehearsals}: recovery.fallback: ") and result.stdout == ""
    assert "small.yaml: no such file. Name the YAML of a smaller deployment" in str(result.exception)


def test_build_and_repo_make_it_too_and_the_doctor_looks_for_it(rehearsals):
    def run(*command):
        return CliRunner().invoke(cli, [*command, str(rehearsals)])

    def check():
        return next(c for c in json.loads(run("doctor", "--json").stdout)["checks"] if c["name"] == "fallback small")

    assert check()["status"] == "error" and "toolkit build" in check()["fix"]
    for command, folder in (("build", "engine"), ("repo", "repository")):
        assert run(command).exit_code == 0
        assert (rehearsals.parent / "small" / folder / "lock.json").is_file()
    assert (check()["status"], check()["found"]) == ("ok", "made, for 1 of 2 GPUs")


def test_engine_pytorch_has_one_too_of_which_only_the_repository_is_made(rehearsals):
    def check():
        checks = json.loads(CliRunner().invoke(cli, ["doctor", "--json", str(rehearsals)]).stdout)["checks"]
        return next(one for one in checks if one["name"] == "fallback small")

    for file in (rehearsals, rehearsals.with_name("small.yaml")):
        content = yaml.safe_load(file.read_text())
        del content["hardware"]
        short = {"prompt_tokens": 64, "output_tokens": 8, "requests": 20}
        file.write_text(yaml.safe_dump({**content, "engine": "pytorch", "workload": short}))
    plan = CliRunner().invoke(cli, ["plan", str(rehearsals)])
    assert "small: 1 of 2 GPUs" in plan.stdout, plan.exception
    assert check()["status"] == "error" and "toolkit repo" in check()["fix"]
    assert CliRunner().invoke(cli, ["repo", str(rehearsals)]).exit_code == 0
    assert (check()["status"], check()["found"]) == ("ok", "made, for 1 of 2 GPUs")
    assert [one.name for one in load_fallbacks(load_deployment(rehearsals))] == ["small"]
