"""The checkpoint that engines are built from: our own, which has a lock, or one of another tool."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit import checkpoint
from toolkit.checkpoint.reader import open_checkpoint
from toolkit.checkpoint.structure import structure_differences
from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError
from toolkit.files.artifacts import digest_of, record, require
from toolkit.files.json_file import read_json
from toolkit.releases.checkpoint import unknown_keys


@dataclass(frozen=True)
class Source:
    """The checkpoint that an engine is built from."""

    directory: Path
    digest: str
    config: dict[str, Any]
    """Its config.json."""


def find_source(deployment: Deployment, given: Path | None, progress: Callable[[int, int], None]) -> Source:
    """The checkpoint, known to be of this deployment. Raises ToolkitError where it is not, or is not there.

    A `given` one has no lock, so all of it is hashed; `progress` is called with (ranks done, ranks in all).
    """
    return _given(deployment, given, progress) if given else _converted(deployment)


def _converted(deployment: Deployment) -> Source:
    """The checkpoint that `toolkit convert` wrote for this deployment."""
    directory, remake = deployment.checkpoint_dir, f"toolkit convert {deployment.file}"
    lock = require(directory, checkpoint.STAGE, checkpoint.settings(deployment), remake)
    config = read_json(directory / "config.json")
    _refuse_unknown_keys(deployment, directory, config, f"Run: {remake}")
    return Source(directory, lock.digest, config)


def _given(deployment: Deployment, directory: Path, progress: Callable[[int, int], None]) -> Source:
    """Any tool's checkpoint. Raises ToolkitError unless it is one of this deployment.

    It has no lock, so all of it is hashed; `progress` is called with (ranks done, ranks in all).
    """
    opened, wanted = open_checkpoint(directory), checkpoint.settings(deployment)
    found = {"tp": opened.mapping.tp, "pp": opened.mapping.pp, "dtype": opened.dtype}
    for name, value in wanted.items():
        if found[name] != value:
            what = f"has {name} {found[name]}, {deployment.file} says {value}"
            raise ToolkitError(what, where=directory, hint="Convert it again, or change the YAML.")
    for difference in structure_differences(deployment.shape, opened):
        hint = f"Is it a checkpoint of {deployment.model.path}?"
        raise ToolkitError(difference.what, where=directory / difference.where, hint=hint)
    _refuse_unknown_keys(deployment, directory, opened.raw, "Remove it there, or convert it with that release.")
    digests = [record(directory / "config.json")["sha256"]]
    for rank in opened.mapping.ranks:
        digests.append(record(opened.file(rank))["sha256"])
        progress(rank + 1, opened.mapping.world_size)
    return Source(directory, digest_of(digests), opened.config)


def _refuse_unknown_keys(deployment: Deployment, directory: Path, config: Mapping[str, Any], hint: str) -> None:
    """Raise a ToolkitError for a key that trtllm-build would refuse. A rehearsal takes the keys of any release."""
    if not deployment.kind.vendor_build:
        return
    release = deployment.release
    for key in unknown_keys(config, release.checkpoint_keys):
        what = f"{key}: TensorRT-LLM {release.name} does not know it; another release wrote it"
        raise ToolkitError(what, where=directory / "config.json", hint=hint)
