"""docker compose: a container that runs `toolkit up`, on the network of the machine, and one for Grafana.

Envoy, Dynamo and Prometheus run inside the first, not as services of their own. `toolkit up` starts, watches and drains
them together with the replicas, and that is what was tested. Docker would restart services without regard to replicas
that load, drain or stand by, and Prometheus would not know the port of Dynamo's front end, which each start chooses.

Keys and meaning: https://github.com/compose-spec/compose-spec.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from toolkit.config.deployment import Deployment
from toolkit.config.edit_yaml import moved
from toolkit.config.load import load_deployment
from toolkit.deploy import grafana, wheel
from toolkit.deploy.facts import Facts
from toolkit.deploy.text import render
from toolkit.errors import ToolkitError
from toolkit.machine.limits import STACK_BYTES
from toolkit.runtime.mounts import mounts
from toolkit.runtime.needs import Needs

PLACE = "/deploy"
"""The path of the deployment's YAML in the container."""


def files(facts: Facts, directory: Path) -> Mapping[str, bytes]:
    """The files by name. Raises ToolkitError for a group over several nodes, and a model folder that cannot be read."""
    deployment = facts.deployment
    if facts.nodes > 1:
        what = f"parallel.nodes: compose starts containers on one machine, and a group needs {facts.nodes}"
        hint = "Use --to slurm or kubernetes, or toolkit up on the first node: docs/how-to/group-over-nodes.md."
        raise ToolkitError(what, where=deployment.file, hint=hint)
    fallbacks = [load_deployment(file) for file in deployment.recovery.fallback]
    reads = (deployment.model.path, *deployment.gateway.files, *deployment.recovery.fallback)
    traffic = deployment.monitoring.traffic
    writes = [deployment.output, *(fallback.output for fallback in fallbacks)]
    if traffic and not any(traffic.is_relative_to(folder) for folder in writes):
        writes.append(traffic.parent)
    values = {
        "facts": facts,
        "deployment": deployment,
        "config": f"{PLACE}/{facts.yaml_name}",
        "mounts": mounts(Needs(reads=reads, writes=tuple(writes))),
        "folders": [deployment.output, *([traffic.parent] if traffic else [])],
        "stack": STACK_BYTES,
        "ssh": False,
        **grafana.values(deployment),
        "wheel": wheel.FILE,
        "door": _door(deployment),
        "make": " && ".join(f"toolkit {stage} {PLACE}/{facts.yaml_name}" for stage in facts.stages),
    }
    texts = {
        **grafana.files(deployment),
        "README.md": render("compose.md.j2", **values),
        "compose.yaml": render("compose.yaml.j2", **values),
        "Dockerfile": render("Dockerfile.j2", **values),
        # The image has the programs itself, so `runtime`, which is for the host, is not used.
        facts.yaml_name: moved(
            deployment.file,
            directory / facts.yaml_name,
            {"output": str(deployment.output), "runtime": {"kind": "host"}},
            deployment.engine,
        ),
    }
    return {**{name: text.encode() for name, text in texts.items()}, wheel.FILE: wheel.wheel()}


def _door(deployment: Deployment) -> str:
    """Where a container on the same machine reaches the door."""
    gateway = deployment.gateway
    host = "127.0.0.1" if gateway.host == "0.0.0.0" else gateway.host
    return f"{'https' if gateway.tls else 'http'}://{host}:{gateway.port}"
