"""Sources that cannot be converted: one line that names what is wrong and what to do, and no files left."""

from __future__ import annotations

import json
import resource
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from toolkit.checkpoint import convert
from toolkit.checkpoint.source import open_source
from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
Q_PROJ = "model.layers.3.self_attn.q_proj.weight"


def edit(directory: Path, **changes) -> None:
    """Change, add or (None) remove tensors of the model's only file."""
    tensors = load_file(directory / WEIGHTS)
    for name, tensor in changes.items():
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, directory / WEIGHTS)


def value_at(directory: Path, value: float) -> None:
    tensor = load_file(directory / WEIGHTS)[Q_PROJ].float()
    tensor[5, 7] = value
    edit(directory, **{Q_PROJ: tensor})


def only_pickles(directory: Path) -> None:
    (directory / WEIGHTS).rename(directory / "pytorch_model.bin")


def truncated(directory: Path) -> None:
    content = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes(content[:-100])


def cut_in_header(directory: Path) -> None:
    (directory / WEIGHTS).write_bytes((directory / WEIGHTS).read_bytes()[:200])


def empty(directory: Path) -> None:
    (directory / WEIGHTS).write_bytes(b"")


def garbage(directory: Path) -> None:
    (directory / WEIGHTS).write_bytes(bytes(range(256)) * 100)


def lfs_pointer(directory: Path) -> None:
    (directory / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def huge_header(directory: Path) -> None:
    (directory / WEIGHTS).write_bytes(struct.pack("<Q", 2**62) + b"{}")


def offsets_out_of_range(directory: Path) -> None:
    header = {"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 1 << 40]}}
    text = json.dumps(header).encode()
    (directory / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 16)


def index_names_missing_shard(directory: Path) -> None:
    index = {"weight_map": {Q_PROJ: "model-00001-of-00002.safetensors"}}
    (directory / INDEX).write_text(json.dumps(index))


def index_leaves_directory(directory: Path) -> None:
    (directory / INDEX).write_text(json.dumps({"weight_map": {Q_PROJ: "../secret.safetensors"}}))


def index_is_empty(directory: Path) -> None:
    (directory / INDEX).write_text("{}")


def index_and_single_file(directory: Path) -> None:
    (directory / WEIGHTS).with_name("a.safetensors").write_bytes((directory / WEIGHTS).read_bytes())
    (directory / INDEX).write_text(json.dumps({"weight_map": {Q_PROJ: "a.safetensors"}}))


def duplicate(directory: Path) -> None:
    save_file({Q_PROJ: torch.zeros(64, 64)}, directory / "more.safetensors")


SPOILT = [
    (lambda d: (d / WEIGHTS).unlink(), "holds no *.safetensors"),
    (only_pickles, "pytorch_model.bin). They are refused, because reading them can run code"),
    (truncated, f"{WEIGHTS}: is not a whole safetensors file"),
    (cut_in_header, f"{WEIGHTS}: is not a whole safetensors file"),
    (empty, f"{WEIGHTS}: is not a whole safetensors file"),
    (garbage, f"{WEIGHTS}: is not a whole safetensors file"),
    (huge_header, f"{WEIGHTS}: is not a whole safetensors file"),
    (offsets_out_of_range, f"{WEIGHTS}: is not a whole safetensors file"),
    (lfs_pointer, "Git LFS pointer"),
    (index_names_missing_shard, "names model-00001-of-00002.safetensors, which is not there"),
    (index_leaves_directory, "'../secret.safetensors' is not the name of a safetensors file"),
    (index_is_empty, "weight_map: expected"),
    (index_and_single_file, "two copies of the weights"),
    (duplicate, f"{Q_PROJ}: is in model.safetensors and in more.safetensors"),
    (lambda d: edit(d, **{Q_PROJ: None}), f"{Q_PROJ}: is missing from model.safetensors"),
    (lambda d: edit(d, **{"lm_head.weight": None}), "lm_head.weight: is missing from model.safetensors"),
    (
        lambda d: edit(d, **{Q_PROJ: torch.zeros(64, 32)}),
        f"{Q_PROJ}: has shape [64, 32], config.json asks for [64, 64]",
    ),
    (
        lambda d: edit(d, **{Q_PROJ: torch.zeros(64, 64, dtype=torch.int8)}),
        f"{Q_PROJ}: has dtype I8, expected F16, BF16, F32",
    ),
    (
        lambda d: edit(d, **{Q_PROJ: torch.zeros(64, 64).to(torch.float8_e4m3fn)}),
        f"{Q_PROJ}: has dtype F8_E4M3, expected F16, BF16, F32",
    ),
    (
        lambda d: edit(d, **{"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}),
        "model.layers.0.self_attn.q_proj.bias: does not belong",
    ),
    (lambda d: value_at(d, float("nan")), f"{Q_PROJ}: value at [5, 7] is nan"),
    (lambda d: value_at(d, float("-inf")), f"{Q_PROJ}: value at [5, 7] is -inf"),
    (lambda d: value_at(d, 70000.0), f"{Q_PROJ}: value 70000 at [5, 7] is too large for float16"),
]


def name_of(case) -> str | None:
    return case if isinstance(case, str) else None


@pytest.mark.parametrize(("spoil", "message"), SPOILT, ids=name_of)
def test_one_line_and_no_files(llama_dir, deploy, spoil, message):
    deployment = deploy(llama_dir, 2, 2)
    spoil(llama_dir)
    assert_refused(deployment, message)
    assert not deployment.checkpoint_dir.exists()


def test_position_counts_from_the_tensors_first_row_not_the_blocks(llama_dir, deploy, monkeypatch):
    monkeypatch.setattr("toolkit.checkpoint.source.BLOCK_BYTES", 2 * 64 * 4)
    deployment = deploy(llama_dir)
    value_at(llama_dir, float("inf"))
    assert_refused(deployment, "[5, 7]")


def test_overflow_of_bfloat16_is_an_error_for_float16_only(llama_dir, deploy):
    value_at(llama_dir, 65536.0)
    edit(llama_dir, **{Q_PROJ: load_file(llama_dir / WEIGHTS)[Q_PROJ].bfloat16()})
    assert_refused(deploy(llama_dir), "65536 at [5, 7]")
    assert convert(deploy(llama_dir, dtype="bfloat16")) is True


def test_rotary_frequencies_of_older_checkpoints_are_left_out(llama_dir, deploy):
    edit(llama_dir, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)})
    assert convert(deploy(llama_dir)) is True


def test_a_failed_conversion_leaves_the_old_checkpoint_as_it_was(llama_dir, deploy):
    deployment = deploy(llama_dir)
    convert(deployment)
    before = {path.name: path.read_bytes() for path in deployment.checkpoint_dir.iterdir()}
    value_at(llama_dir, float("nan"))
    assert_refused(deployment, "nan")
    assert {path.name: path.read_bytes() for path in deployment.checkpoint_dir.iterdir()} == before


def test_directory_that_is_not_there(llama_dir, deploy):
    deployment = deploy(llama_dir)
    llama_dir.rename(llama_dir.with_name("elsewhere"))
    assert_refused(deployment, "no such")


def test_name_longer_than_the_file_system_allows(tmp_path):
    with pytest.raises(ToolkitError, match="cannot be read"):
        open_source(tmp_path / ("x" * 300))


def test_disk_too_small_shows_before_anything_is_read(llama_dir, deploy):
    deployment = deploy(llama_dir, 2, 2)
    calls = []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        assert_refused(deployment, "no room for rank0.safetensors", progress=lambda *done: calls.append(done))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not calls


def test_output_that_cannot_be_a_directory(llama_dir, deploy):
    deployment = deploy(llama_dir)
    deployment.output.write_text("a file in the way")
    assert_refused(deployment, str(deployment.output))


def assert_refused(deployment: Deployment, message: str, **options) -> None:
    shape = deployment.shape  # read while config.json is still there
    assert shape.num_hidden_layers
    with pytest.raises(ToolkitError) as caught:
        convert(deployment, **options)
    text = str(caught.value)
    assert message in text
    assert "\n" not in text
    leftovers = deployment.output.rglob("*.partial") if deployment.output.is_dir() else []
    assert not list(leftovers)
