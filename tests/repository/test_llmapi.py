"""The repository of engine: pytorch: what the LLM API is told, and what trtllm-serve is started with."""

import json
import stat
import subprocess
from pathlib import Path

import pytest
import yaml
from google.protobuf import text_format
from tokenizers import Tokenizer
from tritonclient.grpc import model_config_pb2

from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.releases.llm_api import RELEASES, llm_arguments, llm_release_of
from toolkit.repository import generate
from toolkit.repository.llm_args import as_yaml, llm_args
from toolkit.repository.llmapi import llmapi_configs, model_yaml
from toolkit.repository.parameters import SpecialTokens

FLAGSHIP = Path(__file__).parents[2] / "build_configs" / "llama3-70b-h100-pp4tp2-fp16.yaml"


def deployment_of(tmp_path, model, engine="{kind: pytorch}", more=""):
    file = tmp_path / "test.yaml"
    file.write_text(
        f"engine: {engine}\nmodel: {{path: {model}}}\nparallel: {{tp: 2, pp: 2}}\n"
        f"limits: {{max_sequences: 8, max_num_tokens: 128, max_seq_len: 128}}\noutput: out\n{more}"
    )
    return load_deployment(file)


def nested(arguments):
    return yaml.safe_load(as_yaml(arguments))


@pytest.mark.parametrize("release", RELEASES)
def test_every_release_knows_what_it_is_told(release):
    deployment = load_deployment(FLAGSHIP, changes={"engine": {"kind": "pytorch", "version": f"{release}.0"}})
    known = llm_arguments(release)
    for argument in llm_args(deployment):
        assert known[argument.name].problem(argument.value) is None, argument
    assert ("kv_cache_config.tokens_per_block" in {a.name for a in llm_args(deployment)}) == (release != "1.0")


def test_flagship():
    told = nested(llm_args(load_deployment(FLAGSHIP, "pytorch")))
    assert (told["tensor_parallel_size"], told["pipeline_parallel_size"]) == (2, 4)
    assert told["max_batch_size"] == 16  # 64 sequences over 4 stages
    assert (told["max_num_tokens"], told["max_seq_len"], told["dtype"]) == (8192, 8192, "float16")
    assert told["scheduler_config"]["capacity_scheduler_policy"] == "GUARANTEED_NO_EVICT"
    # A token takes 2 x 20 layers x 4 heads x 128 x 2 bytes of a GPU, whose share of the weights is 141.1 GB / 8.
    pool_gib = told["kv_cache_config"]["max_tokens"] * 40_960 / 2**30
    assert 40 < pool_gib < 0.85 * 79.6 - 16.4


def test_files(tmp_path, tiny_llama):
    deployment = deployment_of(tmp_path, tiny_llama)
    assert generate(deployment)
    assert not generate(deployment)
    folder = deployment.repository_dir
    names = {path.parent.name for path in folder.glob("*/config.pbtxt")}
    assert names == {"ensemble", "tensorrt_llm", "tensorrt_llm_bls"}
    assert list((folder / "ensemble" / "1").iterdir()) == []
    model = yaml.safe_load((folder / "tensorrt_llm" / "1" / "model.yaml").read_text())
    own = model.pop("triton_config")
    assert own["decoupled"] is True
    library = Tokenizer.from_file(str(tiny_llama / "tokenizer.json"))
    texts = [library.decode([id], skip_special_tokens=False) for id in range(library.get_vocab_size())]
    assert own["longest_token_bytes"] == max(len(text.encode()) for text in texts)
    assert model == nested(llm_args(deployment))


def test_not_decoupled(tmp_path, tiny_llama):
    deployment = deployment_of(tmp_path, tiny_llama, more="serving: {decoupled: false}\n")
    for name, config in llmapi_configs(deployment).items():
        assert not config.model_transaction_policy.decoupled, name
    own = yaml.safe_load(model_yaml(deployment, SpecialTokens((1,), 0), 16))["triton_config"]
    assert own["decoupled"] is False


def test_ensemble_hands_on_every_input_and_output(tmp_path, tiny_llama):
    deployment = deployment_of(tmp_path, tiny_llama)
    generate(deployment)
    read = {}
    for name in ("ensemble", "tensorrt_llm", "tensorrt_llm_bls"):
        text = (deployment.repository_dir / name / "config.pbtxt").read_text()
        read[name] = text_format.Parse(text, model_config_pb2.ModelConfig())
    inner = {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in read["tensorrt_llm"].input}
    outer = {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in read["ensemble"].input}
    (step,) = read["ensemble"].ensemble_scheduling.step
    assert {given: inner[name] for name, given in step.input_map.items()} == outer
    renamed = json.loads(read["tensorrt_llm_bls"].parameters["renamed_inputs"].string_value)
    assert {renamed.get(tensor.name, tensor.name) for tensor in read["tensorrt_llm_bls"].input} <= set(inner)
    vendor = {"text_input", "streaming", "sampling_param_max_tokens", "sampling_param_stop", "return_finish_reason"}
    assert vendor <= set(inner)


def test_a_changed_model_or_argument_is_another_repository(tmp_path, tiny_llama):
    model = tmp_path / "model"
    model.mkdir()
    for path in tiny_llama.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    assert generate(deployment_of(tmp_path, model))
    (model / "generation_config.json").write_text('{"eos_token_id": 3}')
    assert generate(deployment_of(tmp_path, model))
    assert generate(deployment_of(tmp_path, model, "{kind: pytorch, extra: {print_iter_log: true}}"))
    assert generate(deployment_of(tmp_path, model, "{kind: pytorch, version: 1.1.0}"))


def test_trtllm_serve(tmp_path, tiny_llama):
    deployment = deployment_of(tmp_path, tiny_llama, more="serving: {http_port: 8123, grpc_port: 8124}\n")
    generate(deployment)
    options = yaml.safe_load((deployment.repository_dir / "trtllm-serve.yaml").read_text())
    program = tmp_path / "bin" / "trtllm-serve"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done; echo "GPUs $CUDA_VISIBLE_DEVICES"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    ran = subprocess.run(
        ["bash", str(deployment.repository_dir / "trtllm-serve.sh")],
        env={"PATH": f"{program.parent}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    model, *words, gpus = ran.stdout.splitlines()
    given = dict(zip(words[::2], words[1::2], strict=True))
    assert (model, gpus) == (str(tiny_llama), "GPUs 0,1,2,3")
    assert (given["--tp_size"], given["--pp_size"], given["--max_batch_size"]) == ("2", "2", "4")
    assert (given["--host"], given["--port"]) == ("127.0.0.1", "8123")
    assert yaml.safe_load(Path(given["--extra_llm_api_options"]).read_text()) == options
    assert options["kv_cache_config"]["enable_block_reuse"] is True
    assert "model" not in options and "tensor_parallel_size" not in options


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("{kind: pytorch, version: 0.20.0}", "TensorRT-LLM '0.20.0' is not supported with engine: pytorch. Use one of"),
        ("{kind: pytorch, extra: {max_batch_size: 9}}", "engine.extra.max_batch_size: 9 contradicts 4, which comes"),
        ("{kind: pytorch, extra: {enable_autotune: true}}", "Did you mean enable_autotuner"),
        ("{kind: pytorch, extra: {stream_interval: fast}}", "expected a whole number of at least 1, got 'fast'"),
        ("{kind: pytorch, extra: {trust_remote_code: true}}", "contradicts False, which comes from: no code of a"),
    ],
)
def test_bad_settings(tmp_path, tiny_llama, engine, message):
    with pytest.raises(ToolkitError) as caught:
        generate(deployment_of(tmp_path, tiny_llama, engine))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "repository").exists()


def test_blocks_of_another_size_need_a_newer_release(tmp_path, tiny_llama):
    with pytest.raises(ToolkitError, match="64 cannot be chosen in TensorRT-LLM 1"):
        generate(
            deployment_of(tmp_path, tiny_llama, "{kind: pytorch, version: 1.0.0}", "kv_cache: {tokens_per_block: 64}")
        )


def test_models_that_the_llm_api_cannot_load(tmp_path, tiny_llama):
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (model / name).write_bytes((tiny_llama / name).read_bytes())
    with pytest.raises(ToolkitError, match=r"holds no \*.safetensors"):
        generate(deployment_of(tmp_path, model))


def test_releases():
    assert llm_release_of("1.3.0rc20") == "1.3"
    with pytest.raises(ToolkitError, match="Use one of 1"):
        llm_release_of("2.0")
