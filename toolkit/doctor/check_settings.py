"""Checks the settings of NCCL and CUDA. On one node the best are usually none: NCCL finds NVLink by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from toolkit.doctor.check import Check, needs_gpus
from toolkit.doctor.machine import Machine
from toolkit.machine.environment import Setting

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment


def _on(value: str) -> bool:
    return value not in ("", "0")


def _any(value: str) -> bool:
    return bool(value)


HARMFUL: dict[str, tuple[Callable[[str], bool], str]] = {
    "NCCL_P2P_DISABLE": (_on, "the ranks exchange through host memory instead of NVLink"),
    "NCCL_P2P_LEVEL": (lambda value: value in ("LOC", "0"), "the ranks exchange through host memory instead of NVLink"),
    "NCCL_SHM_DISABLE": (_on, "ranks without P2P exchange over the network, on the same node"),
    "NCCL_ALGO": (_any, "NCCL chooses for each size itself, and better"),
    "NCCL_PROTO": (_any, "NCCL chooses for each size itself, and better"),
    "NCCL_MAX_NCHANNELS": (_any, "fewer channels cannot fill NVLink"),
    "NCCL_MAX_CTAS": (_any, "fewer channels cannot fill NVLink"),
    "NCCL_DEBUG": (lambda value: value.upper() == "TRACE", "it writes a line for every operation"),
    "CUDA_LAUNCH_BLOCKING": (_on, "the CPU waits for every kernel: for debugging only"),
}
"""(which values harm, what they do). Source: Environment Variables in NCCL's guide; CUDA's programming guide."""
WORTH_IT = {"NCCL_DEBUG": ("WARN", "says why, where a start fails")}
"""Useful settings that cost nothing. On one NVLink node every other default is right."""


def settings(machine: Machine, deployment: Deployment | None) -> Iterator[Check]:
    """Name variables that harm NCCL or CUDA, and those worth setting."""
    if deployment is None or not needs_gpus(deployment) or not machine.gpus.seen:
        return
    harmful = {name: setting for name, setting in machine.settings.items() if _harms(name, setting)}
    for name, setting in harmful.items():
        fix = f"Take it out of {setting.file}" if setting.file else f"Run: unset {name}"
        yield Check("setting", "warning", f"{_shown(name, setting)}: {HARMFUL[name][1]}", "", fix)
    others = [_shown(name, setting) for name, setting in machine.settings.items() if name not in harmful]
    worth = [f"{name}={value} {why}" for name, (value, why) in WORTH_IT.items() if name not in machine.settings]
    found = ", ".join(others) or "none: NCCL's defaults are right on one NVLink node"
    yield Check("settings", "ok", found, "", f"Worth setting: {'; '.join(worth)}" if worth else "")


def _harms(name: str, setting: Setting) -> bool:
    return name in HARMFUL and HARMFUL[name][0](setting.value.strip())


def _shown(name: str, setting: Setting) -> str:
    return f"{name}={setting.value}" + (f" ({setting.file})" if setting.file else "")


RULES = (settings,)
