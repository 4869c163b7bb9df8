"""How a rehearsal engine runs: sizes from its directory, options from the parameters of config.pbtxt."""

from __future__ import annotations

import math
import os
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from toolkit.config.deployment import REHEARSAL_KV_TOKENS
from toolkit.errors import ToolkitError
from toolkit.files.invalid import first_problem
from toolkit.files.json_file import read_json
from toolkit.inflight import SchedulerConfig
from toolkit.model.rank_mapping import RankMapping

Milliseconds = Annotated[int, Field(gt=0)]


def _boolean(text: Any) -> Any:
    """True and False as the tensorrtllm backend reads them. Validation refuses any other text."""
    return {"true": True, "1": True, "false": False, "0": False}.get(str(text).lower(), text)


def _named_here(path: Path) -> Path:
    """The path as this Python names files. The Python in Triton takes every name for ASCII."""
    return Path(os.fsdecode(str(path).encode("utf-8", "surrogateescape")))


Boolean = Annotated[bool, BeforeValidator(_boolean)]


class EngineSettings(BaseModel):
    """The parameters of the tensorrt_llm model that a rehearsal obeys. It ignores the others.

    All ranks of an engine must get the same.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    gpt_model_path: Annotated[Path, AfterValidator(_named_here)]
    """The engine directory."""
    gpt_model_type: Literal["inflight_fused_batching", "inflight_batching"] = "inflight_fused_batching"
    max_beam_width: Literal["1"] = "1"
    batch_scheduler_policy: Literal["guaranteed_no_evict", "max_utilization"] = "guaranteed_no_evict"
    enable_chunked_context: Boolean = False
    enable_kv_cache_reuse: Boolean = True
    max_tokens_in_paged_kv_cache: Annotated[int, Field(gt=0)] | None = None
    exclude_input_in_output: Boolean = False
    cancellation_check_period_ms: Milliseconds = 100
    stats_check_period_ms: Milliseconds = 100
    max_queue_size: Annotated[int, Field(ge=0)] = 0
    """NVIDIA's backend has no such parameter and takes it from Triton's queue policy. 0 means no limit, as there."""

    @classmethod
    def of_model(cls, config: dict[str, Any]) -> EngineSettings:
        """From a Triton model configuration. Raises ToolkitError with the name of the parameter that is wrong."""
        values = {name: entry["string_value"] for name, entry in config["parameters"].items()}
        filled = {name: value for name, value in values.items() if value and not value.startswith("${")}
        try:
            return cls(**filled)
        except ValidationError as error:
            raise ToolkitError(first_problem(error).line, where=f"parameters of model {config.get('name')}") from None

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json of the engine directory. Raises ToolkitError if it is not a rehearsal's engine."""
        path = self.gpt_model_path / "config.json"
        config = read_json(path, missing="gpt_model_path must be an engine directory. Run: toolkit build.")
        version = str(config.get("version"))
        if not version.endswith("+rehearsal"):
            what = f"version: {version} is not a rehearsal engine"
            raise ToolkitError(what, where=path, hint="Build with --engine rehearsal.")
        return config

    @property
    def model(self) -> dict[str, Any]:
        """Sizes of the whole model, named as in a TensorRT-LLM checkpoint."""
        sizes: dict[str, Any] = self.config["pretrained_config"]
        return sizes

    @property
    def limits(self) -> dict[str, Any]:
        """max_batch_size, max_num_tokens, max_seq_len ..."""
        limits: dict[str, Any] = self.config["build_config"]
        return limits

    @property
    def mapping(self) -> RankMapping:
        return RankMapping(tp=self.model["mapping"]["tp_size"], pp=self.model["mapping"]["pp_size"])

    def check_world(self, size: int) -> None:
        """Raise ToolkitError unless the engine was built for this number of processes."""
        if size != self.mapping.world_size:
            tp, pp = self.mapping.tp, self.mapping.pp
            what = f"was built for tp {tp} x pp {pp} = {tp * pp} ranks, but {size} were started"
            raise ToolkitError(what, where=self.gpt_model_path, hint="Use: toolkit serve.")

    @cached_property
    def scheduling(self) -> SchedulerConfig:
        limits, micro_batches = self.limits, self.mapping.pp
        block, longest = limits["plugin_config"]["tokens_per_block"], limits["max_seq_len"]
        most = limits["max_batch_size"] * micro_batches * longest
        tokens = self.max_tokens_in_paged_kv_cache or max(min(most, REHEARSAL_KV_TOKENS), longest)
        return SchedulerConfig(
            max_batch_size=limits["max_batch_size"],
            max_num_tokens=limits["max_num_tokens"],
            micro_batches=micro_batches,
            num_blocks=math.ceil(tokens / block),
            tokens_per_block=block,
            policy=self.batch_scheduler_policy,
            chunked_context=self.enable_chunked_context,
            reuse=self.enable_kv_cache_reuse,
            max_queue_size=self.max_queue_size or 2**31,
            max_seq_len=longest,
        )
