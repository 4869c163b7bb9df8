"""Meta's original form, made by hand from a Hugging Face model: the same tensors and the same checkpoint come out."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from toolkit.checkpoint import convert
from toolkit.checkpoint.source import check_source, open_source
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.model.shape import load_shape
from toolkit.model.tokenizer import tokenizer_file

HEADS, HEAD_DIM, DIM = 8, 8, 64
SIZES = {"num_hidden_layers": 2, "num_key_value_heads": 8, "vocab_size": 104, "tie_word_embeddings": False}
PARAMS = {"dim": 64, "n_layers": 2, "n_heads": 8, "n_kv_heads": 8, "vocab_size": 104, "norm_eps": 1e-6}
PARAMS |= {"ffn_dim_multiplier": 0.5, "multiple_of": 32, "rope_theta": 500000.0}
LAYER = {
    "attention.wq": ("self_attn.q_proj", 0),
    "attention.wk": ("self_attn.k_proj", 0),
    "attention.wv": ("self_attn.v_proj", 0),
    "attention.wo": ("self_attn.o_proj", 1),
    "feed_forward.w1": ("mlp.gate_proj", 0),
    "feed_forward.w2": ("mlp.down_proj", 1),
    "feed_forward.w3": ("mlp.up_proj", 0),
    "attention_norm": ("input_layernorm", None),
    "ffn_norm": ("post_attention_layernorm", None),
}


def in_metas_order(weight: torch.Tensor) -> torch.Tensor:
    """Row 2i of a head from row i of its first half, row 2i + 1 from row i of its second."""
    rows = [
        HEAD_DIM * head + half * HEAD_DIM // 2 + pair
        for head in range(len(weight) // HEAD_DIM)
        for pair in range(HEAD_DIM // 2)
        for half in (0, 1)
    ]
    return weight[rows]


def meta_tensors(state: dict, embedding_axis: int = 0) -> dict[str, tuple[torch.Tensor, int | None]]:
    """By Meta's name: the whole tensor, and the axis along which the ranks share it."""
    whole = {
        "tok_embeddings.weight": (state["model.embed_tokens.weight"], embedding_axis),
        "norm.weight": (state["model.norm.weight"], None),
        "output.weight": (state["lm_head.weight"], 0),
        "rope.freqs": (torch.zeros(4), None),
    }
    for layer in range(2):
        for name, (theirs, axis) in LAYER.items():
            weight = state[f"model.layers.{layer}.{theirs}.weight"]
            weight = in_metas_order(weight) if name in ("attention.wq", "attention.wk") else weight
            whole[f"layers.{layer}.{name}.weight"] = (weight, axis)
    return whole


def write_meta(directory: Path, tensors: dict, ranks: int, **params) -> Path:
    directory.mkdir()
    (directory / "params.json").write_text(json.dumps(PARAMS | params))
    for rank in range(ranks):
        held = {
            name: (tensor if axis is None else tensor.chunk(ranks, axis)[rank]).clone()
            for name, (tensor, axis) in tensors.items()
        }
        torch.save(held, directory / f"consolidated.{rank:02d}.pth")
    return directory


def read(tensor, rows_at_once: int) -> torch.Tensor:
    """A source tensor, read in blocks of so many rows."""
    buffer = bytearray(tensor.size)
    row_bytes = tensor.size // tensor.shape[0]
    for row in range(0, tensor.shape[0], rows_at_once):
        tensor.read_into(row, memoryview(buffer)[row * row_bytes : (row + rows_at_once) * row_bytes])
    dtype = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}[tensor.dtype]
    return torch.frombuffer(buffer, dtype=dtype).view(tensor.shape)


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory, make_llama):
    directory = tmp_path_factory.mktemp("hf")
    return directory, make_llama(directory, **SIZES)


@pytest.fixture(scope="module")
def state(hugging_face):
    return hugging_face[1]


@pytest.fixture
def meta_dir(state, tmp_path):
    """Two ranks, to be spoilt."""
    return write_meta(tmp_path / "meta", meta_tensors(state), 2)


@pytest.mark.parametrize("rows_at_once", [1, 3, 1000])
@pytest.mark.parametrize("ranks", [1, 2, 8])
@pytest.mark.parametrize("embedding_axis", [0, 1], ids=["llama3", "llama2"])
def test_tensors_are_hugging_faces(state, tmp_path, ranks, embedding_axis, rows_at_once):
    directory = write_meta(tmp_path / "meta", meta_tensors(state, embedding_axis), ranks)
    source = open_source(directory)
    check_source(source, load_shape(directory))
    assert source.tensors.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(read(source.tensors[name], rows_at_once), tensor), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_types(state, tmp_path, dtype):
    tensors = {name: (tensor.to(dtype), axis) for name, (tensor, axis) in meta_tensors(state).items()}
    source = open_source(write_meta(tmp_path / "meta", tensors, 2))
    name = "model.layers.1.self_attn.k_proj.weight"
    assert torch.equal(read(source.tensors[name], 5), state[name].to(dtype))


@pytest.mark.parametrize("ranks", [1, 8])
def test_the_checkpoint_is_that_of_hugging_faces_form(hugging_face, tmp_path, deploy, ranks):
    from_hugging_face = deploy(hugging_face[0], 2, 2)
    convert(from_hugging_face)
    meta = write_meta(tmp_path / "meta", meta_tensors(hugging_face[1]), ranks)
    file = tmp_path / "meta.yaml"
    file.write_text(from_hugging_face.file.read_text().replace(str(hugging_face[0]), str(meta)))
    from_meta = load_deployment(file)
    expected = {rank: load_file(from_hugging_face.checkpoint_dir / f"rank{rank}.safetensors") for rank in range(4)}
    assert convert(from_meta) is True
    for rank, tensors in expected.items():
        from_meta_tensors = load_file(from_meta.checkpoint_dir / f"rank{rank}.safetensors")
        assert from_meta_tensors.keys() == tensors.keys()
        assert all(torch.equal(from_meta_tensors[name], tensor) for name, tensor in tensors.items())
    assert convert(from_meta) is False


def test_attention_scores_are_the_same_in_both_layouts(tmp_path, state):
    """Meta's rotation of neighbouring rows, written out here, against transformers' rotation of halves."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    torch.manual_seed(0)
    positions, inputs = 7, torch.randn(7, DIM)
    angles = torch.outer(torch.arange(positions), 10000.0 ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM))
    tensors = {name: (tensor.float(), axis) for name, (tensor, axis) in meta_tensors(state).items()}

    def heads(weight: torch.Tensor) -> torch.Tensor:
        return (inputs @ weight.T).view(positions, HEADS, HEAD_DIM).transpose(0, 1)

    def meta_rotated(name: str) -> torch.Tensor:
        pairs = heads(tensors[f"layers.0.attention.{name}.weight"][0]).unflatten(-1, (-1, 2)).contiguous()
        turned = torch.view_as_complex(pairs) * torch.polar(torch.ones_like(angles), angles)
        return torch.view_as_real(turned).flatten(-2)

    source = open_source(write_meta(tmp_path / "meta", tensors, 2))
    q, k = (heads(read(source.tensors[f"model.layers.0.self_attn.{x}_proj.weight"], 64)) for x in "qk")
    both = torch.cat([angles, angles], dim=-1)[None]
    q, k = apply_rotary_pos_emb(q[None], k[None], both.cos(), both.sin())
    expected = meta_rotated("wq") @ meta_rotated("wk").transpose(1, 2)
    torch.testing.assert_close((q @ k.transpose(2, 3))[0], expected, rtol=1e-4, atol=1e-3)


def test_vocabulary_that_params_json_leaves_open(state, tmp_path):
    directory = write_meta(tmp_path / "meta", meta_tensors(state, 1), 2, vocab_size=-1)
    assert load_shape(directory).vocab_size == 104
    check_source(open_source(directory), load_shape(directory))


def test_tied_model_without_an_output_matrix(state, tmp_path):
    tensors = meta_tensors(state)
    del tensors["output.weight"]
    source = open_source(write_meta(tmp_path / "meta", tensors, 1))
    check_source(source, load_shape(source.directory))
    assert torch.equal(read(source.tensors["lm_head.weight"], 10), state["model.embed_tokens.weight"])


def test_original_beside_shards_is_not_read_but_can_be_named(hugging_face, state, tmp_path):
    both = Path(shutil.copytree(hugging_face[0], tmp_path / "both"))
    original = write_meta(both / "original", meta_tensors(state), 1)
    assert [path.name for path in open_source(both).files] == ["config.json", "model.safetensors"]
    assert [path.name for path in open_source(original).files] == ["params.json", "consolidated.00.pth"]


def test_a_repository_needs_the_tokenizer_of_hugging_faces_form(meta_dir, deploy):
    with pytest.raises(ToolkitError, match=r"tokenizer\.json: no such file.*Copy tokenizer\.json.*generation_config"):
        tokenizer_file(meta_dir, deploy(meta_dir).shape.vocab_size)


def resaved(directory: Path, rank: int, **changes) -> None:
    path = directory / f"consolidated.{rank:02d}.pth"
    tensors = torch.load(path) | changes
    torch.save({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


class Code:
    def __reduce__(self):
        return print, ("this pickle ran code",)


def with_code(directory: Path) -> None:
    torch.save({"layers.0.attention.wq.weight": torch.zeros(2), "x": Code()}, directory / "consolidated.01.pth")


def bare_pickle(directory: Path) -> None:
    (directory / "consolidated.00.pth").write_bytes(pickle.dumps(Code()))


def truncated(directory: Path) -> None:
    path = directory / "consolidated.01.pth"
    path.write_bytes(path.read_bytes()[:-5000])


WQ = "layers.0.attention.wq.weight"
SPOILT = [
    (lambda d: (d / "consolidated.00.pth").unlink(), "holds consolidated.01.pth but no consolidated.00.pth"),
    (lambda d: (d / "consolidated.01.pth").unlink(), "1 files of 32 rows each do not give the 64 rows"),
    (lambda d: [p.unlink() for p in d.glob("*.pth")], "holds no consolidated.*.pth"),
    (with_code, "consolidated.01.pth: is damaged, or a pickle that holds code, which never runs"),
    (bare_pickle, "consolidated.00.pth: is "),
    (truncated, "consolidated.01.pth: is not a whole PyTorch file"),
    (lambda d: (d / "consolidated.01.pth").write_bytes(b""), "consolidated.01.pth: is "),
    (lambda d: torch.save([1], d / "consolidated.01.pth"), "holds list, expected tensors by name"),
    (lambda d: torch.save({"a": 1}, d / "consolidated.01.pth"), "'a': is not a plain tensor"),
    (lambda d: resaved(d, 1, **{WQ: torch.zeros(3, 64)}), f"{WQ}: is float32 [3, 64], in consolidated.00.pth bfloat16"),
    (lambda d: resaved(d, 1, **{WQ: None}), f"consolidated.01.pth: {WQ}: is missing"),
    (lambda d: resaved(d, 0, **{WQ: torch.zeros(0, 64)}), f"{WQ}: is missing or empty"),
    (
        lambda d: [resaved(d, n, **{"norm.weight": None}) for n in (0, 1)],
        "model.norm.weight: is missing from all 2 pth",
    ),
    (lambda d: [resaved(d, n, bias=torch.zeros(4)) for n in (0, 1)], "bias: does not belong"),
    (lambda d: [resaved(d, n, bias=torch.zeros(1, 1, 4)) for n in (0, 1)], "bias: has shape [1, 1, 4]"),
    (
        lambda d: [resaved(d, n, **{"output.weight": torch.zeros(51, 64).bfloat16()}) for n in (0, 1)],
        "lm_head.weight: has shape [102, 64], params.json asks for [104, 64]",
    ),
    (
        lambda d: [resaved(d, n, **{"norm.weight": torch.zeros(64).to(torch.float8_e4m3fn)}) for n in (0, 1)],
        "model.norm.weight: has dtype float8_e4m3fn, expected F16, BF16, F32",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILT, ids=lambda case: case if isinstance(case, str) else None)
def test_bad_files_are_one_line(meta_dir, spoil, message, capfd):
    shape = load_shape(meta_dir)
    spoil(meta_dir)
    with pytest.raises(ToolkitError) as caught:
        check_source(open_source(meta_dir), shape)
    assert message in str(caught.value)
    assert str(meta_dir) in str(caught.value)
    assert str(caught.value).isprintable()
    assert "ran code" not in capfd.readouterr().out


def test_safetensors_beside_metas_files(hugging_face, meta_dir):
    shutil.copy(hugging_face[0] / "model.safetensors", meta_dir)
    with pytest.raises(ToolkitError, match=r"two copies of the weights: model\.safetensors and consolidated\.00\.pth"):
        open_source(meta_dir)


def test_config_json_beside_metas_files(hugging_face, meta_dir):
    shutil.copy(hugging_face[0] / "config.json", meta_dir)
    with pytest.raises(ToolkitError, match=r"move config\.json out"):
        open_source(meta_dir)
