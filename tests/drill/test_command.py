"""toolkit drill where it cannot run, and the files and lines that it leaves."""

from __future__ import annotations

import json

import pytest
import yaml
from click.testing import CliRunner

from tests.commands import toolkit
from tests.drill.hand_made import cut, lost, refused, request, trial
from toolkit.cli.main import cli
from toolkit.config.load import load_deployment
from toolkit.drill import report, wording
from toolkit.drill.failures import FAILURES
from toolkit.drill.promise import Verdict, worst
from toolkit.drill.request import TRITON_GRPC, TRITON_HTTP
from toolkit.drill.run import Drill, Settings
from toolkit.gateway.door import only_one


@pytest.fixture
def config(tmp_path, tiny_llama):
    content = {"model": {"path": str(tiny_llama)}, "engine": "rehearsal", "hardware": {"gpu": "none"}}
    content["limits"] = {"max_seq_len": 256}
    file = tmp_path / "trial.yaml"
    file.write_text(yaml.safe_dump(content | {"output": str(tmp_path / "out")}))
    return file


def test_an_unknown_drill_is_one_line_with_the_known_ones(config):
    done = toolkit("drill", config, "kill-rank", "kill-everything")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("error: 'kill-everything' is not a drill. The drills are: kill-rank, hang-rank, ")
    assert done.stderr.count("\n") == 1


def test_what_is_not_up_is_one_line_that_says_to_start_it(config):
    done = toolkit("drill", config)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == f"error: {config}: is not up. Start it: toolkit up {config} --detach\n"


@pytest.mark.parametrize("options", [["--rate", "0"], ["--rate", "nan"], ["--seconds", "0"]])
def test_a_load_that_is_none(config, options):
    assert toolkit("drill", config, *options).returncode == 3


def test_on_gpus_it_asks_before_it_kills(config):
    on_gpus = config.with_name("gpus.yaml")
    content = yaml.safe_load(config.read_text())
    on_gpus.write_text(yaml.safe_dump({**content, "engine": "tensorrt", "hardware": {"gpus": 1}}))
    with only_one(load_deployment(on_gpus)):
        done = CliRunner().invoke(cli, ["drill", str(on_gpus), "kill-rank", "kill-envoy"], input="n\n")
    assert done.exit_code == 1 and "These drills kill its processes: kill-rank, kill-envoy. Go on? [y/N]" in done.output


def drills():
    by_name = {failure.name: failure for failure in FAILURES}
    times = {"detected": 100.2, "restarted": 101.0, "recovered": 140.0, "migrated": 2, "tries": (2, 2)}
    events = ({"time": 100.2, "part": "replica 0", "event": "ended", "cause": "killed </table>"},)
    good = trial(request(), cut(TRITON_HTTP), **times, events=events, note="SIGKILL to rank 1")
    bad = trial(request(), lost(error="no <answer>"), refused(TRITON_GRPC), **times)
    return [
        Drill(by_name["kill-rank"], Verdict.PASS, (), good),
        Drill(by_name["kill-triton"], Verdict.FAIL, (), bad),
        Drill(by_name["kill-mpirun"], Verdict.SKIPPED, why="one process serves alone"),
    ]


def judged(drill, deployment):
    if drill.trial is None:
        return drill
    found = tuple(promise.judge(drill.trial, deployment) for promise in drill.failure.promises)
    return Drill(drill.failure, worst([one.verdict for one in found]), found, drill.trial)


def test_the_report_holds_what_was_measured(config):
    deployment = load_deployment(config)
    made = [judged(drill, deployment) for drill in drills()]
    report.write(deployment, Settings(rate=2.0), made)
    folder = report.folder(deployment)
    content = json.loads((folder / "drill.json").read_text())
    assert [drill["verdict"] for drill in content["drills"]] == ["PASS", "FAIL", "SKIPPED"]
    assert content["verdict"] == "FAIL"
    first = content["drills"][0]
    assert first["measured"]["cut_triton"] == 1 and first["retried"] == 2 and first["migrated"] == 2
    assert first["requests"][1]["outcome"] == "cut"
    page = (folder / "index.html").read_text()
    assert "requests lost before their first token: 2, promised ≤ 0" in page
    assert "no &lt;answer&gt;" in page and "killed &lt;/table&gt;" in page
    assert (folder.stat().st_mode & 0o777) == 0o700


def test_a_line_says_what_happened_and_which_promise_broke(config):
    deployment = load_deployment(config)
    good, bad, skipped = (wording.line(judged(drill, deployment)) for drill in drills())
    assert good.startswith(
        "kill-rank        PASS      detected 0.2 s, recovered 40.0 s, 2 requests, 0 lost, 0 refused, "
    )
    assert good.endswith("0 + 1 cut, 2 migrated, 2 retried, 0 wrong")
    assert bad.endswith("| requests lost before their first token: 2, promised ≤ 0")
    assert skipped == "kill-mpirun      SKIPPED   one process serves alone"
