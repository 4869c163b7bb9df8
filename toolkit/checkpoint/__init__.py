"""Converts a model in Hugging Face's or Meta's form to a TensorRT-LLM checkpoint, with one rank file per GPU.

Reading order: layout (the format), config_json, source, safetensors_file, meta, numerics, workers, jobs,
journal, write, digests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toolkit.checkpoint.workers import Progress

if TYPE_CHECKING:
    from toolkit.checkpoint.numerics import Numbers
    from toolkit.config.deployment import Deployment

STAGE = "checkpoint"
NUMBERS = "numbers.json"
"""A file of the checkpoint: what the cast did to each source tensor, by its name."""


def convert(deployment: Deployment, progress: Progress | None = None) -> bool:
    """Write `deployment.checkpoint_dir` from `deployment.model.path`, or continue an earlier run that was cut off.

    Returns True if the checkpoint, or only its config.json, was written now; False if it was current. Raises
    ToolkitError for a source that is incomplete or does not fit its config.json or the dtype, and then leaves no files.
    If anything else cuts it off, `checkpoint.partial` stays, and the next run continues from there.
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
        json_files = {name: record(partial / name) for name in ("config.json", NUMBERS)}
        lock = Lock(
            stage=STAGE,
            inputs=input_digests(source, {name: entry["blake3"] for name, entry in written.sources.items()}),
            settings=settings(deployment),
            versions={"toolkit": distribution.VERSION, "torch": version("torch")},
            outputs={**json_files, **written.targets},
            seen=seen,
        )
        write_lock(partial, lock)
    return True


def _renew_config(deployment: Deployment) -> bool:
    """Write config.json again if an earlier toolkit wrote keys into it that the release refuses."""
    from dataclasses import replace

    from toolkit.checkpoint.config_json import config_text
    from toolkit.files.artifacts import read_lock, record, write_lock
    from toolkit.files.atomic import write_text
    from toolkit.files.json_file import read_json
    from toolkit.releases.checkpoint import unknown_keys

    directory, lock = deployment.checkpoint_dir, read_lock(deployment.checkpoint_dir)
    config = directory / "config.json"
    if lock is None or not any(unknown_keys(read_json(config), deployment.release.checkpoint_keys)):
        return False
    write_text(config, config_text(deployment.shape, deployment.mapping, deployment.model.dtype))
    write_lock(directory, replace(lock, outputs={**lock.outputs, config.name: record(config)}))
    return True


def numbers(deployment: Deployment, progress: Progress | None = None) -> dict[str, Numbers]:
    """What casting does to each source tensor, by name: read from the checkpoint if it is current, else counted now.

    Values that the dtype cannot hold are counted and are no error here. Raises ToolkitError for an incomplete source,
    as `convert` does.
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
    """The settings that a checkpoint depends on. They are in its lock, and later stages require them."""
    from toolkit.checkpoint.config_json import GPUS_PER_NODE, gpus_per_node

    parallel, mapping = deployment.parallel, deployment.mapping
    common = {"tp": parallel.tp, "pp": parallel.pp, "dtype": deployment.model.dtype}
    # The engine finds its GPU by this number, a rehearsal does not. Locks of before have none, and 8 in config.json.
    if deployment.kind.on_gpus and gpus_per_node(mapping) != GPUS_PER_NODE:
        common["gpus_per_node"] = gpus_per_node(mapping)
    return common
