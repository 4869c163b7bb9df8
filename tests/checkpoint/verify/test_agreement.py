"""What the ranks compute together is what transformers computes with the whole model."""

from __future__ import annotations

import itertools
from copy import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.checkpoint.test_meta import meta_tensors, write_meta
from toolkit.checkpoint import layout
from toolkit.checkpoint.reader import open_checkpoint
from toolkit.checkpoint.verify import verify
from toolkit.checkpoint.verify.sharded import ShardedModel

PROMPTS = [[(7 * i * n + n) % 101 for i in range(1, n + 1)] for n in (1, 6, 29)]
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32, "rope_theta": 10000.0}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}


@cache
def whole_logits(model_dir) -> torch.Tensor:
    """Of all positions of all prompts [tokens, vocabulary]."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    with torch.inference_mode():
        return torch.cat([model(torch.tensor([prompt])).logits[0] for prompt in PROMPTS])


def sharded_logits(checkpoint_dir) -> torch.Tensor:
    checkpoint, lengths = open_checkpoint(checkpoint_dir), [len(prompt) for prompt in PROMPTS]
    model = ShardedModel(checkpoint, max(lengths))
    hidden = model.embed(torch.tensor([token for prompt in PROMPTS for token in prompt]))
    for layer in range(checkpoint.shape.num_hidden_layers):
        hidden = model.layer(layer, hidden, lengths)
    return model.logits(hidden)


LAYOUTS = [
    pytest.param(tp, pp, marks=[] if (tp, pp) in ((1, 1), (2, 2), (8, 8)) else pytest.mark.thorough)
    for tp, pp in itertools.product((1, 2, 4, 8), repeat=2)
]


@pytest.mark.parametrize(("tp", "pp"), LAYOUTS)
def test_every_layout(llama, deploy, tp, pp):
    """8 heads and 2 KV heads, which tp 4 and 8 repeat; a vocabulary of 101, which no tp divides."""
    expected, actual = whole_logits(llama), sharded_logits(deploy(llama, tp, pp).checkpoint_dir)
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() < 1e-5 * expected.abs().max()
    assert actual.argmax(1).equal(expected.argmax(1))


SHAPES = {
    "every bias": {"attention_bias": True, "mlp_bias": True},
    "llama3 scaling": {"rope_parameters": LLAMA3},
    "linear scaling": {"rope_parameters": LINEAR},
    "tied embeddings and a head size of its own": {"tie_word_embeddings": True, "head_dim": 16},
    "no grouped heads, uneven stages": {"num_key_value_heads": 8, "num_hidden_layers": 5},
}


@pytest.mark.parametrize(
    "shape", [pytest.param(name, marks=[] if name == "every bias" else pytest.mark.thorough) for name in SHAPES]
)
def test_every_shape(make_llama, deploy, shape):
    model = make_llama(**SHAPES[shape])
    checkpoint = deploy(model, 4, 2).checkpoint_dir
    expected = whole_logits(model)
    assert (sharded_logits(checkpoint) - expected).abs().max() < 1e-5 * expected.abs().max()
    result = verify(checkpoint, model)
    assert result.same, result.differences
    assert result.meaning.logits_error < 1e-5


@pytest.mark.parametrize("source", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("target", ["float16", "bfloat16", "float32"])
def test_rounding_is_no_difference(make_llama, deploy, source, target):
    model = make_llama(source, num_hidden_layers=2)
    result = verify(deploy(model, 2, 1, target).checkpoint_dir, model)
    assert result.same, result.differences
    assert result.meaning.logits_error < 1e-5
    layer = 2 * 64 + 48 * 64 + 64 * 32 + 2 * 48 * 64 + 64 * 48  # of a rank: norms, qkv, dense, fc and gate, proj
    assert result.bytes.elements == 2 * (101 * 64 + 2 * layer + 64 + 51 * 64)


def test_a_model_with_a_tokenizer_is_tried_on_text(tiny_llama, deploy):
    result = verify(deploy(tiny_llama, 2, 4).checkpoint_dir, tiny_llama, prompts=["Hello", "The sea is"])
    assert result.same
    assert (result.meaning.prompts.origin, len(result.meaning.prompts.ids)) == ("texts", 2)


def test_a_source_in_metas_form(make_llama, deploy, tmp_path):
    model = make_llama(num_hidden_layers=2, num_key_value_heads=8, vocab_size=104)
    meta = write_meta(tmp_path / "meta", meta_tensors(load_file(model / "model.safetensors")), 2, rope_theta=10000.0)
    checkpoint = deploy(meta, 2, 2).checkpoint_dir
    result = verify(checkpoint, meta)
    assert result.same, result.differences
    expected = whole_logits(model)
    assert (sharded_logits(checkpoint) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("wrong", ["gate and up", "queries of the next rank"])
def test_the_meaning_does_not_trust_our_idea_of_the_format(llama, deploy, monkeypatch, wrong):
    """With the same mistake in writing and in comparing, the bytes agree; what is computed does not."""
    if wrong == "gate and up":
        exchanged = {"mlp.fc": ("mlp.up_proj",), "mlp.gate": ("mlp.gate_proj",)}
        modules = tuple(replace(each, sources=exchanged.get(each.name, each.sources)) for each in layout.LAYER)
        monkeypatch.setattr(layout, "LAYER", modules)
    else:
        heads = layout._Cut._heads
        monkeypatch.setattr(layout._Cut, "_heads", lambda cut, source, count: heads(turned(cut), source, count))
    result = verify(deploy(llama, 2, 2).checkpoint_dir, llama)
    assert result.bytes.differences == ()
    assert [each.where for each in result.meaning.differences][:2] == ["layer 0 (stage 0)", "layer 1 (stage 0)"]


def turned(cut):
    """The same cut for the next tensor parallel rank."""
    other = copy(cut)
    other.tp_rank = (cut.tp_rank + 1) % cut.tp
    return other
