"""The GPUs of a group that nobody watches: NVML and the kernel log show those of the first node alone."""

from __future__ import annotations

from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError
from toolkit.monitor.page import Page
from toolkit.serve.group_nodes import hosts_of


class OtherNodes:
    """The nodes of a deployment but the first one, where it is watched."""

    def __init__(self, deployment: Deployment) -> None:
        count = deployment.parallel.nodes
        try:
            hosts = hosts_of(deployment) if count > 1 else ()
        except ToolkitError:  # served by a Slurm job, say, and looked at from outside
            hosts = tuple(f"node {number}" for number in range(count))
        self._gpus = deployment.ranks_here
        self._ranks = {host: deployment.mapping.ranks_on(number) for number, host in enumerate(hosts) if number}

    def fill(self, page: Page) -> None:
        """Say how many GPUs of each are not watched."""
        for host, ranks in self._ranks.items():
            first, last = ranks[0], ranks[-1]
            numbers = str(first) if first == last else f"{first}-{last}"
            page.set("toolkit_gpus_not_watched", self._gpus, node=host, ranks=numbers)

    def __str__(self) -> str:
        """As "node-b, node-c"; "" if there are none."""
        return ", ".join(self._ranks)


def not_watched(page: Page) -> list[str]:
    """A line for each node whose GPUs are not watched."""
    return [
        f"not watched: {gpus:.0f} GPU{'s' if gpus > 1 else ''} of {one['node']} (ranks {one['ranks']})"
        for one, gpus in page.of("toolkit_gpus_not_watched")
    ]
