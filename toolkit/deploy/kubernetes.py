"""Kubernetes: a Helm chart. A pod is one node: `toolkit up` with its door and all replicas of the YAML.

A group over several nodes is a LeaderWorkerSet: the first pod is that one, the others wait for its ssh.

The templates in toolkit/deploy/chart are the same for every deployment; values.yaml has the differences. API:
https://kubernetes.io/docs/reference/generated/kubernetes-api/v1.35/.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from toolkit.config.deployment import Deployment
from toolkit.config.edit_yaml import moved
from toolkit.deploy import kubernetes_nodes, wheel
from toolkit.deploy.facts import Facts
from toolkit.deploy.text import render
from toolkit.errors import ToolkitError
from toolkit.files.distribution import VERSION

DATA = "/data"
SECRETS = "/run/toolkit"
TRAFFIC = "/traffic"
LEAVE_S = 10
"""Seconds until kube-proxy and gateways know that a pod has left the service."""
LOADS = 2
"""Load budgets until Kubernetes restarts the pod: `toolkit up` may have started a replica again once by then."""
EVERYWHERE = "0.0.0.0"


def files(facts: Facts, directory: Path) -> Mapping[str, bytes]:
    """The files by their paths. Raises ToolkitError for a deployment that a cluster cannot run as it is."""
    deployment = facts.deployment
    _check(deployment)
    kubernetes_nodes.check(facts)
    values = _values(facts, directory)
    inside = moved(deployment.file, Path(DATA, facts.yaml_name), _changes(facts, values), deployment.engine)
    texts = {
        "README.md": render("kubernetes.md.j2", **values),
        "image/Dockerfile": render("Dockerfile.j2", **values),
        "chart/Chart.yaml": render("Chart.yaml.j2", **values),
        "chart/values.yaml": render("values.yaml.j2", **values),
        f"chart/files/{facts.yaml_name}": inside,
    }
    templates = resources.files("toolkit.deploy").joinpath("chart", "templates").iterdir()
    return {
        **{name: text.encode() for name, text in texts.items()},
        **{f"chart/templates/{template.name}": template.read_bytes() for template in templates},
        f"image/{wheel.FILE}": wheel.wheel(),
    }


def _check(deployment: Deployment) -> None:
    examples = {"image": "REGISTRY/NAME:TAG", "claim": "NAME"}
    if absent := [field for field in examples if getattr(deployment.deploy, field) is None]:
        fields = " and ".join(f"deploy.{field}" for field in absent)
        need = "it, and it is" if len(absent) == 1 else "them, and they are"
        hint = f"Add deploy: {{{', '.join(f'{field}: {examples[field]}' for field in absent)}}}."
        raise ToolkitError(f"{fields}: Kubernetes needs {need} not given", where=deployment.file, hint=hint)
    if deployment.recovery.fallback:
        what = "recovery.fallback: uses the GPUs that are left on a machine; Kubernetes moves the pod to another one"
        raise ToolkitError(what, where=deployment.file, hint="Deploy a copy of the YAML without it.")


def _values(facts: Facts, directory: Path) -> dict[str, Any]:
    """What the templates of the texts need."""
    deployment, gateway = facts.deployment, facts.deployment.gateway
    replicas = deployment.per_replica()
    model_sub, output_sub = f"models/{deployment.model.path.name}", f"work/{deployment.name}"
    config = f"/deploy/{facts.yaml_name}"
    return {
        "facts": facts,
        "deployment": deployment,
        "folder": directory,
        "version": VERSION,
        "wheel": wheel.FILE,
        "model_sub": model_sub,
        "model_path": f"{DATA}/{model_sub}",
        "output_sub": output_sub,
        "output_path": f"{DATA}/{output_sub}",
        "ssh": facts.nodes > 1,
        "ssh_secret": f"{facts.dns_name}-ssh" if facts.nodes > 1 else "",
        "ssh_folder": f"{SECRETS}/ssh",
        "programs": {},  # Kubernetes has a Prometheus of its own
        "traffic": TRAFFIC if deployment.monitoring.traffic else "",
        "reads": [*(["engine"] if deployment.kind.engine_files else []), "repository"],
        "make": " && ".join(f"toolkit {stage} {config}" for stage in facts.stages),
        "metrics_ports": [replica.serving.metrics_port for replica in replicas],
        "start_s": LOADS * round(facts.load.seconds),
        "leave_s": LEAVE_S,
        "keys_secret": f"{facts.dns_name}-keys" if gateway.keys_file else "",
        "keys_file": f"{SECRETS}/keys/keys.txt",
        "tls_secret": f"{facts.dns_name}-tls" if gateway.tls else "",
        "tls_folder": f"{SECRETS}/tls",
        "waiting": max(1, deployment.limits.max_sequences // 8),
        "kv": f"{850 * len(replicas)}m",
        **kubernetes_nodes.values(facts, SECRETS),
    }


def _changes(facts: Facts, values: Mapping[str, Any]) -> dict[str, Any]:
    """What is different in a pod."""
    deployment = facts.deployment
    changes: dict[str, Any] = {
        "output": values["output_path"],
        "runtime": {"kind": "host"},  # the programs are in the image
        "model.path": values["model_path"],
        "gateway.host": EVERYWHERE,  # a pod has its own address
        **kubernetes_nodes.changes(facts, values["node_folder"]),
    }
    if deployment.parallel.nodes > 1:  # what group-files.yaml writes
        changes["cluster"] = {"hostfile": "/tmp/hosts", "launch_agent": "/group/agent"}
    if traffic := deployment.monitoring.traffic:
        changes["monitoring.traffic"] = f"{TRAFFIC}/{traffic.name}"
    if deployment.gateway.keys_file:
        changes["gateway.keys_file"] = values["keys_file"]
    if deployment.gateway.tls:
        folder = values["tls_folder"]  # the names of the files are those of a secret of type tls
        changes["gateway.tls"] = {"certificate": f"{folder}/tls.crt", "key": f"{folder}/tls.key"}
    return changes
