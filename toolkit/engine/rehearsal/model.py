"""One rank's part of a Llama: the layers of its stage, with its share of the heads and of the MLP."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.functional import embedding, linear, pad, rms_norm, silu

from toolkit.engine.rehearsal.batch import Batch
from toolkit.engine.rehearsal.kv import KvCache
from toolkit.engine.settings import EngineSettings
from toolkit.errors import ToolkitError
from toolkit.model.rotary import rotary_tables


class Stage:
    """The part of rank `rank`, in float32, read from its own file only.

    `all_reduce` adds up a tensor over the ranks of the stage. Raises ToolkitError for a broken rank file.
    """

    def __init__(self, settings: EngineSettings, rank: int, all_reduce: Callable[[Tensor], Tensor]) -> None:
        model, mapping = settings.model, settings.mapping
        self.all_reduce = all_reduce
        self.head_size, self.epsilon = model["head_size"], model["norm_epsilon"]
        self.heads = model["num_attention_heads"] // mapping.tp
        self.kv_heads = math.ceil(model["num_key_value_heads"] / mapping.tp)
        self.layers = range(len(mapping.layers(model["num_hidden_layers"], mapping.pp_rank(rank))))
        self.is_first, self.is_last = mapping.is_first_stage(rank), mapping.is_last_stage(rank)
        self.weights = load_weights(settings.gpt_model_path / f"rank{rank}.engine", self._names())
        rotary = model["rotary_embedding_dim"], model["rotary_base"], model["rotary_scaling"]
        self.cos, self.sin = rotary_tables(*rotary, settings.limits["max_seq_len"])
        self.tp_rank, self.hidden_size = mapping.tp_rank(rank), model["hidden_size"]
        self.embedding_split = model["embedding_sharding_dim"] if model["use_parallel_embedding"] else None
        pool = settings.scheduling
        shape = (pool.num_blocks, pool.tokens_per_block, self.kv_heads, self.head_size)
        self.cache = KvCache(len(self.layers), *shape)

    def forward(self, batch: Batch) -> Tensor:
        """Hidden states [rows, hidden_size]; on the last stage logits [emitting rows, share of vocabulary]."""
        hidden = self._embedded(batch.tokens) if self.is_first else batch.hidden
        cos, sin = self.cos[batch.positions], self.sin[batch.positions]
        for layer in self.layers:
            name = f"transformer.layers.{layer}"
            attended = self._attention(layer, self._norm(hidden, f"{name}.input_layernorm"), cos, sin, batch)
            hidden = hidden + self._reduced(attended, f"{name}.attention.dense")
            inner = self._norm(hidden, f"{name}.post_layernorm")
            # TensorRT-LLM calls the half that goes through SiLU `fc`, the other `gate`.
            inner = silu(self._linear(inner, f"{name}.mlp.fc")).mul_(self._linear(inner, f"{name}.mlp.gate"))
            hidden = hidden + self._reduced(inner, f"{name}.mlp.proj")
        if not self.is_last:
            return hidden
        return self._linear(self._norm(hidden[batch.emitting], "transformer.ln_f"), "lm_head")

    def _embedded(self, tokens: Tensor) -> Tensor:
        """Hidden states of token ids. With a split embedding this rank has only some rows or some columns.

        An id outside the vocabulary gives zeros.
        """
        table, split = self.weights["transformer.vocab_embedding.weight"], self.embedding_split
        (rows, columns), before = table.shape, self.tp_rank
        local = tokens - before * rows if split == 0 else tokens
        known = (local >= 0) & (local < rows)
        hidden = embedding(local * known, table) * known[:, None]
        if split is None:
            return hidden
        if split == 1:
            hidden = pad(hidden, (before * columns, self.hidden_size - (before + 1) * columns))
        return self.all_reduce(hidden)

    def _attention(self, layer: int, hidden: Tensor, cos: Tensor, sin: Tensor, batch: Batch) -> Tensor:
        qkv = self._linear(hidden, f"transformer.layers.{layer}.attention.qkv").unflatten(1, (-1, self.head_size))
        rotated = qkv[:, : self.heads + self.kv_heads]
        turned = rotated.roll(self.head_size // 2, dims=-1)
        rotated.mul_(cos).addcmul_(turned, sin)
        return self.cache.attend(layer, qkv[:, : self.heads], qkv[:, self.heads :], batch)

    def _norm(self, hidden: Tensor, name: str) -> Tensor:
        return rms_norm(hidden, hidden.shape[-1:], self.weights[f"{name}.weight"], self.epsilon)

    def _linear(self, hidden: Tensor, name: str) -> Tensor:
        return linear(hidden, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def _reduced(self, hidden: Tensor, name: str) -> Tensor:
        """A row-parallel layer: each rank has some columns, and the whole bias, which must count once."""
        total = self.all_reduce(linear(hidden, self.weights[f"{name}.weight"]))
        bias = self.weights.get(f"{name}.bias")
        return total if bias is None else total + bias

    def _names(self) -> list[str]:
        """The tensors that this stage needs. Biases are optional."""
        parts = ["input_layernorm", "attention.qkv", "attention.dense"]
        parts += ["post_layernorm", "mlp.fc", "mlp.gate", "mlp.proj"]
        names = [f"transformer.layers.{layer}.{part}" for layer in self.layers for part in parts]
        names += ["transformer.vocab_embedding"] if self.is_first else []
        names += ["transformer.ln_f", "lm_head"] if self.is_last else []
        return [f"{name}.weight" for name in names]


def load_weights(path: Path, names: list[str]) -> dict[str, Tensor]:
    """All tensors of a rank file in float32. Raises ToolkitError if it is broken, or lacks one of `names`."""
    again = "Run: toolkit build, after deleting the engine directory."
    try:
        with safe_open(path, "pt") as file:
            weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ToolkitError(f"cannot be read: {error}", where=path, hint=again) from None
    for name in names:
        if name not in weights:
            raise ToolkitError(f"{name}: missing", where=path, hint=again)
    return weights
