"""The engine directory of a rehearsal: the rank files of the checkpoint, and the limits to run them with."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from toolkit import checkpoint
from toolkit.config.deployment import Deployment
from toolkit.engine.build_plan import STAGE, BuildPlan, Progress
from toolkit.engine.source import find_source
from toolkit.files import distribution
from toolkit.files.artifacts import write_stage

VERSION = "1.2.1+rehearsal"
"""The TensorRT-LLM release that is rehearsed, in layout and behaviour. A real engine has no suffix."""


def build_rehearsal(plan: BuildPlan, progress: Progress) -> bool:
    """See `toolkit.engine.run`."""
    deployment = plan.deployment
    source, config = find_source(plan, progress), build_config(deployment)

    def write(partial: Path) -> None:
        content = {"version": VERSION, "pretrained_config": source.config, "build_config": config}
        (partial / "config.json").write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
        ranks = deployment.mapping.ranks
        for rank in ranks:
            link_or_copy(source.directory / f"rank{rank}.safetensors", partial / f"rank{rank}.engine")
            progress(rank + 1, len(ranks))

    return write_stage(
        deployment.engine_dir,
        STAGE,
        inputs={checkpoint.STAGE: source.digest},
        settings={"engine": deployment.engine, **config},
        versions={"toolkit": distribution.VERSION, "engine": VERSION},
        write=write,
    )


def build_config(deployment: Deployment) -> dict[str, Any]:
    """The limits of the engine, by the names of `trtllm-build`. A micro-batch holds max_batch_size sequences."""
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
    """Hard-link a file, which costs no disk. From another file system it is copied."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
