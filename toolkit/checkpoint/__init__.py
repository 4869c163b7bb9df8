"""Converts a directory in Hugging Face's or Meta's form to a TensorRT-LLM checkpoint, one rank file for each GPU.

Reading order: layout (the format), config_json, source, safetensors_file, meta, numerics, workers, jobs,
journal, write, digests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolkit.checkpoint.numerics import Numbers
    from toolkit.config.deployment import Deployment

STAGE = "checkpoint"
NUMBERS = "numbers.json"
"""In the checkpoint: what the cast did to each source tensor, by its name."""

Progress = Callable[[int, int], None]
"""Called with (source bytes done, source bytes in all)."""


def convert(deployment: Deployment, progress: Progress | None = None) -> bool:
    """Write `deployment.checkpoint_dir` from `deployment.model.path`, or finish what an earlier run began.

    True when it, or its config.json alone, was written now; False when it was current. Raises ToolkitError for a
    source that is not whole, does not fit its config.json or does not fit the dtype, and then leaves no files
    behind. Cut off by anything else, it leaves `checkpoint.partial`, and the next run goes on from there.
    """
    import json
    from importlib.metadata import version

    from toolkit.checkpoint.digests import input_digests, is_current
    from toolkit.checkpoint.source import check_source, open_source
    from toolkit.checkpoint.tied import check_tied
    from toolkit.checkpoint.write import write_checkpoint
    from toolkit.config.capabilities import check_can_be_made
    from toolkit.files import distribution
    from toolkit.files.artifacts import Lock, atomic_directory, record, refuse_others_work, write_lock

    check_can_be_made(deployment)
    distribution.require("rehearsal" if not deployment.kind.on_gpus else "convert", "torch")
    shape, mapping, dtype = deployment.shape, deployment.mapping, deployment.model.dtype
    source = open_source(deployment.model.path)
    check_source(source, shape)
    check_tied(source, shape)
    seen = source.seen()
    if is_current(deployment.checkpoint_dir, STAGE, source, shape, settings(deployment), progress):
        return _renew_config(deployment)
    refuse_others_work(deployment.checkpoint_dir)
    with atomic_directory(deployment.checkpoint_dir, resume=True) as partial:
        written = write_checkpoint(source, shape, mapping, dtype, partial, progress)
        numbers = {name: entry["numbers"] for name, entry in written.sources.items()}
        (partial / NUMBERS).write_text(json.dumps(numbers, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        small = {name: record(partial / name) for name in ("config.json", NUMBERS)}
        lock = Lock(
            stage=STAGE,
            inputs=input_digests(source, {name: entry["blake3"] for name, entry in written.sources.items()}),
            settings=settings(deployment),
            versions={"toolkit": distribution.VERSION, "torch": version("torch")},
            outputs={**small, **written.targets},
            seen=seen,
        )
        write_lock(partial, lock)
    return True


def _renew_config(deployment: Deployment) -> bool:
    """Write config.json again if an earlier toolkit wrote it with keys that the release refuses."""
    from dataclasses import replace

    from toolkit.checkpoint.config_json import config_text
    from toolkit.files.artifacts import read_lock, record, write_lock
    from toolkit.files.atomic import atomic_file
    from toolkit.files.json_file import read_json
    from toolkit.releases.checkpoint import unknown_keys

    directory, lock = deployment.checkpoint_dir, read_lock(deployment.checkpoint_dir)
    config = directory / "config.json"
    if lock is None or not any(unknown_keys(read_json(config), deployment.release.checkpoint_keys)):
        return False
    with atomic_file(config) as draft:
        draft.write_text(config_text(deployment.shape, deployment.mapping, deployment.model.dtype), encoding="utf-8")
    write_lock(directory, replace(lock, outputs={**lock.outputs, config.name: record(config)}))
    return True


def numbers(deployment: Deployment, progress: Progress | None = None) -> dict[str, Numbers]:
    """What casting does to each source tensor, by name: from the checkpoint where it is current, else counted now.

    Values that the dtype cannot hold are counted and no errors here. Raises ToolkitError as `convert` does for
    a source that is not whole.
    """
    from toolkit.checkpoint.digests import is_current
    from toolkit.checkpoint.numerics import Numbers, survey
    from toolkit.checkpoint.source import check_source, open_source
    from toolkit.files.json_file import read_json

    source = open_source(deployment.model.path)
    check_source(source, deployment.shape)
    directory = deployment.checkpoint_dir
    if is_current(directory, STAGE, source, deployment.shape, settings(deployment)):
        return {name: Numbers(**entry) for name, entry in read_json(directory / NUMBERS).items()}
    return survey(source, deployment.shape, deployment.model.dtype, progress)


def settings(deployment: Deployment) -> dict[str, Any]:
    """What of the deployment a checkpoint depends on: its lock's settings, which later stages require."""
    return {"tp": deployment.parallel.tp, "pp": deployment.parallel.pp, "dtype": deployment.model.dtype}
