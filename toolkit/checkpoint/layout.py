"""The whole format of a TensorRT-LLM Llama checkpoint: which rank holds which slice of which tensor.

A rank file holds the layers of one pipeline stage, renumbered from 0, cut for one tensor parallel rank.
Each of its tensors is a stack of rectangles cut from Hugging Face tensors, one above the other; rows
that no rectangle fills are zero. Nothing else in the project knows a name or a shard rule.

Source: TensorRT-LLM 1.2, models/llama/convert.py, models/model_weights_loader.py, layers/linear.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from toolkit.errors import ToolkitError
from toolkit.model.rank_mapping import RankMapping
from toolkit.model.shape import ModelShape

Shape = tuple[int, ...]
Split = Literal["whole", "heads", "rows", "columns"]
Embedding = Literal["whole", "rows", "columns"]


@dataclass(frozen=True)
class Piece:
    """A rectangle of a source tensor: some of its rows and, of a matrix, some of its columns."""

    source: str
    rows: range
    columns: range | None = None


@dataclass(frozen=True)
class Tensor:
    """A tensor of a rank file: `pieces` stacked by rows, then zero rows up to `shape`."""

    name: str
    shape: Shape
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class _Module:
    """A module of a decoder layer, and how its weight is shared among tensor parallel ranks.

    Heads are groups of head_dim rows. A bias is shared as the rows are: whole where columns are split.
    """

    name: str
    sources: tuple[str, ...]
    split: Split


# In TensorRT-LLM `fc` is the gate (the half that goes through SiLU) and `gate` is the up projection.
LAYER = (
    _Module("input_layernorm", ("input_layernorm",), "whole"),
    _Module("attention.qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "heads"),
    _Module("attention.dense", ("self_attn.o_proj",), "columns"),
    _Module("post_layernorm", ("post_attention_layernorm",), "whole"),
    _Module("mlp.fc", ("mlp.gate_proj",), "rows"),
    _Module("mlp.gate", ("mlp.up_proj",), "rows"),
    _Module("mlp.proj", ("mlp.down_proj",), "columns"),
)
EMBEDDING, FINAL_NORM, LM_HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


def rank_tensors(shape: ModelShape, mapping: RankMapping, rank: int, embedding: Embedding = "whole") -> list[Tensor]:
    """The tensors of `rank{rank}.safetensors`, in file order.

    `embedding`: every rank of the first stage has all of the vocabulary's vectors, or a share of its rows
    (padded as the output matrix is), or of the columns.
    """
    tensors = []
    cut = _Cut(shape, mapping.tp, mapping.tp_rank(rank))
    if mapping.is_first_stage(rank):
        name = "transformer.vocab_embedding.weight"
        rows = embedding == "rows"
        tensors.append(cut.padded_rows(name, EMBEDDING) if rows else cut.tensor(name, [EMBEDDING], embedding))
    for local, layer in enumerate(mapping.layers(shape.num_hidden_layers, mapping.pp_rank(rank))):
        tensors += _layer_tensors(shape, cut, local, layer)
    if mapping.is_last_stage(rank):
        tensors.append(cut.tensor("transformer.ln_f.weight", [FINAL_NORM], "whole"))
        tensors.append(cut.padded_rows("lm_head.weight", EMBEDDING if shape.tie_word_embeddings else LM_HEAD))
    return tensors


def source_shapes(shape: ModelShape) -> dict[str, Shape]:
    """Name and shape of every tensor that the Hugging Face checkpoint must hold."""
    hidden, vocab = shape.hidden_size, shape.vocab_size
    shapes: dict[str, Shape] = {EMBEDDING: (vocab, hidden), FINAL_NORM: (hidden,)}
    if not shape.tie_word_embeddings:
        shapes[LM_HEAD] = (vocab, hidden)
    for layer in range(shape.num_hidden_layers):
        for module, dimensions in _layer_shapes(shape).items():
            shapes[f"model.layers.{layer}.{module}.weight"] = dimensions
            if _has_bias(shape, module):
                shapes[f"model.layers.{layer}.{module}.bias"] = dimensions[:1]
    return shapes


def is_ignorable(shape: ModelShape, name: str) -> bool:
    """Whether a source tensor that the model does not need may be there all the same.

    Older checkpoints store the rotary frequencies, which follow from config.json; some tied ones store
    the output matrix a second time.
    """
    return name.endswith(".rotary_emb.inv_freq") or (shape.tie_word_embeddings and name == LM_HEAD)


def _layer_tensors(shape: ModelShape, cut: _Cut, local: int, layer: int) -> Iterator[Tensor]:
    for module in LAYER:
        target = f"transformer.layers.{local}.{module.name}"
        sources = [f"model.layers.{layer}.{source}" for source in module.sources]
        yield cut.tensor(f"{target}.weight", [f"{source}.weight" for source in sources], module.split)
        if _has_bias(shape, module.sources[0]):
            split: Split = "whole" if module.split == "columns" else module.split
            yield cut.tensor(f"{target}.bias", [f"{source}.bias" for source in sources], split)


def _layer_shapes(shape: ModelShape) -> dict[str, Shape]:
    hidden, ffn = shape.hidden_size, shape.intermediate_size
    q, kv = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    return {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (q, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, q),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
    }


def _has_bias(shape: ModelShape, module: str) -> bool:
    if module.startswith("self_attn."):
        return shape.attention_bias
    return shape.mlp_bias and module.startswith("mlp.")


class _Cut:
    """Cuts source tensors for one tensor parallel rank."""

    def __init__(self, shape: ModelShape, tp: int, tp_rank: int) -> None:
        if shape.num_attention_heads % tp:
            raise ToolkitError(f"tp {tp} does not divide num_attention_heads {shape.num_attention_heads}")
        self.shapes, self.head_dim = source_shapes(shape), shape.head_dim
        self.tp, self.tp_rank = tp, tp_rank

    def tensor(self, name: str, sources: list[str], split: Split) -> Tensor:
        pieces = tuple(self._piece(source, split) for source in sources)
        dimensions = self.shapes[sources[0]]
        columns = () if len(dimensions) == 1 else (len(pieces[0].columns or range(dimensions[1])),)
        return Tensor(name, (sum(len(piece.rows) for piece in pieces), *columns), pieces)

    def padded_rows(self, name: str, source: str) -> Tensor:
        """Rows padded with zeros to a multiple of tp, then split; the last ranks may get only padding."""
        vocab, hidden = self.shapes[source]
        rows = math.ceil(vocab / self.tp)
        start, stop = (min(vocab, rank * rows) for rank in (self.tp_rank, self.tp_rank + 1))
        return Tensor(name, (rows, hidden), (Piece(source, range(start, stop)),))

    def _piece(self, source: str, split: Split) -> Piece:
        dimensions = self.shapes[source]
        rows = range(dimensions[0])
        if split == "whole":
            return Piece(source, rows)
        if split == "columns":
            return Piece(source, rows, self._share(source, dimensions[1]))
        if split == "heads":
            heads = self._heads(source, dimensions[0] // self.head_dim)
            return Piece(source, range(heads.start * self.head_dim, heads.stop * self.head_dim))
        return Piece(source, self._share(source, dimensions[0]))

    def _heads(self, source: str, count: int) -> range:
        """This rank's heads. Fewer KV heads than ranks: each is repeated on tp / count neighbours."""
        if count < self.tp and self.tp % count == 0:
            head = self.tp_rank * count // self.tp
            return range(head, head + 1)
        return self._share(source, count)

    def _share(self, source: str, count: int) -> range:
        """This rank's equal share of `count` rows, columns or heads."""
        size, remainder = divmod(count, self.tp)
        if remainder:
            raise ToolkitError(f"{source}: {count} parts cannot be shared equally by tp {self.tp} ranks")
        return range(self.tp_rank * size, (self.tp_rank + 1) * size)
