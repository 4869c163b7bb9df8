"""Slurm: a job that builds, a job that serves until its time is over, and a job that loads it.

A serving job is one node with all replicas, as `toolkit up` serves them behind one door, or the nodes of a group. An
array of it is several such jobs. Options: `man sbatch` of Slurm 22.05, and https://github.com/NVIDIA/pyxis.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.config.deployment import Deployment
from toolkit.config.edit_yaml import moved
from toolkit.config.sections import Cluster
from toolkit.deploy import wheel
from toolkit.deploy.facts import Facts
from toolkit.deploy.text import render
from toolkit.errors import ToolkitError
from toolkit.runtime.images import with_registry_apart
from toolkit.runtime.mounts import mounts
from toolkit.runtime.needs import Needs

SIGNAL_MARGIN_S = 60
"""Slurm checks time limits about once a minute, so its signal may be this many seconds late (man sbatch, --signal)."""
IMAGE = ("Dockerfile", "toolkit.def")
"""What `deploy.image` is built from, for docker and for apptainer."""
STEP = '--mpi=none --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}"'
"""mpirun starts the ranks itself, and must not take over Slurm's variables. A step gets one core unless it asks, since
22.05 (man srun, --cpus-per-task)."""
SCRIPTS = ("build.sbatch", "serve.sbatch", "loadtest.sbatch", "submit.sh")


def files(facts: Facts, directory: Path) -> Mapping[str, bytes]:
    """The files by name. Raises ToolkitError for a runtime or a path that a job cannot use."""
    deployment = facts.deployment
    if deployment.runtime.kind == "docker" and deployment.deploy.image is None:
        what = "runtime.kind: docker starts its containers outside of a job, where Slurm neither limits nor ends them"
        raise ToolkitError(what, where=deployment.file, hint="Use enroot, apptainer or host, or name deploy.image.")
    by_ssh = facts.nodes > 1 and deployment.deploy.image is not None
    if by_ssh and " " in str(deployment.output):
        hint = "Use a path without spaces, or leave deploy.image out."
        raise ToolkitError("mpirun would split the path of what starts ranks there", where=deployment.output, hint=hint)
    values = {
        "facts": facts,
        "deployment": deployment,
        "folder": directory,
        "whole_node": bool(facts.gpus) and facts.gpus == deployment.hardware.gpus,
        "build_gpus": deployment.mapping.ranks_per_node if facts.gpus else 0,
        "first": "--nodes=1 --ntasks=1 --relative=0 " if facts.nodes > 1 else "",
        "loopback": deployment.gateway.on_loopback,
        "scheme": "https" if deployment.gateway.tls else "http",
        "signal_s": facts.end_s + SIGNAL_MARGIN_S,
        "container": _container(deployment, directory),
        "wheel": wheel.FILE,
        "programs": {},  # a cluster has a Prometheus of its own
        "ssh": by_ssh,
    }
    inside: dict[str, Any] = {"runtime": {"kind": "host"}} if deployment.deploy.image else {}
    network = {"interface": deployment.cluster.interface} if deployment.cluster.interface else {}
    if facts.nodes > 1 and deployment.cluster != Cluster():  # the allocation is the hosts, and srun the agent
        inside["cluster"] = network
    built, served = {"output": str(deployment.output), **inside}, {"output": ".", **inside}
    if by_ssh:  # what node.sh writes
        served["cluster"] = {"hostfile": "ssh/hosts", "launch_agent": "ssh/agent", **network}
    if traffic := deployment.monitoring.traffic:
        served["monitoring.traffic"] = traffic.name  # of each job: two would rotate one file at once
    texts = {
        "README.md": render("slurm.md.j2", **values),
        **{name: render(f"{name}.j2", **values) for name in SCRIPTS},
        facts.yaml_name: moved(deployment.file, directory / facts.yaml_name, built, deployment.engine),
        # Each job copies it into a folder of its own, which is then its output.
        f"serve/{facts.yaml_name}": moved(
            deployment.file, directory / "serve" / facts.yaml_name, served, deployment.engine
        ),
    }
    if deployment.deploy.image is None:
        return {name: text.encode() for name, text in texts.items()}
    texts["serve/node.sh"] = render("node.sh.j2", **values)
    texts |= {f"image/{name}": render(f"{name}.j2", **values) for name in IMAGE}
    return {**{name: text.encode() for name, text in texts.items()}, f"image/{wheel.FILE}": wheel.wheel()}


def _container(deployment: Deployment, directory: Path) -> str:
    """The prefix that runs a command in the toolkit's image, by pyxis. "" without `deploy.image`."""
    if deployment.deploy.image is None:
        return ""
    reads = (deployment.model.path, directory, *deployment.gateway.files, *deployment.recovery.fallback)
    listed = mounts(Needs(reads=reads, writes=(deployment.output,)))
    for mount in listed:
        if set(str(mount.path)) & set(",:"):
            hint = "Use a path without them, or leave deploy.image out."
            raise ToolkitError("pyxis cannot mount a path with a comma or a colon in it", where=mount.path, hint=hint)
    flags = ",".join(f"{mount.path}:{mount.path}{'' if mount.write else ':ro'}" for mount in listed)
    options = [f"--container-image={with_registry_apart(deployment.deploy.image)}"]
    options += ["--no-container-mount-home", "--no-container-remap-root", f"--container-mounts={flags}"]
    return f"srun {STEP} {shlex.join(options)} "
