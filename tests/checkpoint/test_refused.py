"""Directories that are not what is converted, and files that are not what their name says: one line, no hang."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from toolkit.checkpoint.source import check_source, open_source
from toolkit.errors import ToolkitError
from toolkit.model.shape import load_shape

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
K_PROJ = "model.layers.3.self_attn.k_proj.weight"


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link(path: Path, target: str) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def sparse(path: Path, size: int) -> None:
    with path.open("wb") as stream:
        stream.truncate(size)


def configured(directory: Path, **changes) -> None:
    fields = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(fields | changes))


def header(directory: Path, content: dict | str, data: int = 0) -> None:
    text = (content if isinstance(content, str) else json.dumps(content)).encode()
    (directory / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))


def entry(shape: list, start: int, end: int, dtype: object = "F16") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def weights_beside(directory: Path, name: str) -> None:
    shutil.copy(directory / WEIGHTS, directory / name)


def added(directory: Path, name: str, tensor: torch.Tensor) -> None:
    save_file(load_file(directory / WEIGHTS) | {name: tensor}, directory / WEIGHTS)


def indexed(directory: Path, *names: object) -> None:
    (directory / INDEX).write_text(json.dumps({"weight_map": {f"t{n}": name for n, name in enumerate(names)}}))


NOT_WHOLE = f"{WEIGHTS}: is not a whole safetensors file: "
FILES = [
    (lambda d: pipe(d / WEIGHTS), f"{WEIGHTS}: is a named pipe, expected a file"),
    (lambda d: pipe(d / "config.json"), "config.json: is a named pipe, expected a file"),
    (lambda d: pipe(d / INDEX), f"{INDEX}: is a named pipe, expected a file"),
    (lambda d: folder(d / WEIGHTS), f"{WEIGHTS}: is a directory, expected a file"),
    (lambda d: folder(d / "config.json"), "config.json: is a directory, expected a file"),
    (lambda d: link(d / WEIGHTS, "/dev/zero"), f"{WEIGHTS}: is a device, expected a file"),
    (lambda d: link(d / WEIGHTS, WEIGHTS), f"{WEIGHTS}: cannot be read: Too many levels of symbolic links"),
    (lambda d: link(d / "config.json", "config.json"), "config.json: cannot be read: Too many levels"),
    (lambda d: link(d / WEIGHTS, "../../blobs/0a"), f"{WEIGHTS}: is a link to ../../blobs/0a, which is not there"),
    (lambda d: sparse(d / WEIGHTS, 1 << 42), f"{NOT_WHOLE}its header is not a JSON object"),
    (lambda d: sparse(d / "config.json", 1 << 42), "config.json: is larger than 4 MiB"),
    (lambda d: (d / "config.json").write_bytes(b'{"a": "\xff"}'), "config.json: is not valid JSON: 'utf-8' codec"),
    (lambda d: (d / "config.json").write_text("[" * 100_000), "config.json: is not valid JSON"),
    (lambda d: (d / "config.json").write_text('{"a": 1, "a": 2}'), "is not valid JSON: the key 'a' is there twice"),
    (lambda d: (d / "config.json").write_text("[]"), "config.json: holds a JSON list, expected an object"),
    (lambda d: (d / "config.json").unlink(), "no config.json in"),
    (lambda d: indexed(d, "gone.safetensors"), "names gone.safetensors, which is not there"),
    (lambda d: indexed(d, ".."), "weight_map: 't0': '..' is not the name of a safetensors file"),
    (lambda d: indexed(d, ""), "weight_map: 't0': '' is not the name of a safetensors file"),
    (lambda d: indexed(d, "a" * 5000 + ".safetensors"), "weight_map: 't0': 'aaaa"),
    (lambda d: indexed(d, "config.json"), "weight_map: 't0': 'config.json' is not the name of a safetensors file"),
    (lambda d: indexed(d, "a\0.safetensors"), "which is not there"),
    (lambda d: indexed(d, WEIGHTS, {"a": 1}), "weight_map: 't1': {'a': 1} is not the name of a safetensors file"),
]
HEADERS = [
    (lambda d: header(d, {"a": entry([2], 0, 4), "b": entry([2], 2, 6)}, 6), "b: its bytes 2 to 6 overlap"),
    (lambda d: header(d, {"a": entry([2], 0, 4), "b": entry([2], 6, 10)}, 10), "b: its bytes 6 to 10 leave a gap"),
    (lambda d: header(d, {"a": entry([2], 0, 4)}, 3), "its tensors end at byte"),
    (lambda d: header(d, {"a": entry([2], 0, 4)}, 5), "its tensors end at byte"),
    (lambda d: header(d, {"a": entry([2], 4, 0)}, 4), "a: begins at byte 4 and ends at 0"),
    (lambda d: header(d, {"a": entry([2], -4, 0)}, 4), "a: expected dtype, shape and data_offsets"),
    (lambda d: header(d, {"a": entry([2], 0, 4, dtype=7)}, 4), "a: expected dtype, shape and data_offsets"),
    (lambda d: header(d, {"a": entry([2], 0, 4, dtype="F" * 5000)}, 4), "a: expected dtype, shape and data_offsets"),
    (lambda d: header(d, {"a": entry([2.0], 0, 4)}, 4), "a: expected dtype, shape and data_offsets"),
    (lambda d: header(d, {"a": entry([True], 0, 2)}, 2), "a: expected dtype, shape and data_offsets"),
    (lambda d: header(d, {"a": None}), "a: expected dtype, shape and data_offsets, got None"),
    (lambda d: header(d, {"a": entry([3], 0, 4)}, 4), "a: has 4 bytes, which does not fit [3] F16"),
    (
        lambda d: header(d, {"a": entry([2**62, 8], 0, 4)}, 4),
        "a: has 4 bytes, which does not fit [4611686018427387904, 8] F16",
    ),
    (lambda d: header(d, {"a": entry([2] * 100_000, 0, 4)}, 4), "a: has 100000 dimensions"),
    (lambda d: header(d, {"a" * 5000: entry([2], 0, 4)}, 4), "a tensor's name has 5000 characters"),
    (lambda d: header(d, f'{{"a": {json.dumps(entry([0], 0, 0))}, "a": {{}}}}'), "the key 'a' is there twice"),
    (lambda d: header(d, '{"a": ' + "9" * 5000 + "}"), "Exceeds the limit"),
    (lambda d: header(d, "[" * 100_000), "its header is not a JSON object"),
    (lambda d: header(d, '{"a": ' + "[" * 100_000), "recursion"),
    (lambda d: (d / WEIGHTS).write_bytes(b"1234567"), "it has 7 bytes"),
    (lambda d: (d / WEIGHTS).write_bytes(struct.pack("<Q", 9) + b'{"a\xff": 1}'), "'utf-8' codec"),
]
HEADERS = [(spoil, NOT_WHOLE + message if "recursion" not in message else message) for spoil, message in HEADERS]
TENSORS = [
    (lambda d: added(d, K_PROJ, torch.zeros(0, 64)), f"{K_PROJ}: has shape [0, 64], config.json asks for [16, 64]"),
    (lambda d: added(d, "a\n\x1b[31m", torch.zeros(1)), "a \\x1b[31m: does not belong"),
    (lambda d: added(d, f"{K_PROJ[:-7]}.qweight", torch.zeros(1)), "qweight: the checkpoint is already quantised"),
    (lambda d: added(d, f"{K_PROJ}_scale", torch.zeros(1)), "weight_scale: the checkpoint is already quantised"),
]
WRAPPED = [
    ("_orig_mod.", "_orig_mod. comes from torch.compile. Save the model inside the wrapper"),
    ("module.", "module. comes from DataParallel or DDP of PyTorch. Save the model inside the wrapper"),
    ("_fsdp_wrapped_module.", "_fsdp_wrapped_module. comes from FSDP of PyTorch. Save the model inside"),
    ("_forward_module.", "_forward_module. comes from Lightning Fabric. Save the model inside"),
    ("base_model.model.", "base_model.model. comes from PEFT. Merge it into its base model first"),
    ("_orig_mod.module.", "_orig_mod. and module. comes from torch.compile and DataParallel or DDP of PyTorch. Save"),
]
"""A prefix of every tensor's name, and what is said of it."""
FORMS = [
    (lambda d: (d / "adapter_config.json").write_text("{}"), "holds a LoRA adapter, not a whole model"),
    (lambda d: (d / "hf_quant_config.json").write_text("{}"), "already quantised by NVIDIA's Model Optimizer"),
    (lambda d: (d / "quantize_config.json").write_text("{}"), "already quantised by GPTQ"),
    (lambda d: (d / WEIGHTS).rename(d / "llama.Q4_K_M.gguf"), "holds GGUF (llama.Q4_K_M.gguf)"),
    (
        lambda d: weights_beside(d, "consolidated.safetensors"),
        "two copies of the weights: consolidated.safetensors and model.safetensors",
    ),
    (lambda d: (d / WEIGHTS).rename(d / "consolidated.safetensors"), "consolidated.safetensors, which has other names"),
    (
        lambda d: (d / "consolidated.00.pth").touch(),
        "two copies of the weights: model.safetensors and consolidated.00.pth",
    ),
    (lambda d: configured(d, quantization_config={"quant_method": "fp8"}), "already quantised ('fp8')"),
    (lambda d: configured(d, quantization_config={"quant_method": "awq"}), "already quantised ('awq')"),
    (lambda d: configured(d, quantization_config=["gptq"]), "quantization_config: the checkpoint is already quantised"),
    (lambda d: configured(d, compression_config={"a": 1}), "compression_config: the checkpoint is already quantised"),
    (
        lambda d: configured(d, architectures=["MistralForCausalLM"]),
        "'MistralForCausalLM' is not supported. Supported: ",
    ),
    (lambda d: configured(d, architectures="Qwen2ForCausalLM"), "architectures: 'Qwen2ForCausalLM' is not supported"),
    (lambda d: configured(d, architectures=[]), "architectures: [] is not supported"),
    (lambda d: configured(d, architectures=5), "architectures: 5 is not supported"),
    (lambda d: configured(d, rope_parameters={"rope_type": "yarn"}), "rope_parameters: type 'yarn' is not supported"),
    (
        lambda d: configured(d, rope_parameters=None, rope_scaling={"type": "dynamic", "factor": 2.0}),
        "rope_scaling: type 'dynamic' is not supported",
    ),
    (lambda d: configured(d, rope_parameters={"rope_type": "llama3"}), "rope_parameters.factor: missing"),
    (
        lambda d: configured(d, rope_parameters={"rope_theta": 1e4}, rope_scaling={"type": "linear", "factor": 2.0}),
        "rope_parameters: contradicts rope_scaling",
    ),
    (
        lambda d: configured(d, rope_parameters=None, rope_scaling={"type": "dynamic", "rope_type": "linear"}),
        "rope_scaling: rope_type 'linear' differs from type 'dynamic'. Keep the one that the model was trained with.",
    ),
    (
        lambda d: configured(d, rope_parameters={"type": "linear", "rope_type": "default", "factor": 2.0}),
        "rope_parameters: rope_type 'default' differs from type 'linear'",
    ),
    (
        lambda d: configured(d, rope_theta=1e4, rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
        "rope_parameters.rope_theta: 500000 differs from rope_theta 10000",
    ),
    (lambda d: configured(d, rope_parameters=[1]), "rope_parameters: expected an object, got [1]"),
    (lambda d: configured(d, hidden_act="gelu"), "hidden_act: 'gelu' is not supported"),
    (lambda d: configured(d, dtype="float8_e4m3fn"), "dtype: 'float8_e4m3fn' is unknown"),
    (lambda d: configured(d, dtype=["float16"]), "dtype: ['float16'] is unknown"),
    (
        lambda d: configured(d, num_hidden_layers=10**9),
        "num_hidden_layers: expected a whole number from 1 to 4,096, got 10",
    ),
    (
        lambda d: configured(d, hidden_size=10**400),
        "hidden_size: expected a whole number from 1 to 1,048,576, got a number of",
    ),
    (lambda d: configured(d, rms_norm_eps=float("inf")), "rms_norm_eps: expected a number from 1e-12 to 0.1, got inf"),
    (lambda d: configured(d, rms_norm_eps=1e19), "rms_norm_eps: expected a number from 1e-12 to 0.1, got 1e+19"),
    (lambda d: configured(d, vocab_size=-5), "vocab_size: expected a whole number from 1 to 16,777,216, got -5"),
    (lambda d: configured(d, intermediate_size=2**25), "intermediate_size: expected a whole number from 1 to 16,777,2"),
    (lambda d: configured(d, head_dim=10**6), "head_dim: expected a whole number from 1 to 16,384, got 1000000"),
    (lambda d: configured(d, max_position_embeddings=2**31 - 1), "max_position_embeddings: expected a whole number"),
    (lambda d: configured(d, rope_parameters={"rope_theta": 1e30}), "rope_theta: expected a number from 1 to 1e+12"),
    (lambda d: configured(d, rms_norm_eps=float("nan")), "rms_norm_eps: expected a number from 1e-12 to 0.1, got nan"),
]


def name_of(case) -> str | None:
    return case if isinstance(case, str) else None


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("spoil", "message"), [*FILES, *HEADERS, *TENSORS, *FORMS], ids=name_of)
def test_one_line_that_says_what_and_where(llama_dir, spoil, message):
    spoil(llama_dir)
    with pytest.raises(ToolkitError) as caught:
        check_source(open_source(llama_dir), load_shape(llama_dir))
    text = str(caught.value)
    assert message in text
    assert str(llama_dir) in text
    assert text.isprintable() and len(text) < 1000


def renamed(directory: Path, rename: Callable[[str], str]) -> None:
    save_file({rename(name): tensor for name, tensor in load_file(directory / WEIGHTS).items()}, directory / WEIGHTS)


def refusal(directory: Path) -> str:
    with pytest.raises(ToolkitError) as caught:
        check_source(open_source(directory), load_shape(directory))
    return str(caught.value)


@pytest.mark.parametrize(("prefix", "message"), WRAPPED, ids=name_of)
def test_weights_that_a_wrapper_saved(llama_dir, prefix, message):
    renamed(llama_dir, lambda name: prefix + name)
    name = "model.embed_tokens.weight"
    assert f"{llama_dir}: {name}: is called {prefix}{name} here; {message}" in refusal(llama_dir)


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (
            lambda name: name.replace("layers.3.", "layers.3._orig_mod."),
            "model.layers.3.input_layernorm.weight: is called model.layers.3._orig_mod.input_layernorm.weight here; "
            "_orig_mod. comes from torch.compile",
        ),
        (
            lambda name: name.replace("mlp.", "_checkpoint_wrapped_module.mlp."),
            "_checkpoint_wrapped_module. comes from activation checkpointing of PyTorch. Save the model inside",
        ),
        (
            lambda name: name.replace("q_proj.", "q_proj.base_layer."),
            "q_proj.base_layer.weight here; base_layer. comes from PEFT. Merge it into its base model first",
        ),
        (
            lambda name: f"language_model.{name}",
            "is called language_model.model.embed_tokens.weight here. Use weights without the prefix language_model.",
        ),
        (
            lambda name: name.removeprefix("model."),
            "model.embed_tokens.weight: is called embed_tokens.weight here, as in a saved LlamaModel, which has",
        ),
        (
            lambda name: name.replace("k_proj.weight", "k_proj.lora_A.weight") if "layers.6" in name else name,
            "model.layers.6.self_attn.k_proj.weight: is missing",
        ),
    ],
    ids=name_of,
)
def test_weights_under_other_names(llama_dir, rename, message):
    renamed(llama_dir, rename)
    assert message in refusal(llama_dir)


def test_weights_of_an_adapter_beside_those_of_the_model(llama_dir):
    added(llama_dir, f"{K_PROJ[:-7]}.lora_A.weight", torch.zeros(2, 64))
    assert "lora_A.weight: is part of a LoRA adapter. Merge it into its base model first" in refusal(llama_dir)


@pytest.mark.parametrize("extra", [{}, {"rope_scaling": {"type": "linear", "factor": 2}}])
def test_two_spellings_that_agree_are_taken(llama_dir, extra):
    rope = {"rope_type": "linear", "type": "linear", "factor": 2.0, "rope_theta": 5e5}
    configured(llama_dir, rope_theta=500000, rope_parameters=rope, **extra)
    shape = load_shape(llama_dir)
    assert (shape.rope_theta, shape.rope_scaling) == (5e5, {"rope_type": "linear", "factor": 2.0})


@pytest.mark.parametrize("name", ["config.json", WEIGHTS, INDEX])
def test_no_permission(llama_dir, monkeypatch, name):
    """Simulated, as whoever may read everything (root) runs tests too."""
    indexed(llama_dir, WEIGHTS)
    really = os.open

    def refuse(path, *rest, **more):
        if Path(path).name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return really(path, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ToolkitError, match=f"{name}: cannot be read: Permission denied"):
        check_source(open_source(llama_dir), load_shape(llama_dir))


def test_a_file_instead_of_a_directory(llama_dir):
    with pytest.raises(ToolkitError, match=r"model\.safetensors: is a file, expected a directory"):
        open_source(llama_dir / WEIGHTS)


def test_a_snapshot_of_hugging_faces_cache(llama_dir, tmp_path):
    """snapshots/HASH/ holds links to ../../blobs/HASH: the names are those of the links."""
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "0a1b"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, name in enumerate(("config.json", WEIGHTS)):
        (llama_dir / name).rename(blobs / f"{number:040x}")
        (snapshot / name).symlink_to(f"../../blobs/{number:040x}")
    source = open_source(snapshot)
    check_source(source, load_shape(snapshot))
    assert [path.name for path in source.files] == ["config.json", WEIGHTS]
    tensor = source.tensors[K_PROJ]
    data = bytearray(tensor.size)
    tensor.read_into(0, memoryview(data))
    assert torch.frombuffer(data, dtype=torch.bfloat16).equal(load_file(snapshot / WEIGHTS)[K_PROJ].flatten())


def test_what_lies_beside_the_weights_is_left_alone(llama_dir):
    """Pickles of the same weights, Meta's form in `original/`, and what macOS puts beside every file."""
    (llama_dir / "pytorch_model.bin").write_bytes(b"x")
    (llama_dir / "model.gguf").write_bytes(b"x")
    (llama_dir / f"._{WEIGHTS}").write_bytes(b"x")
    (llama_dir / "original").mkdir()
    (llama_dir / "original" / "consolidated.00.pth").write_bytes(b"x")
    source = open_source(llama_dir)
    check_source(source, load_shape(llama_dir))
    assert [path.name for path in source.files] == ["config.json", WEIGHTS]
