"""The GPUs that CUDA_VISIBLE_DEVICES leaves, read as CUDA reads it.

An entry is a number, as nvidia-smi counts, or a UUID, which may be cut short while only one GPU begins so. The first
entry that is neither ends the list: GPUs named after it are hidden. Sources: the environment variables of CUDA's
programming guide; for repeated and mixed entries, of which it says nothing, torch.cuda, which reads the variable too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from toolkit.errors import ToolkitError, shown
from toolkit.machine.environment import Setting, look_at_settings
from toolkit.machine.gpus import Gpu, Gpus, look_at_gpus

VISIBLE = "CUDA_VISIBLE_DEVICES"
WAYS_TO_NAME = "Give numbers or UUIDs of whole GPUs, as nvidia-smi -L shows them, or unset it."
_NUMBER = re.compile(r"[0-9]{1,9}")
_UUID = "GPU-"
_MIG = "MIG-"


@dataclass(frozen=True)
class VisibleGpus:
    """`numbers` are nvidia-smi's, in the order of the variable. `ended` says why the list ends early; "" if whole."""

    numbers: tuple[int, ...]
    ended: str = ""


def visible_here() -> VisibleGpus | None:
    """What the variable of this process leaves; None where it is not set. Raises ToolkitError as `visible_gpus`."""
    value = os.environ.get(VISIBLE)
    return None if value is None else visible_gpus(value, {gpu.index: gpu.uuid for gpu in look_at_gpus().seen})


def visible_gpus(value: str, uuids: Mapping[int, str]) -> VisibleGpus:
    """What a value leaves of the GPUs with these UUIDs, by number. If no GPU is known, numbers are taken as they are.

    Raises ToolkitError if it names parts of GPUs (MIG), or a UUID while no UUID is known.
    """
    if not value.strip():
        return VisibleGpus((), "it is empty")
    entries = [entry.strip() for entry in value.split(",")]
    _require_whole_gpus(entries, uuids)
    by_uuid = entries[0].startswith(_UUID)
    numbers: list[int] = []
    for entry in entries:
        found = _by_uuid(entry, uuids) if by_uuid else _by_number(entry, uuids)
        if isinstance(found, str):
            return VisibleGpus(tuple(numbers), found)
        if found in numbers:
            return VisibleGpus((), f"GPU {found} is named twice, which hides all")
        numbers.append(found)
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
    found = [number for number, uuid in uuids.items() if uuid.startswith(entry)]
    if len(found) == 1:
        return found[0]
    if not found:
        return f"no GPU has the UUID {shown(entry)}"
    return f"{shown(entry)} fits the UUIDs of GPUs {', '.join(map(str, found))}"


def _not_a_gpu(entry: str, expected: str) -> str:
    if not entry:
        return "an empty entry ends the list"
    return "-1 ends the list" if entry == "-1" else f"{shown(entry)} is not {expected} and ends the list"


def gpus_here() -> list[Gpu]:
    """Those that CUDA_VISIBLE_DEVICES leaves to a program started now; none where it cannot be read."""
    return gpus_of(look_at_gpus(), look_at_settings())


def visible_devices(settings: Mapping[str, Setting]) -> str | None:
    """CUDA_VISIBLE_DEVICES, None where it is not set."""
    return settings[VISIBLE].value if VISIBLE in settings else None


def visible_to_cuda(gpus: Gpus, settings: Mapping[str, Setting]) -> VisibleGpus | None:
    """What CUDA_VISIBLE_DEVICES leaves of these GPUs; None where it is not set. Raises ToolkitError as serving does."""
    value = visible_devices(settings)
    return None if value is None else visible_gpus(value, {gpu.index: gpu.uuid for gpu in gpus.seen})


def gpus_of(gpus: Gpus, settings: Mapping[str, Setting]) -> list[Gpu]:
    """Those of these GPUs that CUDA_VISIBLE_DEVICES leaves, in its order; none where it cannot be read."""
    by_number = {gpu.index: gpu for gpu in gpus.seen}
    try:
        left = visible_to_cuda(gpus, settings)
    except ToolkitError:
        return []
    return [by_number[number] for number in (by_number if left is None else left.numbers) if number in by_number]
