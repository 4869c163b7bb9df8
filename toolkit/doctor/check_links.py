"""Checks on which GPUs the ranks run, and how these GPUs reach each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from typing import TYPE_CHECKING

from toolkit.doctor.check import Check, Status, needs_gpus, verdict
from toolkit.doctor.check_gpus import VISIBLE_GPUS, kind
from toolkit.doctor.machine import Machine
from toolkit.doctor.ranks import gpus_of_ranks, placement_of, topology
from toolkit.errors import ToolkitError
from toolkit.machine.placement import Group, Placement, group_text, place, placement_lines
from toolkit.machine.topology import TABLE, UNKNOWN, Topology, is_nvlink, speed
from toolkit.machine.visible import VISIBLE, visible_devices

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment


def nvlink(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """NVLink between the ranks of each tensor parallel group: they exchange the result of every layer."""
    links, chosen = topology(machine), _chosen(machine, deployment)
    if deployment is None or chosen is None:
        ways = Counter(links.way(a, b) for a, b in combinations(links.gpus, 2))
        if ways:
            found = f"{sum(number for way, number in ways.items() if is_nvlink(way))} of {ways.total()} pairs of GPUs"
            yield Check("NVLink", "ok", found + _unknown(ways))
        return
    ways = Counter(links.way(a, b) for group in chosen.groups for a, b in combinations(group, 2))
    if not ways:
        return
    slow = [group for group in chosen.groups if _has_pcie(links, group)]
    found = f"{sum(number for way, number in ways.items() if is_nvlink(way))} of {ways.total()} pairs{_unknown(ways)}"
    needed = f"it between the {deployment.parallel.tp} GPUs of each stage"
    if not slow:
        yield verdict("NVLink", not ways[UNKNOWN], found, needed, "See nvidia-smi topo -m.", "warning")
        return
    found += "; over PCIe: GPUs " + ", ".join("-".join(map(str, group)) for group in slow)
    status, fix = _without_nvlink(machine, deployment, chosen, links)
    yield Check("NVLink", status, found, needed, fix)


def _without_nvlink(machine: Machine, deployment: Deployment, chosen: Placement, links: Topology) -> tuple[Status, str]:
    if _slower(chosen, links):
        return "warning", "It works, but slowly. Other GPUs of this machine have faster links: see below."
    if any(kind(gpu.name).endswith("-sxm") for gpu in gpus_of_ranks(machine, deployment)):
        fix = "SXM GPUs have NVLink, so it is down: systemctl status nvidia-fabricmanager; nvidia-smi nvlink -s"
        return "error", fix
    return "warning", "It works, but slowly. Lower parallel.tp and raise parallel.pp, or use GPUs with NVLink."


def placement(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """The GPUs and layers of each stage, and whether other GPUs of this machine would be faster."""
    chosen, links = _chosen(machine, deployment), topology(machine)
    if deployment is None or chosen is None:
        return
    for line in placement_lines(chosen, links, deployment.shape.num_hidden_layers):
        yield Check("placement", "ok", line)
    if slower := _slower(chosen, links):
        mine, best, gpus = slower
        is_on = f"{chosen.stage(mine)} is on {group_text(mine, links)}"
        needed = f"{links.worst(best)}, which other GPUs of this machine have"
        if links.source != TABLE:
            found = f"GPUs in their order, because {TABLE} gives no table: {is_on}"
            yield Check(
                "placement", "warning", found, needed, f"Find out why {TABLE} fails: ranks are placed by its table."
            )
        else:
            fix = f"Unset it, or let it leave GPUs {', '.join(map(str, gpus))}: then the ranks are placed on them."
            found = f"{VISIBLE}={visible_devices(machine.settings)}: {is_on}"
            yield Check(VISIBLE_GPUS, "warning", found, needed, fix)


def _slower(chosen: Placement, links: Topology) -> tuple[Group, Group, list[int]] | None:
    """The slowest group that a placement on all GPUs would make faster, that better group, and the GPUs to use.

    None if there is none. Only links count: compared with them, crossing NUMA nodes costs little.
    """
    best = place(chosen.mapping, links, chosen.replicas)
    for mine, other in zip(_slowest_first(chosen, links), _slowest_first(best, links), strict=True):
        if (difference := speed(links.worst(mine)) - speed(links.worst(other))) != 0:
            gpus = sorted(gpu for group in best.groups for gpu in group)
            return (mine, other, gpus) if difference < 0 else None
    return None


def _slowest_first(placement: Placement, links: Topology) -> list[Group]:
    return sorted(placement.groups, key=lambda group: speed(links.worst(group)))


def peers(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """Direct access (P2P) between GPUs that exchange data, if NVML tells of it."""
    chosen = _chosen(machine, deployment)
    if chosen is None:
        return
    inside = [pair for group in chosen.groups for pair in combinations(group, 2)]
    access = {pair: machine.gpus.peers(*pair) for pair in dict.fromkeys([*inside, *chosen.hops()])}
    refused = [pair for pair, allowed in access.items() if allowed is False]
    if not any(allowed is not None for allowed in access.values()):
        return
    found = f"{sum(allowed is True for allowed in access.values())} of the {len(access)} pairs that exchange data"
    if refused:
        found += f"; through host memory: GPUs {', '.join(f'{a}-{b}' for a, b in refused)}"
    fix = "It works, but slowly. See nvidia-smi topo -p2p w. On PCIe turn off ACS and the IOMMU in the BIOS."
    # Stages pass little data on, so only missing P2P inside a stage matters.
    yield verdict("P2P", not set(refused) & set(inside), found, "it between the GPUs of each stage", fix, "warning")


RULES = (nvlink, placement, peers)


def _chosen(machine: Machine, deployment: Deployment | None) -> Placement | None:
    """None if nothing runs on GPUs, or if serving refuses to start. Other lines say why."""
    if deployment is None or not needs_gpus(deployment):
        return None
    try:
        return placement_of(machine, deployment)
    except ToolkitError:
        return None


def _has_pcie(links: Topology, group: tuple[int, ...]) -> bool:
    ways = {links.way(a, b) for a, b in combinations(group, 2)}
    return any(not is_nvlink(way) and way != UNKNOWN for way in ways)


def _unknown(ways: Counter[str]) -> str:
    return f", {ways[UNKNOWN]} unknown" if ways[UNKNOWN] else ""
