"""Memory while converting does not follow the size of the model."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "max_position_embeddings": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "dtype": "bfloat16",
}
MEASURE = """
import sys
from pathlib import Path

import torch
from toolkit.checkpoint import convert
from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment

def peak_kib():
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].removesuffix("kB"))

deployment = load_deployment(sys.argv[1])
torch.ones(1 << 20).to(torch.bfloat16).to(torch.float16).aminmax()
before = peak_kib()
assert convert(deployment)
print(peak_kib() - before)
"""

MEASURE_ANONYMOUS = """
import sys
from pathlib import Path

import torch
from toolkit.checkpoint import convert
from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment

def anonymous_kib(*progress):
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    seen.append(int(status["RssAnon"].removesuffix("kB")))

seen = []
deployment = load_deployment(sys.argv[1])
torch.ones(1 << 20).to(torch.bfloat16).to(torch.float16).aminmax()
anonymous_kib()
assert convert(deployment, anonymous_kib)
print(max(seen) - seen[0])
"""
"""Memory that the kernel cannot drop when it is short of it, which pages of mapped files are not; at each block."""


@pytest.mark.slow
def test_peak_memory_is_a_few_blocks(tmp_path, deploy):
    assert write_model(tmp_path / "model", layers=5) > 280e6
    file = deploy(tmp_path / "model", 2, 4).file
    done = subprocess.run([sys.executable, "-c", MEASURE, file], capture_output=True, text=True, check=True)
    assert int(done.stdout) / 1024 < 110  # about 62 MiB; with whole tensors about 150


@pytest.mark.slow
def test_metas_form_is_joined_in_a_few_blocks_too(tmp_path, deploy):
    size = write_meta_model(tmp_path / "model", layers=4, ranks=2)
    assert size > 200e6
    file = deploy(tmp_path / "model", 2, 2).file
    done = subprocess.run([sys.executable, "-c", MEASURE_ANONYMOUS, file], capture_output=True, text=True, check=True)
    assert int(done.stdout) / 1024 < 80  # about 40 MiB


def write_meta_model(directory, layers: int, ranks: int) -> int:
    """The same sizes in Meta's form, shared as Llama 2 is; returns its bytes."""
    directory.mkdir()
    hidden, ffn, vocab = SHAPE["hidden_size"], SHAPE["intermediate_size"], SHAPE["vocab_size"]
    params = {"dim": hidden, "n_layers": layers, "n_heads": 8, "n_kv_heads": 4, "vocab_size": vocab, "multiple_of": ffn}
    (directory / "params.json").write_text(json.dumps(params))
    shapes = {"tok_embeddings": (vocab, hidden // ranks), "output": (vocab // ranks, hidden), "norm": (hidden,)}
    for layer in range(layers):
        for name in ("wq", "wk", "wv"):
            rows = hidden if name == "wq" else hidden // 2
            shapes[f"layers.{layer}.attention.{name}"] = (rows // ranks, hidden)
        shapes[f"layers.{layer}.attention.wo"] = (hidden, hidden // ranks)
        for name in ("w1", "w3"):
            shapes[f"layers.{layer}.feed_forward.{name}"] = (ffn // ranks, hidden)
        shapes[f"layers.{layer}.feed_forward.w2"] = (hidden, ffn // ranks)
        for name in ("attention_norm", "ffn_norm"):
            shapes[f"layers.{layer}.{name}"] = (hidden,)
    tensors = {f"{name}.weight": torch.full(shape, 0.01, dtype=torch.bfloat16) for name, shape in shapes.items()}
    for rank in range(ranks):
        torch.save(tensors, directory / f"consolidated.{rank:02d}.pth")
    return sum(path.stat().st_size for path in directory.glob("*.pth"))


def write_model(directory, layers: int) -> int:
    """A model of 33 MB a layer and 131 MB of embeddings, one file for each; returns its bytes."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(SHAPE | {"num_hidden_layers": layers}))
    hidden, ffn, vocab = SHAPE["hidden_size"], SHAPE["intermediate_size"], SHAPE["vocab_size"]

    def weights(*shape: int) -> torch.Tensor:
        return torch.full(shape, 0.01, dtype=torch.bfloat16)

    ends = {"model.embed_tokens.weight": weights(vocab, hidden), "lm_head.weight": weights(vocab, hidden)}
    save_file(ends | {"model.norm.weight": weights(hidden)}, directory / "ends.safetensors")
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        tensors = {
            "input_layernorm": weights(hidden),
            "post_attention_layernorm": weights(hidden),
            "self_attn.q_proj": weights(hidden, hidden),
            "self_attn.k_proj": weights(hidden // 2, hidden),
            "self_attn.v_proj": weights(hidden // 2, hidden),
            "self_attn.o_proj": weights(hidden, hidden),
            "mlp.gate_proj": weights(ffn, hidden),
            "mlp.up_proj": weights(ffn, hidden),
            "mlp.down_proj": weights(hidden, ffn),
        }
        named = {f"{prefix}.{name}.weight": tensor for name, tensor in tensors.items()}
        save_file(named, directory / f"layer{layer}.safetensors")
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))
