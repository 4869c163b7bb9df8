"""What the model must compute: transformers' own decoder layers, loaded one at a time from the source.

Nothing here knows how a checkpoint is laid out. The weights are rounded to the checkpoint's dtype first, so
that the two runs differ by the order of additions only: what rounding costs is a property of the dtype that
was chosen, and that each value is rounded rightly is for the comparison of bytes to say.
"""

from __future__ import annotations

from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from toolkit.checkpoint.source import Source
from toolkit.errors import ToolkitError

VOCABULARY_ROWS = 4096
"""Rows of the output matrix in memory at a time."""
EMBEDDING, LM_HEAD = "model.embed_tokens.weight", "lm_head.weight"


class ReferenceModel:
    """A Hugging Face directory in float32, its weights rounded to `dtype`."""

    def __init__(self, source: Source, dtype: str) -> None:
        self.files = {name: tensor.file for name, tensor in source.tensors.items()}
        self.dtype = getattr(torch, dtype)
        self.config: Any = LlamaConfig.from_pretrained(source.directory)
        self.config._attn_implementation = "eager"
        self.rotary = LlamaRotaryEmbedding(self.config)

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids [tokens] -> hidden states [tokens, hidden_size]."""
        with self._file(EMBEDDING) as file:
            matrix = file.get_slice(EMBEDDING)
            return torch.cat([self._rounded(matrix[row : row + 1]) for row in tokens.tolist()])

    def layer(self, index: int, hidden: Tensor, lengths: list[int]) -> Tensor:
        """Hidden states [tokens, hidden_size] after layer `index`; prompts of `lengths` in a row."""
        with torch.device("meta"):  # no memory for weights that are about to be replaced
            layer = LlamaDecoderLayer(self.config, index).eval()
        weights = {name: self._tensor(f"model.layers.{index}.{name}") for name in layer.state_dict()}
        layer.load_state_dict(weights, assign=True)
        return torch.cat([self._one(layer, prompt[None])[0] for prompt in hidden.split(lengths)])

    def _one(self, layer: LlamaDecoderLayer, hidden: Tensor) -> Tensor:
        length = hidden.shape[1]
        positions = torch.arange(length)[None]
        mask = torch.full((1, 1, length, length), -torch.inf).triu(1)
        return layer(
            hidden,
            attention_mask=mask,
            position_ids=positions,
            position_embeddings=self.rotary(hidden, positions),
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """[tokens, vocab_size]"""
        norm = LlamaRMSNorm(self.config.hidden_size, self.config.rms_norm_eps)
        norm.load_state_dict({"weight": self._tensor("model.norm.weight")})
        normed, name = norm(hidden), EMBEDDING if self.config.tie_word_embeddings else LM_HEAD
        with self._file(name) as file:
            head = file.get_slice(name)
            starts = range(0, head.get_shape()[0], VOCABULARY_ROWS)
            parts = [normed @ self._rounded(head[first : first + VOCABULARY_ROWS]).T for first in starts]
        return torch.cat(parts, 1)

    def _tensor(self, name: str) -> Tensor:
        with self._file(name) as file:
            return self._rounded(file.get_tensor(name))

    def _file(self, name: str) -> safe_open:
        """The file that holds a tensor, mapped into memory."""
        path = self.files[name]
        try:
            return safe_open(path, "pt")
        except (OSError, RuntimeError, SafetensorError) as error:
            hint = "A file larger than this machine's memory cannot be mapped: save the model in smaller shards."
            raise ToolkitError(f"cannot be mapped: {error}", where=path, hint=hint) from None

    def _rounded(self, weights: Tensor) -> Tensor:
        return weights.to(self.dtype).float()
