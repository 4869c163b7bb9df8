"""A good repository has no findings; each way to break it has one, of its kind, at its line."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import toolkit
from tests.lint import test_ensemble, test_instances, test_llmapi, test_models, test_values
from tests.lint.repositories import (
    ANSWERS,
    BEFORE,
    DEFAULT,
    FLAGSHIP,
    LLM,
    ROOT,
    START,
    check_found,
    config,
    edit,
    parameter,
    without,
    write_engine,
    write_repository,
)
from toolkit.errors import ToolkitError
from toolkit.lint import Finding, lint
from toolkit.releases.release import RELEASES


def engine(**build):
    def change(repository: Path) -> None:
        shutil.rmtree(repository.parent / "engine")
        write_engine(repository.parent / "engine", **build)

    return change


def eos(repository: Path) -> None:
    folder = repository / "preprocessing/1/tokenizer"
    (folder / "generation_config.json").write_text('{"eos_token_id": [128001, 128009]}')
    edit(repository / "preprocessing/config.pbtxt", 'key: "eos_token_ids"', 'key: "multimodal_model_path"')


def no_eos(repository: Path) -> None:
    """A tokenizer without eos_token, for NVIDIA's preprocessing."""
    (repository / "preprocessing/1/tokenizer/tokenizer_config.json").write_text('{"eos_token": null}')
    edit(repository / "preprocessing/config.pbtxt", 'key: "eos_token_ids"', 'key: "multimodal_model_path"')


def no_file(make: Callable[[Path], None]):
    """Put something else in the place of a config.pbtxt."""

    def change(repository: Path) -> None:
        path = repository / "postprocessing/config.pbtxt"
        path.unlink()
        make(path)

    return change


PAGED = {"remove_input_padding": True, "use_paged_context_fmha": False}
PADDED = {"remove_input_padding": False, "use_paged_context_fmha": True}
BROKEN = [
    ("placeholder", DEFAULT, parameter("kv_cache_onboard_blocks", "${kv_cache_onboard_blocks}"), "is still ${...}"),
    ("placeholder", START, config(LLM, r"max_batch_size: \d+", "max_batch_size: ${triton_batch}"), "expects a value"),
    ("syntax", START, config(LLM, r"max_batch_size: \d+", "max_batch_size: many"), "is not a model configuration"),
    ("syntax", START, config("postprocessing", "name:", "nme:"), "is not a model configuration"),
    ("syntax", START, no_file(os.mkfifo), "is a named pipe, expected a file"),
    ("syntax", START, no_file(Path.mkdir), "is a directory, expected a file"),
    ("not-a-model", START, lambda folder: (folder / "notes").mkdir(), "every folder of a repository"),
    ("version-directory", START, without("ensemble/1"), "model ensemble has no version directory"),
    (
        "name",
        START,
        config(LLM, 'name: "tensorrt_llm"', 'name: "llama"'),
        "name is llama, but its folder is tensorrt_llm",
    ),
    ("backend", START, config("postprocessing", 'backend: "python"', 'backend: "pyton"'), "backend 'pyton'"),
    ("model-file", START, without("preprocessing/1/model.py"), "no model.py"),
    (
        "backend",
        DEFAULT,
        config("postprocessing", 'backend: "python"', 'platform: "onnxruntime_onnx"'),
        "not in the image",
    ),
    ("executor", ANSWERS, without("tensorrt_llm"), "no model has backend tensorrtllm"),
    (
        "batch-size",
        START,
        config(LLM, r"dynamic_batching {", "dynamic_batching { preferred_batch_size: 640"),
        "but max_batch_size is 64",
    ),
    (
        "batch-size",
        START,
        config("postprocessing", r"max_batch_size: \d+", "max_batch_size: 4"),
        "more than that of postprocessing, 4",
    ),
    (
        "parameter-unknown",
        DEFAULT,
        config(LLM, '"enable_chunked_context"', '"enable_chunked_contexts"'),
        "mean enable_chunked",
    ),
    (
        "parameter-value",
        DEFAULT,
        parameter("batch_scheduler_policy", "max_utilisation"),
        "the backend warns in its log",
    ),
    (
        "parameter-value",
        DEFAULT,
        parameter("enable_kv_cache_reuse", "yes"),
        "enable_kv_cache_reuse: expected true or false",
    ),
    ("kv-reuse-unset", DEFAULT, parameter("enable_kv_cache_reuse", ""), "so the backend reuses KV blocks"),
    ("model-type", DEFAULT, parameter("gpt_model_type", "V1"), "no request joins a running batch"),
    ("chunked-context", DEFAULT, parameter("enable_chunked_context", "false"), "is refused"),
    ("renamed", DEFAULT, config(LLM, 'name: "seed"', 'name: "random_seed"'), "is called seed since 0.20"),
    (
        "tensor-missing",
        ANSWERS,
        config(LLM, 'name: "input_lengths"', 'name: "lengths"'),
        "input input_lengths is missing",
    ),
    ("tensor-config", START, config("postprocessing", r"dims: -1", "dims: 0"), "dims must be 1 or more, or -1"),
    ("tensor-unknown", DEFAULT, config(LLM, 'name: "streaming"', 'name: "stream"'), "input stream is not one"),
    ("tensor-type", ANSWERS, config(LLM, '(name: "seed"\\s+data_type: )TYPE_UINT64', r"\1TYPE_INT32"), "seed is INT32"),
    ("tensor-type", ANSWERS, config(LLM, '(name: "temperature"\\s+data_type: )TYPE_FP32', r"\1TYPE_FP16"), "is FP16"),
    ("queue", DEFAULT, config(LLM, "max_queue_size: 256", "max_queue_size: 0"), "the queue has no limit"),
    ("instances", START, config(LLM, "count: 1", "count: 2"), "has 2 instances and no gpu_device_ids"),
    ("engine-path", START, parameter("gpt_model_path", ""), "no engine to load"),
    ("engine-path", START, parameter("gpt_model_path", "/nowhere"), "gpt_model_path /nowhere"),
    ("engine-version", START, engine(version="1.0.7"), "was built by TensorRT-LLM 1.0.7"),
    ("world-size", START, lambda folder: (folder.parent / "engine/rank7.engine").unlink(), "has 7 rank files"),
    ("engine-batch-size", DEFAULT, engine(max_batch_size=8), "more than the engine's 8 x 4 micro-batches"),
    ("world-size", DEFAULT, lambda folder: (folder.parent / "engine/rank8.engine").touch(), "has 9 rank files"),
    ("engine-beams", START, parameter("max_beam_width", "4"), "max_beam_width 4 is more than the engine's 1"),
    ("engine-kv-tokens", DEFAULT, parameter("max_tokens_in_paged_kv_cache", "4096"), "does not hold one sequence"),
    ("engine-attention", DEFAULT, engine(plugin_config=PAGED), "enable_kv_cache_reuse needs use_paged_context_fmha"),
    ("engine-attention", START, parameter("kv_cache_onboard_blocks", "false"), "which an engine with use_paged"),
    ("engine-inflight", START, engine(plugin_config=PADDED), "cannot batch in flight"),
    ("tokenizer", START, without("preprocessing/1/tokenizer/tokenizer.json"), "has no tokenizer.json"),
    ("tokenizer", START, without("preprocessing/1/tokenizer"), "no such directory"),
    ("eos-none", ANSWERS, parameter("eos_token_ids", "", BEFORE), "no token ends an answer"),
    ("eos-none", START, no_eos, "has no eos_token, which NVIDIA's preprocessing needs"),
    ("eos", DEFAULT, eos, "ends answers with any of 128001, 128009"),
]


def test_a_good_repository_has_nothing(repository):
    assert lint(repository) == []


@pytest.mark.parametrize("version", [release.images[0].version for release in RELEASES.values()], ids=RELEASES)
def test_ours_is_good_by_the_contract_of_its_release(tmp_path, tiny_llama, version):
    assert lint(write_repository(tmp_path, tiny_llama, FLAGSHIP, version)) == []


def test_ours_is_good_in_a_rehearsal(tmp_path, tiny_llama):
    rehearsal = write_repository(tmp_path, tiny_llama, ROOT / "build_configs/tiny-llama-rehearsal.yaml")
    (rehearsal / "tensorrt_llm/1/model.py").write_text("")
    assert [one for one in lint(rehearsal) if not one.kind.startswith("engine-")] == []


@pytest.mark.parametrize(
    ("kind", "effect", "change", "says"), BROKEN, ids=[f"{n}-{b[0]}" for n, b in enumerate(BROKEN)]
)
def test_each_way_to_break_it_is_found(repository, kind, effect, change, says):
    change(repository)
    check_found(repository, kind, effect, says)


AT_ONCE = (
    *("engine-batch-size", "step-source", "tokenizer", "world-size", "instances", "step-input-missing", "backend"),
    *("kv-reuse-unset", "tensor-missing", "placeholder", "renamed", "engine-kv-tokens", "ensemble-output"),
    *("parameter-unknown", "engine-beams", "queue", "not-a-model", "batch-size", "model-type", "step-output"),
    *("model-file", "version-directory"),
)
"""Kinds of mistakes that do not hide each other."""


def without_lines(text: str) -> str:
    """A parameter more moves them; they are looked at below."""
    return re.sub(r"pbtxt:\d+:", "pbtxt:", text)


def test_a_repository_with_many_mistakes(repository, monkeypatch):
    """All of them are told in one go, and the page shows how."""
    first = {kind: change for kind, _, change, _ in reversed((*BROKEN, *test_ensemble.BROKEN))}
    for kind in AT_ONCE:
        first[kind](repository)
    found = {finding.kind for finding in lint(repository)}
    assert set(AT_ONCE) <= found and len(found) >= 25
    monkeypatch.chdir(repository.parent)
    shown = toolkit("lint", "repository").stdout.replace(str(repository.parent), "")
    page = (ROOT / "docs/how-to/lint.md").read_text()
    assert without_lines(shown) in without_lines(page), shown


def test_the_page_has_all_kinds_with_what_comes_of_them():
    page = (ROOT / "docs/reference/lint.md").read_text()
    rows = re.findall(r"^\| (`[a-z-]+`(?:, `[a-z-]+`)*) \| ([a-z, ]+) \|", page, re.MULTILINE)
    listed = {(kind[1:-1], effect) for kinds, all_ in rows for kind in kinds.split(", ") for effect in all_.split(", ")}
    written = "".join(path.read_text() for path in (ROOT / "toolkit/lint").glob("*.py"))
    assert {kind for kind, _ in listed} == set(re.findall(r'(?:finding\(|Finding\()\s*"([a-z-]+)"', written))
    broken = (*BROKEN, *test_models.BROKEN, *test_llmapi.BROKEN, *test_llmapi.THEIRS_BROKEN)
    broken += (*test_ensemble.BROKEN, *test_instances.BROKEN, *test_values.BROKEN)
    assert listed == {(kind, effect) for kind, effect, *_ in broken} | {("kv-fraction", DEFAULT)}  # below


def test_the_kv_fraction_is_held_to_85_per_cent(repository):
    parameter("max_tokens_in_paged_kv_cache", "")(repository)
    assert lint(repository) == []
    parameter("kv_cache_free_gpu_mem_fraction", "0.95")(repository)
    (found,) = lint(repository)
    assert (found.kind, found.level) == ("kv-fraction", "warning") and "0.95 leaves less than 15%" in found.what
    parameter("kv_cache_free_gpu_mem_fraction", "")(repository)
    (found,) = lint(repository)
    assert found.kind == "kv-fraction" and "takes 0.9 of the free memory" in found.what


def test_a_parameter_that_the_backend_cannot_do_without(repository):
    path = repository / "tensorrt_llm/config.pbtxt"
    edit(path, r'parameters {\s+key: "gpt_model_type"\s+value {[^}]*}\s+}', "")
    assert [one.kind for one in lint(repository)] == ["parameter-missing"]


def test_types_that_the_backend_reads_alike(repository):
    """It copies bytes: the sign of an integer does not matter to it, as in repositories of its first releases."""
    edit(repository / LLM / "config.pbtxt", '(name: "end_id"\\s+data_type: )TYPE_INT32', r"\1TYPE_UINT32")
    edit(repository / LLM / "config.pbtxt", '(name: "context_logits"\\s+data_type: )TYPE_FP32', r"\1TYPE_BF16")
    assert {one.kind for one in lint(repository)} <= {"ensemble-type"}


def test_an_executor_that_names_no_engine(repository):
    path = repository / "tensorrt_llm/config.pbtxt"
    edit(path, r'parameters {\s+key: "gpt_model_path"\s+value {[^}]*}\s+}', "")
    assert ("engine-path", START) in {(one.kind, one.effect) for one in lint(repository)}


def test_findings_name_their_line(repository):
    config(LLM, 'name: "seed"', 'name: "random_seed"')(repository)
    path = repository / "tensorrt_llm/config.pbtxt"
    found = next(one for one in lint(repository) if one.kind == "renamed" and one.path == path)
    assert "random_seed" in path.read_text().splitlines()[found.line - 1]


def test_another_engine_and_release(repository, tmp_path):
    other = write_engine(tmp_path / "other", version="1.1.0")
    assert lint(repository, other) == []
    (found,) = lint(repository, other, "1.2")
    assert found.kind == "engine-version"
    with pytest.raises(ToolkitError, match=r"0\.9.* is not supported\. Use one of 0\.20"):
        lint(repository, release="0.9")


def test_an_engine_folder_that_cannot_be_read_is_an_error_where_no_model_would_read_it(repository, tmp_path):
    (repository / LLM / "config.pbtxt").write_text('backend: "python"\n')
    (tmp_path / "file").touch()
    for given, problem in ((tmp_path / "none", "No such file or directory"), (tmp_path / "file", "Not a directory")):
        result = toolkit("lint", repository, "--engine", given)
        line = f"error: {given}: --engine: cannot be opened: {problem}. Give the folder of the engine.\n"
        assert (result.returncode, result.stdout, result.stderr) == (1, "", line)


def test_what_is_no_repository(repository, tmp_path):
    with pytest.raises(ToolkitError, match="no such directory"):
        lint(tmp_path / "none")
    with pytest.raises(ToolkitError, match=r"is a file, expected a directory\. Give the directory with a folder for"):
        lint(repository / "tensorrt_llm/config.pbtxt")
    with pytest.raises(
        ToolkitError, match=r"no folder in it has a config.pbtxt.*This is one model; give the directory"
    ):
        lint(repository / "tensorrt_llm")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ToolkitError, match="is not a model repository"):
        lint(tmp_path / "empty")


def test_the_command_and_its_exit_codes(repository):
    good = toolkit("lint", repository)
    assert (good.returncode, good.stdout, good.stderr) == (0, "", "nothing found\n")
    parameter("enable_kv_cache_reuse", "")(repository)
    warned = toolkit("lint", repository)
    assert warned.returncode == 0 and "[kv-reuse-unset]" in warned.stdout and warned.stderr == "0 errors, 1 warning\n"
    without("ensemble/1")(repository)
    failed = toolkit("lint", repository, "--json")
    data = json.loads(failed.stdout)
    assert failed.returncode == 1 and (data["errors"], data["warnings"]) == (1, 1)
    first, last = data["findings"]
    assert (first["kind"], first["level"], first["effect"]) == ("version-directory", "error", START)
    assert (last["level"], last["effect"]) == ("warning", DEFAULT) and "a default or a limit" in last["meaning"]
    assert set(data["levels"]) == {"error", "warning"} and "does not start" in data["levels"]["error"]
    assert toolkit("lint", repository).stderr == "1 error, 1 warning\n"
    annotated = toolkit("lint", repository, "--github")
    assert annotated.returncode == 1
    assert annotated.stdout.startswith(
        f"::error file={repository}/ensemble,title=toolkit lint%3A version-directory::model"
    )
    assert toolkit("lint", "/nowhere").returncode == 1


def test_annotations_are_escaped():
    found = Finding("x", START, Path("a,b:c"), "100% of\nit", "Do.", 3)
    place, _, text = found.annotation().partition("::100")
    assert place == "::error file=a%2Cb%3Ac,line=3,title=toolkit lint%3A x"
    assert text == "%25 of%0Ait. Triton or the backend does not start. Do."
    assert Finding("x", DEFAULT, Path("a"), "b", "c").annotation().startswith("::warning file=a,title=")


@pytest.mark.parametrize("content", ["[]", '{"build_config": 3}', '{"pretrained_config": {"mapping": []}}', "{"])
def test_an_engine_whose_config_is_none_is_a_finding(repository, content):
    (repository.parent / "engine/config.json").write_text(content)
    assert [one.kind for one in lint(repository)] == ["engine-path"]
