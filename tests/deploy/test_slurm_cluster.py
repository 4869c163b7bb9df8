"""The scripts in a real Slurm of two nodes. pyxis is not in it: a double of `srun` takes its options out."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.deploy.folders import change, copied, deployed
from tests.deploy.slurm_cluster import Slurm, missing_slurm, wait_for
from tests.deploy.test_slurm import DOUBLE
from tests.up.conftest import write_and_build
from tests.up.namespaces import Network
from toolkit.config.load import load_deployment

MISSING = missing_slurm()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=MISSING)]
IMAGE = {"image": "registry.example/team/toolkit:1"}
SRUN = """#!/usr/bin/env bash
# In place of pyxis: the same without its options, which go to a file. What it would mount must be there.
kept=()
for word in "$@"; do
  [ "${word#--container-mounts=}" = "$word" ] && continue
  IFS=, read -ra mounts <<< "${word#*=}"
  for mount in "${mounts[@]}"; do [ -e "${mount%%:*}" ] || { echo "pyxis: no ${mount%%:*}" >&2; exit 1; }; done
done
for word in "$@"; do
  case $word in --container-*|--no-container-*) echo "$word" >> "$SRUN_NOTES" ;; *) kept+=("$word") ;; esac
done
exec /usr/bin/srun "${kept[@]}"
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    folder = tmp_path_factory.mktemp("slurm")
    with Network(2) as network:
        cluster = Slurm(network, folder)
        try:
            cluster.program("srun", SRUN.replace("$SRUN_NOTES", str(folder / "pyxis")))
            cluster.start()
            yield cluster
        finally:
            cluster.end()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return copied("pair", tmp_path)


@pytest.fixture
def doubled(slurm: Slurm) -> Iterator[Slurm]:
    """With a stand-in for `toolkit`, whose ranks would hear a signal that is not for them."""
    rank = "(trap 'echo a rank heard it' TERM; while :; do sleep 0.1; done) &"
    program = slurm.program(
        "toolkit", DOUBLE.replace("trap", f"{rank}\ntrap", 1).replace("exit 0'", "kill -9 $!; exit 0'")
    )
    yield slurm
    program.unlink()


def test_slurm_itself_reads_them(tmp_path, slurm, config):
    for number, more in enumerate(({}, {"deploy": IMAGE}, {"parallel": {"tp": 1, "pp": 2, "nodes": 2, "replicas": 1}})):
        folder = deployed(change(config, **more), "slurm", tmp_path / f"out{number}")
        for script in sorted(folder.glob("*.sbatch")):
            slurm.run("sbatch", "--test-only", str(script))


@pytest.mark.parametrize("more", [{}, {"deploy": IMAGE}], ids=["host", "image"])
def test_the_signal_before_the_end_drains_and_ends_nothing_else(tmp_path, doubled, config, more):
    """With an image it once went through srun, which killed everything in the step at once."""
    folder = deployed(change(config, **more), "slurm", tmp_path / "out")
    job = doubled.run("sbatch", "--parsable", f"--output={tmp_path}/log", str(folder / "serve.sbatch")).strip()
    log = tmp_path / "log"
    wait_for(lambda: "\nup " in (log.read_text() if log.exists() else ""), doubled.logs)
    doubled.run("scancel", "--signal=TERM", "--batch", job)
    wait_for(lambda: doubled.state(job) not in ("RUNNING", "COMPLETING"), doubled.logs)
    assert (doubled.state(job), doubled.field(job, "ExitCode")) == ("COMPLETED", "0:0"), log.read_text()
    assert "drained" in log.read_text() and "a rank heard it" not in log.read_text()


def test_the_build_in_an_image(tmp_path, doubled, config):
    folder = deployed(change(config, deploy=IMAGE), "slurm", tmp_path / "out")
    job = doubled.run("sbatch", "--parsable", f"--output={tmp_path}/log", str(folder / "build.sbatch")).strip()
    wait_for(lambda: doubled.state(job) not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"), doubled.logs)
    assert doubled.state(job) == "COMPLETED", (tmp_path / "log").read_text()
    yaml_in = folder / config.name
    assert (tmp_path / "log").read_text().splitlines() == [f"build {yaml_in}", f"repo {yaml_in}"]


def test_a_node_that_fails_starts_the_job_again(tmp_path, doubled, config):
    folder = deployed(change(config, deploy=IMAGE), "slurm", tmp_path / "out")
    job = doubled.run("sbatch", "--parsable", f"--output={tmp_path}/log", str(folder / "serve.sbatch")).strip()
    wait_for(lambda: doubled.state(job) == "RUNNING", doubled.logs)
    node = doubled.field(job, "NodeList")
    doubled.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    wait_for(lambda: doubled.field(job, "Restarts") == "1", doubled.logs)
    assert doubled.state(job) in ("PENDING", "RUNNING", "CONFIGURING")
    doubled.run("scancel", job)
    wait_for(lambda: not doubled.run("squeue", "--noheader", f"--jobs={job}", check=False).strip(), doubled.logs)


@pytest.mark.skipif(not Path("/usr/sbin/sshd").exists(), reason="needs sshd: apt-get install openssh-server")
def test_a_group_over_two_nodes_in_an_image(tmp_path, slurm, tiny_llama):
    """With a real mpirun, Triton and sshd: ready, asked, and drained while a stream runs."""
    pytest.importorskip("pytriton", reason="needs the extra rehearsal")
    pytest.importorskip("dynamo.llm", reason="needs the extra gateway")
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd of root wants it; that of a user does not
    made = write_and_build(tmp_path, tiny_llama, "made", parallel={"tp": 1, "pp": 2})
    content = yaml.safe_load(made.read_text())
    content |= {"parallel": {"tp": 1, "pp": 2, "nodes": 2}, "deploy": IMAGE, "recovery": {"canary_s": 20}}
    made.write_text(yaml.safe_dump(content))
    folder = deployed(made, "slurm", tmp_path / "out")
    job = slurm.run("sbatch", "--parsable", f"--output={tmp_path}/log", str(folder / "serve.sbatch")).strip()
    log, node = tmp_path / "log", load_deployment(made).output / "slurm/0"

    def ready() -> bool:
        text = log.read_text() if log.exists() else ""
        assert not text or slurm.state(job) in ("PENDING", "CONFIGURING", "RUNNING"), text + slurm.logs()
        return "ready: http" in text

    wait_for(ready, slurm.logs, 240)
    assert (node / "ssh/hosts").read_text().split() == ["node1", "node2"]
    assert (node / "ssh").stat().st_mode & 0o077 == 0
    body = {"model": "llama", "prompt": "Shall I", "max_tokens": 200, "ignore_eos": True, "temperature": 0}
    url = f"http://127.0.0.1:{content['gateway']['port']}/v1/completions"
    there = ["ip", "netns", "exec", slurm.network.name(1)]
    curl = ["curl", "--silent", "--no-buffer", "--noproxy", "*", "--json", json.dumps({**body, "stream": True}), url]
    stream = subprocess.Popen([*there, *curl], stdout=subprocess.PIPE, text=True)
    assert stream.stdout.readline().startswith("data: ")
    slurm.run("scancel", "--signal=TERM", "--batch", job)
    assert stream.stdout.read().endswith("data: [DONE]\n\n"), log.read_text()
    assert stream.wait(60) == 0
    wait_for(lambda: slurm.state(job) not in ("RUNNING", "COMPLETING"), slurm.logs)
    assert (slurm.state(job), slurm.field(job, "ExitCode")) == ("COMPLETED", "0:0"), log.read_text()
    notes = (slurm.folder / "pyxis").read_text()
    assert "--container-image=registry.example#team/toolkit:1" in notes and "--no-container-remap-root" in notes
    left = {name for number in (1, 2) for name in slurm.running(number)}
    assert left <= {"unshare", "slurmd", "sh"}, left
