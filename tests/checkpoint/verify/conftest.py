"""Small random Llama models, and their checkpoints: converted by us, or written by hand as the vendor does."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import yaml

os.environ.setdefault("HF_HUB_OFFLINE", "1")

SIZES = {"vocab_size": 101, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 8}
SIZES |= {"num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 128}


@pytest.fixture(scope="session")
def make_llama(tmp_path_factory):
    """make_llama(dtype, **LlamaConfig) -> directory of a random model, its biases and norms random, too."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(dtype: str = "bfloat16", **config) -> Path:
        torch.manual_seed(11)
        directory = tmp_path_factory.mktemp("llama")
        model = LlamaForCausalLM(LlamaConfig(**{**SIZES, **config}))
        for name, parameter in model.named_parameters():
            scale = 0.3 if name.endswith("bias") else 0.12
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=scale)
        model.to(getattr(torch, dtype)).save_pretrained(directory)
        return directory

    return make


@pytest.fixture(scope="session")
def llama(make_llama) -> Path:
    return make_llama()


@pytest.fixture(scope="session")
def deploy(tmp_path_factory):
    """deploy(model, tp, pp, dtype, **sections of the YAML) -> Deployment, converted."""
    from toolkit.checkpoint import convert
    from toolkit.config.deployment import Deployment
    from toolkit.config.load import load_deployment

    def make(model: Path, tp: int = 1, pp: int = 1, dtype: str = "float16", **sections) -> Deployment:
        folder = tmp_path_factory.mktemp("deployment")
        content = {
            "engine": "rehearsal",
            "model": {"path": str(model), "dtype": dtype},
            "parallel": {"tp": tp, "pp": pp},
            "limits": {"max_sequences": 4 * pp, "max_num_tokens": 64, "max_seq_len": 64},
            "kv_cache": {"tokens_per_block": 8},
            "hardware": {"gpus": 64},
            "output": str(folder),
            **sections,
        }
        (folder / "trial.yaml").write_text(yaml.safe_dump(content))
        deployment = load_deployment(folder / "trial.yaml")
        convert(deployment)
        return deployment

    return make


@pytest.fixture(scope="session")
def pristine(llama, deploy) -> Path:
    """The checkpoint of `llama` for tp 2 x pp 2 in float16."""
    return deploy(llama, 2, 2).checkpoint_dir


@pytest.fixture
def checkpoint(pristine, tmp_path) -> Path:
    """A copy of it, to be spoilt."""
    return Path(shutil.copytree(pristine, tmp_path / "checkpoint"))
