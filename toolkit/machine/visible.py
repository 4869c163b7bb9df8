"""The GPUs that CUDA_VISIBLE_DEVICES leaves, read as CUDA reads it.

An entry is a number, as nvidia-smi counts, or a UUID, which may be shortened if only one GPU begins so. The first entry
that is neither ends the list: GPUs named after it are hidden. Sources: the environment variables of CUDA's programming
guide. It does not describe repeated and mixed entries: those are read as torch.cuda reads the variable.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from toolkit.errors import ToolkitError, shown
from toolkit.machine.environment import Setting
from toolkit.machine.gpus import Gpu, Gpus, look_at_gpus

VISIBLE = "CUDA_VISIBLE_DEVICES"
WAYS_TO_NAME = "Give numbers or UUIDs of whole GPUs, as nvidia-smi -L shows them, or unset it."
_NUMBER = re.compile(r"[0-9]{1,9}")
_UUID = "GPU-"
_MIG = "MIG-"


@dataclass(frozen=True)
class VisibleGpus:
    """`numbers` are nvidia-smi's, in the order of the variable. `ended` says why the list ends early, else ""."""

    numbers: tuple[int, ...]
    ended: str = ""


def visible_here() -> VisibleGpus | None:
    """The GPUs that the variable of this process leaves; None if unset. Raises ToolkitError as `visible_gpus`."""
    value = os.environ.get(VISIBLE)
    return None if value is None else visible_gpus(value, {gpu.index: gpu.uuid for gpu in look_at_gpus().seen})


def visible_gpus(value: str, uuids: Mapping[int, str]) -> VisibleGpus:
    """The GPUs that a value leaves. `uuids` has those of the machine, by number; without any, every number is accepted.

    Raises ToolkitError if the value names parts of GPUs (MIG), or a UUID while no UUID is known.
    """
    if not value.strip():
        return VisibleGpus((), "it is empty")
    entries = [entry.strip() for entry in value.split(",")]
    _require_whole_gpus(entries, uuids)
    by_uuid = entries[0].startswith(_UUID)
    numbers: list[int] = []
    for entry in entries:
        number = _by_uuid(entry, uuids) if by_uuid else _by_number(entry, uuids)
        if isinstance(number, str):  # what is wrong with the entry
            return VisibleGpus(tuple(numbers), number)
        if number in numbers:
            return VisibleGpus((), f"GPU {number} is named twice, which hides all")
        numbers.append(number)
    return VisibleGpus(tuple(numbers))


def _require_whole_gpus(entries: list[str], uuids: Mapping[int, str]) -> None:
    for entry in entries:
        if entry.startswith(_MIG):
            raise ToolkitError(f"{shown(entry)} is a part of a GPU (MIG)", where=VISIBLE, hint=WAYS_TO_NAME)
    if entries[0].startswith(_UUID) and not any(uuids.values()):
        what = f"{shown(entries[0])} is a UUID, but NVML shows no UUIDs here"
        raise ToolkitError(what, where=VISIBLE, hint="See nvidia-smi -L, or give numbers as nvidia-smi counts.")


def _by_number(entry: str, uuids: Mapping[int, str]) -> int | str:
    """The GPU of an entry, or what is wrong with it."""
    if not _NUMBER.fullmatch(entry):
        return _not_a_gpu(entry, "a number")
    number = int(entry)
    return number if number in uuids or not uuids else f"there is no GPU {number}"


def _by_uuid(entry: str, uuids: Mapping[int, str]) -> int | str:
    if not entry.startswith(_UUID):
        return _not_a_gpu(entry, "a UUID")
    numbers = [number for number, uuid in uuids.items() if uuid.startswith(entry)]
    if len(numbers) == 1:
        return numbers[0]
    if not numbers:
        return f"no GPU has the UUID {shown(entry)}"
    return f"{shown(entry)} fits the UUIDs of GPUs {', '.join(map(str, numbers))}"


def _not_a_gpu(entry: str, expected: str) -> str:
    if not entry:
        return "an empty entry ends the list"
    return "-1 ends the list" if entry == "-1" else f"{shown(entry)} is not {expected} and ends the list"


def visible_devices(settings: Mapping[str, Setting]) -> str | None:
    """CUDA_VISIBLE_DEVICES, or None if it is not set."""
    return settings[VISIBLE].value if VISIBLE in settings else None


def visible_to_cuda(gpus: Gpus, settings: Mapping[str, Setting]) -> VisibleGpus | None:
    """What CUDA_VISIBLE_DEVICES leaves of these GPUs. None if it is not set. Raises ToolkitError as serving does."""
    value = visible_devices(settings)
    return None if value is None else visible_gpus(value, {gpu.index: gpu.uuid for gpu in gpus.seen})


def gpus_of(gpus: Gpus, settings: Mapping[str, Setting]) -> list[Gpu]:
    """Those of these GPUs that CUDA_VISIBLE_DEVICES leaves, in its order. None of them if it is wrong."""
    by_number = {gpu.index: gpu for gpu in gpus.seen}
    try:
        left = visible_to_cuda(gpus, settings)
    except ToolkitError:
        return []
    return [by_number[number] for number in (by_number if left is None else left.numbers) if number in by_number]
