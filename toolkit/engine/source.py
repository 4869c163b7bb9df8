"""The checkpoint that an engine is built from: one by `toolkit convert`, which has a lock, or one of another tool."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit import checkpoint
from toolkit.checkpoint.reader import open_checkpoint
from toolkit.checkpoint.structure import structure_differences
from toolkit.config.deployment import Deployment
from toolkit.engine.build_plan import BuildPlan
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


def find_source(plan: BuildPlan, progress: Callable[[int, int], None]) -> Source:
    """The plan's checkpoint. Raises ToolkitError if it is missing, or is not one of this deployment.

    Another tool's checkpoint has no lock, so all of it is hashed; `progress` gets (ranks done, ranks in all).
    """
    return _given(plan.deployment, plan.given, progress) if plan.given else _converted(plan.deployment)


def _converted(deployment: Deployment) -> Source:
    """The checkpoint that `toolkit convert` wrote for this deployment."""
    directory, remake = deployment.checkpoint_dir, deployment.command("convert")
    lock = require(directory, checkpoint.STAGE, checkpoint.settings(deployment), remake)
    config = read_json(directory / "config.json")
    _refuse_unknown_keys(deployment, directory, config, f"Run: {remake}")
    return Source(directory, lock.digest, config)


def _given(deployment: Deployment, directory: Path, progress: Callable[[int, int], None]) -> Source:
    """Any tool's checkpoint. Raises ToolkitError unless it is one of this deployment."""
    opened = open_checkpoint(directory)
    made_with = {"tp": opened.mapping.tp, "pp": opened.mapping.pp, "dtype": opened.dtype}
    for name, value in checkpoint.settings(deployment).items():
        if made_with[name] != value:
            what = f"has {name} {made_with[name]}, {deployment.file} says {value}"
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
    """Raise a ToolkitError for a key that trtllm-build would refuse. A rehearsal accepts the keys of any release."""
    if not deployment.kind.vendor_build:
        return
    release = deployment.release
    for key in unknown_keys(config, release.checkpoint_keys):
        what = f"{key}: TensorRT-LLM {release.name} does not know it; another release wrote it"
        raise ToolkitError(what, where=directory / "config.json", hint=hint)
