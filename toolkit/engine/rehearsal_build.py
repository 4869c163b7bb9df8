"""The engine directory of a rehearsal: the rank files of the checkpoint, and the limits to run them with."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from toolkit import checkpoint, engine
from toolkit.artifacts import digest_of, produce, record, require
from toolkit.checkpoint.reader import open_checkpoint
from toolkit.config import Deployment
from toolkit.errors import ToolkitError
from toolkit.jsonfile import read_json
from toolkit.verify.structure import structure_differences

VERSION = "1.2.1+rehearsal"
"""The TensorRT-LLM release whose layout and behaviour are rehearsed; a real engine has no suffix."""


def build_rehearsal(deployment: Deployment, progress: Callable[[int, int], None], given: Path | None = None) -> bool:
    """See `toolkit.engine.build`; `given` is its `checkpoint`."""
    source, config = given or deployment.checkpoint_dir, build_config(deployment)
    digest, pretrained = _given(deployment, given, progress) if given else _converted(deployment)

    def write(partial: Path) -> None:
        whole = {"version": VERSION, "pretrained_config": pretrained, "build_config": config}
        (partial / "config.json").write_text(json.dumps(whole, indent=4) + "\n", encoding="utf-8")
        ranks = deployment.mapping.ranks
        for rank in ranks:
            link_or_copy(source / f"rank{rank}.safetensors", partial / f"rank{rank}.engine")
            progress(rank + 1, len(ranks))

    return produce(
        deployment.engine_dir,
        engine.STAGE,
        inputs={checkpoint.STAGE: digest},
        settings={"engine": deployment.engine, **config},
        versions={"toolkit": version("toolkit"), "engine": VERSION},
        write=write,
    )


def _converted(deployment: Deployment) -> tuple[str, dict[str, Any]]:
    """Digest and config.json of the checkpoint that `toolkit convert` wrote for this deployment."""
    source, remake = deployment.checkpoint_dir, f"toolkit convert {deployment.file}"
    lock = require(source, checkpoint.STAGE, checkpoint.settings(deployment), remake)
    return lock.digest, read_json(source / "config.json")


def _given(deployment: Deployment, directory: Path, progress: Callable[[int, int], None]) -> tuple[str, dict[str, Any]]:
    """Digest and config.json of any tool's checkpoint. Raises ToolkitError unless it is one of this deployment.

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
    digests = [record(directory / "config.json")["sha256"]]
    for rank in opened.mapping.ranks:
        digests.append(record(opened.file(rank))["sha256"])
        progress(rank + 1, opened.mapping.world_size)
    return digest_of(digests), opened.config


def build_config(deployment: Deployment) -> dict[str, Any]:
    """The limits of the engine, named as by `trtllm-build`. A micro-batch takes max_batch_size sequences."""
    limits = deployment.limits
    return {
        "max_batch_size": deployment.max_batch_size,
        "max_num_tokens": limits.max_num_tokens,
        "max_seq_len": limits.max_seq_len,
        "max_input_len": limits.max_seq_len,
        "max_beam_width": 1,
        "kv_cache_type": "PAGED",
        "gather_context_logits": False,
        "gather_generation_logits": False,
        "plugin_config": {
            "tokens_per_block": deployment.kv_cache.tokens_per_block,
            "use_paged_context_fmha": True,
            "remove_input_padding": True,
        },
    }


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link costs no disk; a checkpoint on another file system has to be copied."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
