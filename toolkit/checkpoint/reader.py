"""Opens a TensorRT-LLM checkpoint from this toolkit or from any release of the vendor's converter.

Keys of config.json that do not change what a Llama computes may be missing or unknown. A key that changes it must have
the value that this project computes with; otherwise an error names the key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from toolkit.checkpoint.config_json import checkpoint_config
from toolkit.checkpoint.layout import Embedding
from toolkit.checkpoint.safetensors_file import Stored, read_header
from toolkit.errors import ToolkitError, shown
from toolkit.files.json_file import LARGEST_CONFIG, read_json
from toolkit.model.rank_mapping import RankMapping
from toolkit.model.shape import DTYPE_BYTES, ModelShape, parse_shape

NAMES = {
    "head_size": "head_dim",
    "norm_epsilon": "rms_norm_eps",
    "rotary_base": "rope_theta",
    "rotary_scaling": "rope_scaling",
    "attn_bias": "attention_bias",
}
"""TensorRT-LLM's name to ours, which is Hugging Face's. All other fields have the same name."""

DEFAULT_EPSILON = 1e-5
REQUIRED: dict[str, Any] = {
    "position_embedding_type": "rope_gpt_neox",
    "qk_layernorm": False,
    "residual_mlp": False,
    "remove_duplicated_kv_heads": False,
    "fc_after_embed": False,
    "use_input_layernorm_in_first_layer": True,
    "use_last_layernorm": True,
    "layer_idx_offset": 0,
    "embedding_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "output_multiplier_scale": 1.0,
}
"""Fields that change the arithmetic, each with its only supported value, which is also its default."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint directory: its config.json, and for each rank the tensors of its file by name."""

    directory: Path
    shape: ModelShape
    mapping: RankMapping
    dtype: str
    """"float16", "bfloat16" or "float32"."""
    embedding: Embedding
    raw: Mapping[str, Any]
    """config.json as it is in the directory."""
    ranks: tuple[Mapping[str, Stored], ...]

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json with defaults for missing fields."""
        ours = checkpoint_config(self.shape, self.mapping, self.dtype)
        theirs = {name: value for name, value in self.raw.items() if value is not None}
        mapping = {**ours["mapping"], **theirs.get("mapping", {})}
        return {**ours, **theirs, "mapping": mapping, "rotary_scaling": ours["rotary_scaling"]}

    def file(self, rank: int) -> Path:
        return rank_file(self.directory, rank)


def open_checkpoint(directory: Path) -> Checkpoint:
    """Read config.json and the headers of the rank files.

    Raises ToolkitError for a checkpoint that is incomplete, damaged, quantised, or not a plain Llama.
    """
    directory, path = Path(directory), Path(directory) / "config.json"
    raw = read_json(path, missing="Give the directory of a TensorRT-LLM checkpoint.", largest=LARGEST_CONFIG)
    for block in ("mapping", "quantization", "moe"):
        if not isinstance(raw.get(block) or {}, dict):
            raise ToolkitError(f"{block}: expected an object, got {shown(raw[block])}", where=path)
    for field, value, supported in _unsupported(raw):
        raise ToolkitError(f"{field}: {shown(value)} is not supported, only {shown(supported)}", where=path)
    if raw.get("dtype") not in [*DTYPE_BYTES]:
        hint = f"Known: {', '.join(DTYPE_BYTES)}."
        raise ToolkitError(f"dtype: {shown(raw.get('dtype'))} is unknown", where=path, hint=hint)
    mapping, shape = _mapping(raw.get("mapping") or {}, path), _shape(raw, path)
    ranks = tuple(_rank(directory, rank, mapping) for rank in mapping.ranks)
    _refuse_more_ranks(directory, mapping)
    return Checkpoint(directory, shape, mapping, shape.dtype, _embedding(raw, path), raw, ranks)


def rank_file(directory: Path, rank: int) -> Path:
    """The file with the tensors of a rank."""
    return directory / f"rank{rank}.safetensors"


def _unsupported(raw: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Fields with unsupported values: (name, value, supported value)."""
    for name, supported in REQUIRED.items():
        value = raw.get(name)
        if value is not None and value != supported:
            yield name, value, supported
    quantization = raw.get("quantization") or {}
    for name in ("quant_algo", "kv_cache_quant_algo"):
        if quantization.get(name) is not None:
            yield f"quantization.{name}", quantization[name], None
    if (experts := (raw.get("moe") or {}).get("num_experts")) not in (None, 0):
        yield "moe.num_experts", experts, 0


def _shape(raw: Mapping[str, Any], path: Path) -> ModelShape:
    fields = {NAMES.get(name, name): value for name, value in raw.items()}
    fields["architectures"] = [raw.get("architecture")]
    fields["rms_norm_eps"] = fields.get("rms_norm_eps") or DEFAULT_EPSILON
    return parse_shape(fields, where=str(path))


def _mapping(block: Mapping[str, Any], path: Path) -> RankMapping:
    """Read the sizes of the mapping block. Other keys differ between releases and do not matter."""
    sizes = {name: block.get(name, 1) for name in ("tp_size", "pp_size", "cp_size")}
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ToolkitError(f"mapping.{name}: expected a positive whole number, got {shown(size)}", where=path)
    mapping = RankMapping(tp=sizes["tp_size"], pp=sizes["pp_size"])
    if sizes["cp_size"] != 1:
        raise ToolkitError(f"mapping.cp_size: {sizes['cp_size']} is not supported, only 1", where=path)
    if block.get("world_size", mapping.world_size) != mapping.world_size:
        what = f"mapping.world_size: {shown(block['world_size'])}, but tp {mapping.tp} x pp {mapping.pp}"
        raise ToolkitError(f"{what} = {mapping.world_size}", where=path, hint="Convert the model again.")
    return mapping


def _embedding(raw: Mapping[str, Any], path: Path) -> Embedding:
    if not raw.get("use_parallel_embedding"):
        return "whole"
    dimension = raw.get("embedding_sharding_dim", 0)
    if dimension not in (0, 1):
        raise ToolkitError(f"embedding_sharding_dim: expected 0 or 1, got {shown(dimension)}", where=path)
    return "columns" if dimension else "rows"


def _rank(directory: Path, rank: int, mapping: RankMapping) -> dict[str, Stored]:
    path = rank_file(directory, rank)
    if not path.is_file():
        raise ToolkitError(
            f"{path.name} is missing; config.json's mapping of tp {mapping.tp} x pp {mapping.pp} has "
            f"{mapping.world_size} ranks",
            where=directory,
            hint="Convert the model again.",
        )
    return {tensor.name: tensor for tensor in read_header(path)}


def _refuse_more_ranks(directory: Path, mapping: RankMapping) -> None:
    if rank_file(directory, mapping.world_size).exists():
        raise ToolkitError(
            f"holds {rank_file(directory, mapping.world_size).name}, but config.json's mapping of tp {mapping.tp} x "
            f"pp {mapping.pp} has {mapping.world_size} ranks",
            where=directory,
            hint="Correct the mapping, or convert the model again into an empty directory.",
        )
