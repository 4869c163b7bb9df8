"""Small random Llama models from transformers, and deployments that convert them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment

os.environ.setdefault("HF_HUB_OFFLINE", "1")

SIZES = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 7,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


@pytest.fixture(scope="session")
def make_llama():
    """make_llama(directory, **LlamaConfig) saves a random model, biases and norms too; returns its state dict."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(directory: Path, dtype: str = "bfloat16", shard_size: str = "1GB", **sizes) -> dict:
        torch.manual_seed(20)
        model = LlamaForCausalLM(LlamaConfig(**{**SIZES, **sizes})).to(getattr(torch, dtype))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        model.save_pretrained(directory, max_shard_size=shard_size)
        return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    return make


@pytest.fixture(scope="session")
def pristine_llama(tmp_path_factory, make_llama) -> Path:
    directory = tmp_path_factory.mktemp("llama")
    make_llama(directory)
    return directory


@pytest.fixture
def llama_dir(pristine_llama: Path, tmp_path: Path) -> Path:
    """A copy of a small bf16 model, to be spoilt."""
    return Path(shutil.copytree(pristine_llama, tmp_path / "llama"))


@pytest.fixture
def deploy(tmp_path: Path):
    """deploy(model_dir, tp, pp, dtype) -> Deployment, with its output in this test's own directory."""

    def make(model_dir: Path, tp: int = 1, pp: int = 1, dtype: str = "float16") -> Deployment:
        file = tmp_path / f"tp{tp}pp{pp}{dtype}.yaml"
        file.write_text(
            f"engine: rehearsal\nmodel: {{path: {model_dir}, dtype: {dtype}}}\n"
            f"parallel: {{tp: {tp}, pp: {pp}}}\nhardware: {{gpus: 32}}\n"
            f"limits: {{max_seq_len: 128}}\noutput: {tmp_path}/{file.stem}\n"
        )
        return load_deployment(file)

    return make
