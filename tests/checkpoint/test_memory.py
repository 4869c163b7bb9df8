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
from toolkit.config import Deployment

def peak_kib():
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].removesuffix("kB"))

deployment = Deployment.load(sys.argv[1])
torch.ones(1 << 20).to(torch.bfloat16).to(torch.float16).aminmax()
before = peak_kib()
assert convert(deployment)
print(peak_kib() - before)
"""


@pytest.mark.slow
def test_peak_memory_is_a_few_blocks(tmp_path, deploy):
    layers = 9
    size = write_model(tmp_path / "model", layers)
    assert size > 400e6
    file = deploy(tmp_path / "model", 2, 4).file
    done = subprocess.run([sys.executable, "-c", MEASURE, file], capture_output=True, text=True, check=True)
    assert int(done.stdout) / 1024 < 110  # about 62 MiB; with whole tensors about 150


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
