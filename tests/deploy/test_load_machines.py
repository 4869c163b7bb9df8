"""Load from many machines in each of the three forms: what collects, what sends, and how they find each other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from tests.deploy.folders import SITE, change, deployed
from tests.deploy.strict import problems
from tests.deploy.test_kubernetes import helm
from tests.deploy.test_slurm import Job
from toolkit.config.load import load_deployment

SRUN = '#!/bin/sh\nwhile [ "${1#--}" != "$1" ]; do echo "srun $1"; shift; done\nexec "$@"\n'


def serving_job(config: Path, tmp_path: Path, **programs: str) -> tuple[Path, Path]:
    """The folder for Slurm, and that of a job which serves on this node. `programs` stand in for those of that name."""
    folder = deployed(config, "slurm", tmp_path / "out")
    node = load_deployment(config).output / "slurm/0"
    node.mkdir(parents=True)
    (node / "host").write_text(f"{os.uname().nodename}\n")
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return folder, node


def test_slurm_s_tasks_send_and_its_first_node_collects(tmp_path, config):
    """`srun` and `hostname` are stand-ins; what they are told is in the log. What collects ends last."""
    collects = 'case "$*" in *--workers*) until grep -q "^loadtest .*--join" job.log; do sleep 0.1; done;; esac\n'
    srun = SRUN.replace("exec", collects + "exec")
    folder, node = serving_job(config, tmp_path, srun=srun, hostname="#!/bin/sh\necho 10.0.0.7 10.1.0.7\n")
    job = Job(folder / "loadtest.sbatch", tmp_path, "0", "--rate", "40", SLURM_NTASKS="8")
    assert job.end() == 0
    said = job.log.read_text().splitlines()
    test = f"loadtest {node / config.name} --target http://127.0.0.1:8080 --rate 40"
    assert f"{test} --join 10.0.0.7" in said and f"{test} --workers 8 --listen 10.0.0.7" in said
    assert {"srun --ntasks=8", "srun --ntasks=1", f"srun --nodelist={os.uname().nodename}"} <= set(said)


def test_slurm_hands_on_the_verdict(tmp_path, config):
    srun = '#!/bin/sh\ncase "$*" in *--workers*) exit 2;; esac\nexec sleep 600\n'
    folder, _ = serving_job(config, tmp_path, srun=srun)
    assert Job(folder / "loadtest.sbatch", tmp_path, "0", SLURM_NTASKS="2").end() == 2, "and who sends is ended"


def test_compose_scales_what_sends(tmp_path, config):
    folder = deployed(config, "compose", tmp_path / "out")
    services = yaml.safe_load((folder / "compose.yaml").read_text())["services"]
    collects, sends = services["loadtest"], services["loadtest-worker"]
    assert collects["profiles"] == sends["profiles"] == ["loadtest"], "not started with the rest"
    assert collects["entrypoint"] == sends["entrypoint"]
    assert collects["entrypoint"][:2] == ["toolkit", "loadtest"]
    assert collects["entrypoint"][-1] == "${TOOLKIT_DOOR:-http://127.0.0.1:8080}"
    assert sends["command"] == ["--join", "${TOOLKIT_MASTER:-127.0.0.1}"] and "command" not in collects


def test_compose_s_load_needs_no_gpu(tmp_path):
    flagship = Path(__file__).parent / "golden/compose/flagship/compose.yaml"
    services = yaml.safe_load(flagship.read_text())["services"]
    assert services["serve"]["deploy"]["resources"] and services["loadtest"]["deploy"] == {}
    assert services["loadtest-worker"]["deploy"] == {}


@pytest.fixture
def chart(tmp_path: Path, config: Path) -> Path:
    return deployed(change(config, deploy=SITE), "kubernetes", tmp_path / "out") / "chart"


def test_kubernetes_runs_an_indexed_job(chart):
    values = ["--set=loadtest.enabled=true", "--set=loadtest.workers=3", "--set=loadtest.options={--rate,40}"]
    text = helm("template", "r", chart, *values, "--show-only=templates/loadtest.yaml")
    service, job = yaml.safe_load_all(text)
    assert problems(service) == problems(job) == []
    spec = job["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 4, 4)
    pod = spec["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"] and service["spec"]["clusterIP"] == "None"
    labels = spec["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == labels
    script, *arguments = pod["containers"][0]["command"][2:]
    assert arguments == ["loadtest", "--rate", "40"] and "--workers 3 --listen 0.0.0.0" in script
    assert f"--join {job['metadata']['name']}-0.{service['metadata']['name']};" in script
    policy = yaml.safe_load(helm("template", "r", chart, "--show-only=templates/networkpolicy.yaml"))
    chosen = policy["spec"]["podSelector"]["matchLabels"]
    assert chosen["app.kubernetes.io/name"] != labels["app.kubernetes.io/name"], "that lets nothing out"


def test_kubernetes_loads_only_when_asked_to(chart):
    kinds = [one["kind"] for one in yaml.safe_load_all(helm("template", "r", chart)) if one]
    assert "Job" not in kinds and kinds.count("Service") == 1
