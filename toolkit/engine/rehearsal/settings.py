"""What every rank of a rehearsal must agree on: the engine's own sizes, and how it is to be run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from toolkit.config import REHEARSAL_KV_TOKENS
from toolkit.errors import ToolkitError
from toolkit.inflight import SchedulerConfig
from toolkit.mapping import Mapping
from toolkit.model import read_json


@dataclass(frozen=True)
class EngineSettings:
    """How to run an engine; its sizes come from `engine_dir/config.json` (ToolkitError if it is not ours)."""

    engine_dir: Path
    kv_tokens: int | None = None  # capacity of the KV cache; None: as much as the sequences can use, capped
    policy: Literal["guaranteed_no_evict", "max_utilization"] = "guaranteed_no_evict"
    chunked_context: bool = False
    reuse: bool = True
    max_queue_size: int = 64

    @cached_property
    def config(self) -> dict[str, Any]:
        path = Path(self.engine_dir) / "config.json"
        config = read_json(path, missing="gpt_model_path must be an engine directory. Run: toolkit build.")
        version = str(config.get("version"))
        if not version.endswith("+rehearsal"):
            what = f"version: {version} is not a rehearsal engine"
            raise ToolkitError(what, where=path, hint="Build with --engine rehearsal.")
        return config

    @property
    def model(self) -> dict[str, Any]:
        """Sizes of the whole model, named as in a TensorRT-LLM checkpoint."""
        return self.config["pretrained_config"]

    @property
    def limits(self) -> dict[str, Any]:
        """max_batch_size, max_num_tokens, max_seq_len ..."""
        return self.config["build_config"]

    @property
    def mapping(self) -> Mapping:
        return Mapping(tp=self.model["mapping"]["tp_size"], pp=self.model["mapping"]["pp_size"])

    @cached_property
    def scheduling(self) -> SchedulerConfig:
        limits, micro_batches = self.limits, self.mapping.pp
        block, longest = limits["plugin_config"]["tokens_per_block"], limits["max_seq_len"]
        most = limits["max_batch_size"] * micro_batches * longest
        tokens = self.kv_tokens or max(min(most, REHEARSAL_KV_TOKENS), longest)
        return SchedulerConfig(
            max_batch_size=limits["max_batch_size"],
            max_num_tokens=limits["max_num_tokens"],
            micro_batches=micro_batches,
            num_blocks=math.ceil(tokens / block),
            tokens_per_block=block,
            policy=self.policy,
            chunked_context=self.chunked_context,
            reuse=self.reuse,
            max_queue_size=self.max_queue_size,
            max_seq_len=longest,
        )
