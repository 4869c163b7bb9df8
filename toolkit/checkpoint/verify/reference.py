"""What the model must compute: transformers' decoder layers, loaded one at a time from the source.

Nothing here knows the layout of a checkpoint. The weights are first rounded to the checkpoint's dtype, so the two runs
differ only in the order of additions. Whether each value is rounded correctly is checked in the comparison of bytes.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from toolkit.checkpoint.source import Source
from toolkit.checkpoint.verify.rows import read
from toolkit.errors import ToolkitError
from toolkit.model.shape import CONFIG, load_shape

VOCABULARY_ROWS = 4096
"""Rows of the output matrix in memory at a time."""
EMBEDDING, LM_HEAD = "model.embed_tokens.weight", "lm_head.weight"


class ReferenceModel:
    """A Hugging Face directory in float32, its weights rounded to `dtype`."""

    def __init__(self, source: Source, dtype: str) -> None:
        self.tensors, self.dtype = source.tensors, getattr(torch, dtype)
        self.config: Any = _config(source)
        self.config._attn_implementation = "eager"  # noqa: SLF001 - it has no public setter
        self.rotary = LlamaRotaryEmbedding(self.config)

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids [tokens] -> hidden states [tokens, hidden_size]."""
        return torch.cat([self._rows(EMBEDDING, range(row, row + 1)) for row in tokens.tolist()])

    def layer(self, index: int, hidden: Tensor, lengths: list[int]) -> Tensor:
        """Hidden states [tokens, hidden_size] after layer `index`; prompts of `lengths` in a row."""
        with torch.device("meta"):  # no memory for weights that are about to be replaced
            layer = LlamaDecoderLayer(self.config, index).eval()
        weights = {name: self._tensor(f"model.layers.{index}.{name}") for name in layer.state_dict()}
        layer.load_state_dict(weights, assign=True)
        return torch.cat([self._prompt_output(layer, prompt[None])[0] for prompt in hidden.split(lengths)])

    def _prompt_output(self, layer: LlamaDecoderLayer, hidden: Tensor) -> Tensor:
        length = hidden.shape[1]
        positions = torch.arange(length)[None]
        mask = torch.full((1, 1, length, length), -torch.inf).triu(1)
        result: Tensor = layer(
            hidden,
            attention_mask=mask,
            position_ids=positions,
            position_embeddings=self.rotary(hidden, positions),
        )
        return result

    def logits(self, hidden: Tensor) -> Tensor:
        """[tokens, vocab_size]"""
        norm = LlamaRMSNorm(self.config.hidden_size, self.config.rms_norm_eps)
        norm.load_state_dict({"weight": self._tensor("model.norm.weight")})
        normed, name = norm(hidden), EMBEDDING if self.config.tie_word_embeddings else LM_HEAD
        size = self.tensors[name].shape[0]
        starts = range(0, size, VOCABULARY_ROWS)
        parts = (self._rows(name, range(first, min(first + VOCABULARY_ROWS, size))) for first in starts)
        return torch.cat([normed @ part.T for part in parts], 1)

    def _tensor(self, name: str) -> Tensor:
        return self._rows(name, range(self.tensors[name].shape[0]))

    def _rows(self, name: str, rows: range) -> Tensor:
        """Rows of a source tensor, rounded. Safetensors files are read with their library, not with our own code."""
        stored = self.tensors[name]
        if stored.file.suffix != ".safetensors":
            return read(stored, rows).to(self.dtype).float()
        try:
            with safe_open(stored.file, "pt") as file:
                part: Tensor = file.get_slice(name)[rows.start : rows.stop]
                return part.to(self.dtype).float()
        except (OSError, RuntimeError, SafetensorError) as error:
            hint = "A file larger than this machine's memory cannot be mapped: save the model in smaller shards."
            raise ToolkitError(f"cannot be mapped: {error}", where=stored.file, hint=hint) from None


def _config(source: Source) -> Any:
    """config.json as transformers reads it. Meta's form has none, so there it is the shape that we read."""
    if (source.directory / CONFIG).exists():
        return LlamaConfig.from_pretrained(source.directory)
    shape = asdict(load_shape(source.directory))
    rope = {"rope_type": "default", **(shape.pop("rope_scaling") or {}), "rope_theta": shape.pop("rope_theta")}
    return LlamaConfig(**shape, rope_parameters=rope)
