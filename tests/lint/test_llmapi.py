"""Repositories without engines: ours of engine: pytorch, and one of the shape of NVIDIA's llmapi model."""

import re
from pathlib import Path

import pytest
import yaml

from tests.lint.repositories import (
    ANSWERS,
    BLS,
    DEFAULT,
    LLM,
    ROOT,
    START,
    check_found,
    config,
    edit,
    parameter,
    without,
    write_engine,
)
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.lint import lint
from toolkit.releases.llm_api import RELEASES
from toolkit.repository import generate

MODEL_YAML = "tensorrt_llm/1/model.yaml"
THEIRS = {
    "model": "Example/Model-1.1B",
    "backend": "pytorch",
    "tensor_parallel_size": 2,
    "pipeline_parallel_size": 1,
    "triton_config": {"max_batch_size": 0, "decoupled": False},
}
THEIR_CONFIG = """
name: "tensorrt_llm"
backend: "python"
instance_group [ { count: 1 kind: KIND_CPU } ]
input [
  { name: "text_input" data_type: TYPE_STRING dims: [ -1 ] },
  { name: "streaming" data_type: TYPE_BOOL dims: [ 1 ] optional: true },
  { name: "sampling_param_max_tokens" data_type: TYPE_INT32 dims: [ 1 ] optional: true }
]
output [ { name: "text_output" data_type: TYPE_STRING dims: [ -1 ] } ]
"""


@pytest.fixture
def ours(tmp_path, tiny_llama) -> Path:
    return write_ours(tmp_path, tiny_llama)


def write_ours(tmp_path: Path, model: Path, version: str = "1.2.1") -> Path:
    file = tmp_path / "test.yaml"
    file.write_text(
        f"engine: {{kind: pytorch, version: {version}}}\nmodel: {{path: {model}}}\nparallel: {{tp: 2, pp: 2}}\n"
        "limits: {max_sequences: 8, max_num_tokens: 128, max_seq_len: 128}\noutput: out\n"
    )
    deployment = load_deployment(file)
    generate(deployment)
    return deployment.repository_dir


@pytest.fixture
def theirs(tmp_path) -> Path:
    """As NVIDIA publishes it: what it has, and has not, under names of our own."""
    folder = tmp_path / "theirs" / LLM
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(THEIR_CONFIG)
    (folder / "1" / "model.py").touch()
    (folder / "1" / "model.yaml").write_text(yaml.safe_dump(THEIRS))
    return folder.parent


def told(**changes):
    """Give what model.yaml says under a name another value, or with None none; __ is a dot."""

    def change(repository: Path) -> None:
        path = repository / MODEL_YAML
        content = yaml.safe_load(path.read_text())
        for name, value in changes.items():
            *above, key = name.split("__")
            inner = content.setdefault(above[0], {}) if above else content
            inner.pop(key, None)
            if value is not None:
                inner[key] = value
        path.write_text(yaml.safe_dump(content))

    return change


def text(content: str):
    return lambda repository: (repository / MODEL_YAML).write_text(content)


def of(*changes):
    def both(repository: Path) -> None:
        for change in changes:
            change(repository)

    return both


def batched(repository: Path) -> None:
    told(triton_config__max_batch_size=2)(repository)
    edit(repository / LLM / "config.pbtxt", "max_batch_size: 1", "max_batch_size: 4")


def added(model: str, name: str, value: str):
    more = f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}\n'
    return config(model, r"\Z", more)


def groups(gpus: str):
    return of(config(LLM, "count: 1", "count: 2"), added(LLM, "gpu_device_ids", gpus))


BROKEN = [
    ("model-yaml", START, without(MODEL_YAML), "LLM() gets no arguments"),
    ("model-yaml", START, text("model: [\n"), "is not valid YAML"),
    ("model-yaml", START, text(""), "is empty, expected a mapping of keys"),
    ("model-yaml", START, text("model: a\nmodel: b\n"), "model is given twice"),
    ("placeholder", START, told(model="${model_dir}"), "${model_dir} was not filled"),
    ("placeholder", START, told(triton_config="${config}"), "${config} was not filled"),
    ("model-yaml", START, text("max_num_tokens: " + "9" * 5000), "is not valid YAML"),
    ("model-yaml", START, text("max_seq_len: 2026-99-99"), "is not valid YAML"),
    ("model-path", DEFAULT, told(model="Example/Model-1.1B"), "taken for a name and downloaded"),
    ("model-path", START, told(model=None), "model is missing"),
    ("model-path", START, told(model="/" + "long" * 2000), "cannot be read: File name too long"),
    ("model-path", START, told(model="/nowhere/at/all"), "model /nowhere/at/all: no such directory"),
    ("model-path", START, told(model=str(ROOT / "docs")), "has no config.json"),
    (
        "argument-unknown",
        START,
        told(kv_cache_config__enable_block_reused=True),
        "Did you mean kv_cache_config.enable_block",
    ),
    ("argument-unknown", START, told(enable_chunked_prefil=True), "Did you mean enable_chunked_prefill?"),
    ("argument-unknown", START, told(unheard_of__section=1), "unheard_of is not an argument of LLM()"),
    ("argument-value", START, told(max_num_tokens="many"), "max_num_tokens: expected a whole number of at least 1"),
    (
        "argument-value",
        START,
        told(kv_cache_config__free_gpu_memory_fraction=8),
        "expected a number from 0 to 1, got 8",
    ),
    ("argument-value", START, told(scheduler_config="fast"), "scheduler_config: expected a section of keys"),
    ("argument-value", START, told(tensor_parallel_size=[2]), "tensor_parallel_size: expected a whole number"),
    ("argument-value", START, told(model={"path": "x"}), "model: expected a path"),
    ("argument-value", START, told(backend="tensorrt"), "LLM() runs on PyTorch"),
    ("argument-value", START, told(backend="torch"), "backend: expected pytorch"),
    ("kv-reuse-unset", DEFAULT, told(kv_cache_config__enable_block_reuse=None), "so the LLM API reuses KV blocks"),
    ("chunked-context", DEFAULT, told(enable_chunked_prefill=False, max_seq_len=256), "but max_seq_len is 256"),
    ("remote-code", DEFAULT, told(trust_remote_code=True), "Python files from the model's folder run"),
    ("triton-config", START, told(triton_config=None), "triton_config is missing"),
    ("triton-config", START, told(triton_config=[1]), "triton_config is not a section of keys: [1]"),
    ("triton-config", START, told(triton_config__max_active_requests=None), "max_active_requests is missing"),
    ("triton-config", START, told(triton_config__longest_token_bytes=None), "longest_token_bytes is missing"),
    ("triton-config", START, told(triton_config__ignored_by_sampler="seed"), "expected a list of names, got 'seed'"),
    ("triton-config", START, told(triton_config__eos_token_ids=2), "expected a list of whole numbers, got 2"),
    ("triton-config", DEFAULT, told(triton_config__decoupled=False), "is false, but config.pbtxt says true"),
    ("triton-config", START, told(triton_config__decoupled="true"), "expected true or false without quotes"),
    ("triton-config", DEFAULT, batched, "max_batch_size is 2, but config.pbtxt says 4"),
    ("decoupled", ANSWERS, config(LLM, "decoupled: true", "decoupled: false"), "requests with stream: true fail"),
    ("instances", START, config(LLM, "count: 1", "count: 2"), "all of them load the model on the same GPUs"),
    ("tensor-missing", START, config(LLM, 'name: "text_output"', 'name: "text"'), "text_output is missing"),
    (
        "parameter-unknown",
        DEFAULT,
        added(BLS, "accumulate_tokens", "true"),
        "accumulate_tokens: tensorrt_llm_bls of toolkit repo does not know it",
    ),
    ("parameter-missing", START, config(BLS, '"renamed_inputs"', '"renamed"'), "renamed_inputs is missing"),
    ("parameter-value", START, parameter("cancellation_check_period_ms", "soon", BLS), "expected a whole number"),
    ("bls-model", ANSWERS, parameter("tensorrt_llm_model_name", "llama", BLS), "llama is not a model"),
    ("renamed-inputs", START, parameter("renamed_inputs", "{", BLS), "is not a JSON object of names"),
    ("renamed-inputs", ANSWERS, parameter("renamed_inputs", "{}", BLS), "passes stream on as stream"),
]
THEIRS_BROKEN = [
    ("model-yaml", START, without(MODEL_YAML), "LLM_CONFIG_PATH"),
    ("triton-config", START, told(triton_config__decoupled=None), "triton_config.decoupled is missing"),
    ("triton-config", START, told(triton_config__max_batch_size="few"), "expected a whole number"),
    ("triton-config", START, config(LLM, r"input \[", "max_batch_size: 8\ninput ["), "is 0, but config.pbtxt says 8"),
    (
        "triton-config",
        START,
        config(LLM, r"input \[", "model_transaction_policy { decoupled: true }\ninput ["),
        "is false, but config.pbtxt says true",
    ),
    ("triton-config", ANSWERS, told(triton_config__max_batch_size=8), "refuses requests with a batch dimension"),
    ("argument-unknown", START, told(pytorch_backend_config={"use_cuda_graph": False}), "keys at the top level"),
    ("instance-kind", START, config(LLM, "KIND_CPU", "KIND_GPU"), "an instance for each GPU"),
    ("instances", START, config(LLM, "count: 1", "count: 2"), "gpu_device_ids for 0"),
    ("instances", START, groups("0,1"), "gpu_device_ids for 1"),
    (
        "device-ids",
        START,
        groups("0,1;2"),
        "gpu_device_ids 2 is 1 GPUs, but tensor_parallel_size x pipeline_parallel_size is 2",
    ),
]


@pytest.mark.parametrize("release", RELEASES)
def test_ours_has_nothing(tmp_path, tiny_llama, release):
    folder = write_ours(tmp_path, tiny_llama, f"{release}.0")
    assert lint(folder) == lint(folder, release=release) == []


@pytest.mark.parametrize(
    ("kind", "effect", "change", "says"), BROKEN, ids=[f"{n}-{b[0]}" for n, b in enumerate(BROKEN)]
)
def test_each_way_to_break_ours_is_found(ours, kind, effect, change, says):
    change(ours)
    check_found(ours, kind, effect, says)


@pytest.mark.parametrize(
    ("kind", "effect", "change", "says"), THEIRS_BROKEN, ids=[f"{n}-{b[0]}" for n, b in enumerate(THEIRS_BROKEN)]
)
def test_each_way_to_break_theirs_is_found(theirs, kind, effect, change, says):
    change(theirs)
    check_found(theirs, kind, effect, says)


def test_theirs_as_published_has_only_what_is_true_of_it(theirs):
    found = sorted((one.kind, one.effect) for one in lint(theirs))
    assert found == [("kv-fraction", DEFAULT), ("kv-reuse-unset", DEFAULT), ("model-path", DEFAULT)]


def test_arguments_that_only_some_releases_take_are_not_judged(theirs):
    told(reasoning_parser="deepseek-r1", kv_cache_config__use_uvm=False, cuda_graph_config__batch_sizes=[1, 2])(theirs)
    assert "argument-unknown" not in {one.kind for one in lint(theirs)}


def test_theirs_with_all_said_has_nothing(theirs, tiny_llama):
    cache = {"enable_block_reuse": True, "free_gpu_memory_fraction": 0.8}
    told(model=str(tiny_llama), kv_cache_config=cache, triton_config__decoupled=True)(theirs)
    assert lint(theirs) == []
    groups("0,1;2,3")(theirs)
    assert lint(theirs) == []
    (theirs / LLM).rename(theirs / "llama")
    edit(theirs / "llama/config.pbtxt", "tensorrt_llm", "llama")
    assert lint(theirs) == []


def test_the_kv_fraction_is_held_to_85_per_cent(ours):
    told(kv_cache_config__free_gpu_memory_fraction=0.95)(ours)
    assert lint(ours) == []  # max_tokens is less
    told(kv_cache_config__max_tokens=None)(ours)
    (found,) = lint(ours)
    assert (found.kind, found.level) == ("kv-fraction", "warning") and "0.95 leaves less than 15%" in found.what
    told(kv_cache_config=None)(ours)
    assert {one.kind for one in lint(ours)} == {"kv-fraction", "kv-reuse-unset"}


def test_what_cannot_be_read_is_all_that_is_said(ours):
    (ours / MODEL_YAML).write_text("model: [")
    assert [one.kind for one in lint(ours)] == ["model-yaml"]


def test_findings_name_their_line(ours):
    path = ours / MODEL_YAML
    path.write_text(re.sub(r"(free_gpu_memory_fraction: )\S+", r"\1high", path.read_text()))
    (found,) = lint(ours)
    assert "free_gpu_memory_fraction" in path.read_text().splitlines()[found.line - 1]


def test_yaml_may_say_things_once_for_several_places(ours):
    path = ours / MODEL_YAML
    text = "of_all: &all {enable_padding: true}\n" + path.read_text()
    path.write_text(text.replace("cuda_graph_config:", "cuda_graph_config:\n  <<: *all", 1))
    assert [(one.kind, one.line) for one in lint(ours)] == [("argument-unknown", 1)]


def test_yaml_may_not_stand_inside_itself(ours):
    path = ours / MODEL_YAML
    path.write_text(f"of_itself: &it {{of_itself: *it}}\n{path.read_text()}")
    (found,) = lint(ours)
    assert (found.kind, found.line) == ("model-yaml", 1) and "*it is inside of what it stands for" in found.what


def test_what_moves_a_cursor_is_escaped(ours):
    told(model="/\x1b[31mred")(ours)
    assert all("\x1b" not in str(one) for one in lint(ours))


def test_arguments_are_those_of_the_release(ours):
    (found,) = lint(ours, release="1.0")
    assert found.kind == "argument-unknown" and "tokens_per_block" in found.what


def test_releases_and_engines_that_cannot_be(ours, tmp_path, repository):
    assert lint(ours, release="1.3.0rc20") == []
    with pytest.raises(ToolkitError, match=r"'0\.20' is not supported with engine: pytorch\. Use one of 1\.0"):
        lint(ours, release="0.20")
    with pytest.raises(ToolkitError, match=r"loads an engine.*Leave --engine out"):
        lint(ours, write_engine(tmp_path / "other"))
    with pytest.raises(ToolkitError, match=r"TensorRT-LLM 1\.3 has no engines, but this repository serves one"):
        lint(repository, release="1.3")
