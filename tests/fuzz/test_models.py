"""What a model's folder or a checkpoint holds, with anything in it: headers, config.json, tokenizers, templates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from toolkit.checkpoint.reader import open_checkpoint
from toolkit.checkpoint.source import check_source, open_source
from toolkit.checkpoint.verify import verify
from toolkit.config.deployment import with_settings
from toolkit.config.load import load_deployment
from toolkit.model.chat_template import ChatTemplate, chat_messages
from toolkit.model.shape import load_shape
from toolkit.model.tokenizer import foreseen, open_tokenizer, special_tokens
from toolkit.repository.token_table import write_token_table
from toolkit.workload.words import Writer

from .fuzzing import JSON_PIECES, changed, checked, damaged, examples

pytestmark = pytest.mark.thorough

TINY = Path(__file__).parents[2] / "build_configs/tiny-llama-rehearsal.yaml"
SIZES = {"vocab_size": 24, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32}
CONFIG = {"architectures": ["LlamaForCausalLM"], "dtype": "float16", "rms_norm_eps": 1e-5, "rope_theta": 1e4, **SIZES}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """The smallest Llama, in Hugging Face's form."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    hidden, own = "model.layers.0.", {"q": 16, "k": 8, "v": 8, "o": 16}
    shapes = {f"{hidden}self_attn.{name}_proj.weight": (size, 16) for name, size in own.items()}
    shapes |= {f"{hidden}mlp.{name}_proj.weight": (16, 16) for name in ("gate", "up", "down")}
    shapes |= {f"{hidden}{name}_layernorm.weight": (16,) for name in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (16,), "model.embed_tokens.weight": (24, 16), "lm_head.weight": (24, 16)}
    torch.manual_seed(1)
    tensors = {name: torch.randn(shape).to(torch.float16) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory) -> Path:
    """Its checkpoint, of one rank."""
    from toolkit.checkpoint import convert

    folder = tmp_path_factory.mktemp("converted")
    limits = {"max_sequences": 4, "max_num_tokens": 32, "max_seq_len": 32}
    content = {"engine": "rehearsal", "model": {"path": str(model)}, "limits": limits, "output": str(folder / "out")}
    (folder / "x.yaml").write_text(json.dumps(content))
    deployment = load_deployment(folder / "x.yaml")
    convert(deployment)
    return deployment.checkpoint_dir


def spoil_header(data: st.DataObject, file: Path) -> None:
    """Another header, or other bytes in it; the data stays."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    text, rest = content[8 : 8 + length], content[8 + length :]
    header = json.loads(text)
    new = data.draw(
        changed(header).map(lambda one: json.dumps(one).encode()) | damaged(text, [*JSON_PIECES, b'"shape":', b"-"])
    )
    told = data.draw(st.sampled_from([len(new)] * 8 + [0, 2**40, 2**63, len(new) - 1]))
    file.write_bytes(told.to_bytes(8, "little") + new + rest)


def spoil_json(data: st.DataObject, file: Path) -> None:
    content = json.loads(file.read_text())
    text = json.dumps(content).encode()
    file.write_bytes(data.draw(changed(content).map(lambda one: json.dumps(one).encode()) | damaged(text, JSON_PIECES)))


def fresh(source: Path, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return Path(shutil.copytree(source, folder))


@examples(40)
@given(st.data(), st.booleans())
def test_sources(tmp_path, model, data, of_header):
    spoilt = fresh(model, tmp_path / "model")
    if of_header:
        spoil_header(data, spoilt / "model.safetensors")
    else:
        spoil_json(data, spoilt / "config.json")
    checked(lambda: check_source(open_source(spoilt), load_shape(spoilt)), tmp_path)


@examples(40)
@given(st.data(), st.booleans())
def test_checkpoints(tmp_path, model, checkpoint, data, of_header):
    """What is opened is also read: every element of every tensor, compared with the model."""
    spoilt = fresh(checkpoint, tmp_path / "checkpoint")
    if of_header:
        spoil_header(data, spoilt / "rank0.safetensors")
    else:
        spoil_json(data, spoilt / "config.json")

    def use() -> None:
        open_checkpoint(spoilt)
        verify(spoilt, model, meaning=False)

    checked(use, tmp_path)


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json")


@pytest.mark.parametrize("name", TOKENIZER_FILES)
@examples(10)
@given(data=st.data())
def test_tokenizers(tmp_path, tiny_llama, name, data):
    spoilt = fresh(tiny_llama, tmp_path / "model")
    spoil_json(data, spoilt / name)
    deployment = load_deployment(TINY)
    deployment = with_settings(deployment, model={"path": spoilt})

    def use() -> None:
        foreseen(deployment.model.path, deployment.shape.vocab_size)
        path, tokenizer = open_tokenizer(deployment.model.path, deployment.shape.vocab_size)
        special_tokens(deployment.model.path, deployment.shape.vocab_size)
        write_token_table(path, tmp_path, tokenizer)
        ChatTemplate(spoilt).render(chat_messages("Why?", "Be brief."))
        Writer(path, 1, 2)

    checked(use, tmp_path)


TEMPLATE_PIECES = [
    b"{{ 1/0 }}",
    b"{% for x in y %}",
    b"{{ ''.__class__ }}",
    b"{% raw %}",
    b"{{ x['a'] }}",
    b"{#",
    b"\xff",
]
TEMPLATE_PIECES += [b"{% include 'x' %}", b"{{ raise_exception('\x1b') }}", b"{% endfor %}", b"{{ messages|tojson }}"]


@examples(20)
@given(data=st.data())
def test_chat_templates(tmp_path, tiny_llama, data):
    spoilt = fresh(tiny_llama, tmp_path / "model")
    text = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}{% endfor %}"
    (spoilt / "chat_template.jinja").write_bytes(data.draw(damaged(text.encode(), TEMPLATE_PIECES)))
    checked(lambda: ChatTemplate(spoilt).render(chat_messages("Why?")), tmp_path)
