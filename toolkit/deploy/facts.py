"""The facts behind the files of every target. They come from the YAML alone, not from this machine's disks or GPUs."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from toolkit.config.capabilities import check_can_be_served
from toolkit.config.deployment import Deployment
from toolkit.files.distribution import VERSION
from toolkit.gateway.door import longest_end_s
from toolkit.runtime.images import image
from toolkit.serve.budget import Budget, budget_elsewhere
from toolkit.serve.preflight import GPU_SHARED_MEMORY_BYTES

LONGEST_DNS = 40
"""Longest name of ours in Kubernetes, in characters. A label has at most 63."""


@dataclass(frozen=True)
class Facts:
    """One deployment as every target sees it. A node, or `nodes` of them, serve all its replicas behind one door."""

    deployment: Deployment
    dns_name: str
    """The deployment's name, as compose, Kubernetes and DNS take it."""
    base_image: str
    image: str
    """The image with the toolkit in it."""
    nodes: int
    """The nodes of each group (parallel.nodes). What follows is of one of them."""
    ranks: int
    gpus: int
    """0 for a rehearsal."""
    cores: int | None
    memory_bytes: int | None
    """None for a rehearsal, which takes what the machine gives."""
    shm_bytes: int
    load: Budget
    end_s: int
    """Seconds from the request to stop until the end: the door drains, then the replicas."""
    extras: str

    @property
    def yaml_name(self) -> str:
        """The file of the deployment in the folder. Its stem is the deployment's name."""
        return f"{self.deployment.name}.yaml"

    @property
    def stages(self) -> tuple[str, ...]:
        """The commands that make what is served."""
        return ("build", "repo") if self.deployment.kind.engine_files else ("repo",)


def facts_of(deployment: Deployment) -> Facts:
    """Raises ToolkitError if it cannot be served, or if NVIDIA has no image with its release."""
    check_can_be_served(deployment)
    on_gpus, hardware, nodes = deployment.kind.on_gpus, deployment.hardware, deployment.parallel.nodes
    ranks, name = deployment.all_ranks // nodes, _dns(deployment.name)
    return Facts(
        deployment=deployment,
        dns_name=name,
        base_image=image(deployment),
        image=deployment.deploy.image or f"toolkit-{name}:{VERSION}",
        nodes=nodes,
        ranks=ranks,
        gpus=ranks if on_gpus else 0,
        cores=hardware.cores_per_gpu * ranks if on_gpus else None,
        memory_bytes=round(hardware.host_memory_gb * 1e9) if on_gpus else None,
        # One more than the groups need: a replica that starts again finds room next to one that runs.
        shm_bytes=GPU_SHARED_MEMORY_BYTES * (1 + len(deployment.per_replica())),
        load=budget_elsewhere(deployment),
        end_s=math.ceil(longest_end_s(deployment)),
        # The GPU image has its own PyTorch. Only the extra `rehearsal` would bring another one.
        extras="gateway,loadtest,monitor" if on_gpus else "gateway,loadtest,monitor,rehearsal",
    )


def _dns(name: str) -> str:
    """Lower case, digits and '-'; begins and ends with a letter or a digit."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower())[:LONGEST_DNS].strip("-")
