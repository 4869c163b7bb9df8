"""How the GPUs of the ranks reach each other, under the best placement of the ranks and under the one they get."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from typing import TYPE_CHECKING

from toolkit.doctor.check import Check, needs_gpus, verdict
from toolkit.doctor.check_gpus import kind
from toolkit.doctor.machine import Machine
from toolkit.doctor.ranks import VISIBLE, best, gpus_of_ranks, topology, used, visible
from toolkit.placement import Placement, cost, group_text, placement_lines
from toolkit.topology import UNKNOWN, Topology, is_nvlink

if TYPE_CHECKING:
    from toolkit.config import Deployment

ORDER = "CUDA_DEVICE_ORDER"
BUS_ORDER = "PCI_BUS_ID"
"""The order of nvidia-smi and NVML. CUDA's own default is the fastest first."""


def nvlink(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """Between the ranks of each tensor parallel group, best placed: they exchange every layer's result."""
    links = topology(machine)
    if deployment is None or not needs_gpus(deployment):
        ways = Counter(links.way(a, b) for a, b in combinations(links.gpus, 2))
        if ways:
            found = f"{sum(number for way, number in ways.items() if is_nvlink(way))} of {ways.total()} pairs of GPUs"
            yield Check("NVLink", "ok", found + _unknown(ways))
        return
    groups = _placed(machine, deployment).groups
    ways = Counter(links.way(a, b) for group in groups for a, b in combinations(group, 2))
    if not ways:
        return
    slow = {group: links.worst(group) for group in groups if _has_pcie(links, group)}
    found = f"{sum(number for way, number in ways.items() if is_nvlink(way))} of {ways.total()} pairs{_unknown(ways)}"
    if slow:
        found += "; over PCIe: GPUs " + ", ".join("-".join(map(str, group)) for group in slow)
    yield _nvlink(machine, deployment, found, bool(slow), bool(ways[UNKNOWN]))


def _nvlink(machine: Machine, deployment: Deployment, found: str, slow: bool, unknown: bool) -> Check:
    needed = f"it between the {deployment.parallel.tp} GPUs of each stage"
    if not slow:
        return verdict("NVLink", not unknown, found, needed, "See nvidia-smi topo -m.", "warning")
    if any(kind(gpu.name).endswith("-sxm") for gpu in gpus_of_ranks(machine, deployment)):
        fix = "SXM GPUs have NVLink, so it is down: systemctl status nvidia-fabricmanager; nvidia-smi nvlink -s"
        return Check("NVLink", "error", found, needed, fix)
    fix = "It works, and is slow. Lower parallel.tp and raise parallel.pp, or use GPUs with NVLink."
    return Check("NVLink", "warning", found, needed, fix)


def placement(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """The GPUs and layers of each stage, and whether the ranks get the GPUs that they should."""
    if deployment is None or not needs_gpus(deployment) or (wanted := best(machine, deployment)) is None:
        return
    links, now = topology(machine), used(machine, deployment)
    first = Placement(wanted.mapping, wanted.groups[: wanted.mapping.pp])
    good = len(now.groups) == len(first.groups) and cost(now, links) <= cost(first, links)
    shown = now if good and wanted.replicas == 1 else wanted
    for line in placement_lines(shown, links, deployment.shape.num_hidden_layers):
        yield Check("placement", "ok", line)
    yield _order(machine, now, first, links, good)
    for replica in range(1, wanted.replicas):
        yield Check("rank order", "ok", f"{VISIBLE}={wanted.visible_devices(replica)} for replica {replica}")


def _order(machine: Machine, now: Placement, wanted: Placement, links: Topology, good: bool) -> Check:
    setting = machine.settings.get(VISIBLE)
    found = "rank r on GPU r" if setting is None else f"{VISIBLE}={setting.value}"
    if setting is not None and visible(machine) is None:
        fix = f"Name GPUs by number, as nvidia-smi does: {VISIBLE}={wanted.visible_devices()}"
        return Check("rank order", "warning", f"{found} cannot be compared with the placement", "", fix)
    if good:
        return Check("rank order", "ok", found)
    fix = f"Start it after: export {ORDER}={BUS_ORDER} {VISIBLE}={wanted.visible_devices()}"
    if len(now.groups) < len(wanted.groups):
        return Check("rank order", "error", found, f"{wanted.mapping.world_size} GPUs, one for each rank", fix)
    group, wanted_group = max(
        zip(now.groups, wanted.groups, strict=True),
        key=lambda pair: cost(Placement(wanted.mapping, (pair[0],)), links),
    )
    found += f": a stage on {group_text(group, links)}"
    return Check("rank order", "warning", found, f"the placement above: {group_text(wanted_group, links)}", fix)


def peers(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """Direct access (P2P) between GPUs that exchange something, where NVML tells of it."""
    if deployment is None or not needs_gpus(deployment):
        return
    placed = _placed(machine, deployment)
    inside = [pair for group in placed.groups for pair in combinations(group, 2)]
    told = {pair: machine.gpus.peers(*pair) for pair in dict.fromkeys([*inside, *placed.hops()])}
    refused = [pair for pair, allowed in told.items() if allowed is False]
    if not any(allowed is not None for allowed in told.values()):
        return
    found = f"{sum(allowed is True for allowed in told.values())} of the {len(told)} pairs that exchange data"
    if refused:
        found += f"; through host memory: GPUs {', '.join(f'{a}-{b}' for a, b in refused)}"
    fix = "It works, and is slow. See nvidia-smi topo -p2p w; on PCIe turn off ACS and the IOMMU in the BIOS."
    # Stages hand on little: only inside a stage it is felt.
    yield verdict("P2P", not set(refused) & set(inside), found, "it between the GPUs of each stage", fix, "warning")


RULES = (nvlink, placement, peers)


def _placed(machine: Machine, deployment: Deployment) -> Placement:
    return best(machine, deployment) or used(machine, deployment)


def _has_pcie(links: Topology, group: tuple[int, ...]) -> bool:
    ways = {links.way(a, b) for a, b in combinations(group, 2)}
    return any(not is_nvlink(way) and way != UNKNOWN for way in ways)


def _unknown(ways: Counter[str]) -> str:
    return f", {ways[UNKNOWN]} unknown" if ways[UNKNOWN] else ""
