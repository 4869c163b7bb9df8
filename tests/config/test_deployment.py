"""Every YAML that we ship is valid, and every mistake in one is a single line that says what to do."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError

BUILD_CONFIGS = Path(__file__).parents[2] / "build_configs"
FLAGSHIP = BUILD_CONFIGS / "llama3-70b-h100-pp4tp2-fp16.yaml"


@pytest.mark.parametrize("file", sorted(BUILD_CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_yaml_is_valid(file: Path) -> None:
    deployment = load_deployment(file)
    assert deployment.name == file.stem
    assert deployment.mapping.world_size * deployment.parallel.replicas == deployment.all_gpus


def test_the_flagship_carries_the_figures_of_the_requirements() -> None:
    flagship = load_deployment(FLAGSHIP)
    assert (flagship.parallel.pp, flagship.parallel.tp, flagship.model.dtype) == (4, 2, "float16")
    assert (flagship.limits.max_seq_len, flagship.limits.max_sequences, flagship.limits.max_num_tokens) == (
        8192,
        64,
        8192,
    )
    hardware, slo = flagship.hardware, flagship.slo
    assert (hardware.gpu_memory_limit, hardware.host_memory_gb, hardware.cores_per_gpu) == (0.85, 256, 16)
    assert (slo.prefill_ms.p50, slo.prefill_ms.p99, slo.tpot_ms.p50, slo.tpot_ms.p99) == (500, 1000, 50, 100)
    assert (slo.ttft_ms.p99, slo.requests_per_s, slo.compliance) == (1500, 8, 0.99)
    assert (slo.gpu_utilisation, slo.load_balance_variance) == ((0.70, 0.85), 0.05)
    assert flagship.max_batch_size == 16, "64 sequences over four micro-batches"


def test_paths_are_relative_to_the_yaml(tmp_path: Path) -> None:
    content = yaml.safe_load(FLAGSHIP.read_text())
    content["model"]["path"] = "../elsewhere"
    deployment = load(tmp_path, content)
    assert deployment.model.path == tmp_path.parent / "elsewhere"
    assert deployment.checkpoint_dir == tmp_path.parent / "work" / "x" / "checkpoint"


def test_engine_can_be_replaced() -> None:
    assert load_deployment(FLAGSHIP, engine="rehearsal").engine == "rehearsal"


@pytest.mark.parametrize("word", ["off", "'off'", '"off"'])
def test_off_with_and_without_quotes(tmp_path: Path, word: str) -> None:
    """Without them it is the truth value in YAML 1.1."""
    file = tmp_path / "mine.yaml"
    lines = f"tuning: {{admission: {word}}}\nmonitoring: {{prometheus: {word}}}\n"
    file.write_text(FLAGSHIP.read_text() + lines)
    deployment = load_deployment(file)
    assert (deployment.tuning.admission, deployment.monitoring.prometheus) == ("off", "off")


def test_a_deployment_is_immutable() -> None:
    with pytest.raises(Exception, match="frozen"):
        load_deployment(FLAGSHIP).parallel.tp = 4  # type: ignore[misc]


MISTAKES = [
    (
        "parallel.tp",
        3,
        "parallel.tp: 3 does not divide num_attention_heads 64 (model config.json). Use 1, 2, 4, 8.",
    ),
    ("parallel.pp", 5, "parallel: tp 2 x pp 5 needs 10 GPUs, hardware.gpus is 8"),
    ("parallel.pp", 0, "parallel.pp: input should be greater than 0, got 0"),
    ("parallel.pp", "four", "parallel.pp: input should be a valid integer, got 'four'"),
    ("parallel.pp", True, "parallel.pp: input should be a valid integer, got True"),
    ("parallel.dp", 2, "parallel.dp: unknown key. Known here: nodes, pp, replicas, tp."),
    ("paralel", {"tp": 2}, "paralel: unknown key. Known here: cluster, deploy, engine, fleet, gateway, hardware,"),
    ("file", "x", "file: unknown key."),
    ("engine", "vllm", "engine: input should be 'tensorrt', 'pytorch' or 'rehearsal', got 'vllm'"),
    ("model.dtype", "fp16", "model.dtype: input should be 'float16', 'bfloat16' or 'float32', got 'fp16'"),
    ("model.path", 5, "model.path: expected a path as text, got 5"),
    ("model.config", None, "model.path: no config.json in"),
    ("model.config.architectures", ["GPT2LMHeadModel"], "architectures: 'GPT2LMHeadModel' is not supported."),
    ("model.config.hidden_size", "big", "hidden_size: expected a whole number from 1 to 1,048,576, got 'big'"),
    ("model.config.rope_theta", -1, "rope_theta: expected a number from 1 to 1e+12, got -1"),
    ("model.config.num_key_value_heads", 7, "num_key_value_heads: 7 does not divide num_attention_heads 64"),
    ("limits.max_seq_len", 9000, "limits.max_seq_len: 9000 is more than the model's context length 8192."),
    (
        "limits.max_num_tokens",
        8,
        "limits.max_num_tokens: 8 is less than one token for each of the 16 sequences in a micro-batch",
    ),
    ("limits.max_sequences", -1, "limits.max_sequences: input should be greater than 0, got -1"),
    ("limits.max_queue_size", 1.5, "limits.max_queue_size: input should be a valid integer"),
    (
        "kv_cache.tokens_per_block",
        33,
        "kv_cache.tokens_per_block: input should be 8, 16, 32, 64 or 128, got 33",
    ),
    ("kv_cache.max_tokens", 100, "kv_cache.max_tokens: 100 cannot hold one sequence of limits.max_seq_len 8192."),
    ("kv_cache.reuse", "yes please", "kv_cache.reuse: input should be a valid boolean"),
    (
        "scheduler.policy",
        "fifo",
        "scheduler.policy: input should be 'guaranteed_no_evict' or 'max_utilization'",
    ),
    (
        "hardware.gpu_memory_limit",
        85,
        "hardware.gpu_memory_limit: input should be less than 1, got 85",
    ),
    ("hardware.gpu_memory_limit", 1.0, "hardware.gpu_memory_limit: input should be less than 1, got 1.0"),
    (
        "kv_cache.free_gpu_memory_fraction",
        1.0,
        "kv_cache.free_gpu_memory_fraction: input should be less than 1, got 1.0",
    ),
    ("serving.http_port", 0, "serving.http_port: input should be greater than or equal to 1, got 0"),
    ("serving.http_port", 8001, "serving: ports must differ, got http_port 8001, grpc_port 8001"),
    ("slo.ttft_ms", 500, "slo.ttft_ms: expected a mapping of keys, got 500"),
    ("slo.tftt_ms.p99", 500, "slo.tftt_ms: unknown key. Known here: compliance, e2e_ms,"),
    ("slo.ttft_ms.p98", 500, "slo.ttft_ms.p98: unknown key. Known here: p50, p90, p95, p99."),
    ("slo.compliance", 99, "slo.compliance: input should be less than or equal to 1, got 99"),
    (
        "slo.gpu_utilisation",
        [0.9, 0.7],
        "slo.gpu_utilisation: [0.9, 0.7] is not [lowest, highest]. Exchange them.",
    ),
    ("loadtest.users", 10**6, "loadtest.users: 1,000,000 is more than 64,000. Use at most 64,000."),
    (
        "loadtest.protocol",
        "websocket",
        "loadtest.protocol: input should be 'http' or 'grpc', got 'websocket'",
    ),
    ("name", "a b", "name: expected letters, digits, '.', '_' and '-', and a letter or a digit first, got 'a b'"),
    (
        "deploy.image",
        "my image",
        "deploy.image: expected the name of an image without spaces, such as registry.example.com/toolkit:1.0, got",
    ),
    ("deploy.claim", "Weights", "deploy.claim: expected a name of Kubernetes: a-z, 0-9, '-' and '.', and a letter"),
    ("name", 5, "name: input should be a valid string, got 5"),
    ("name", "a" * 101, "name: string should have at most 100 characters, got 'aaa"),
    ("serving.host", "::1", "serving.host: '::1' is IPv6, on which Triton does not open all its ports. Use 127.0.0.1"),
    (
        "serving.host",
        "",
        "serving.host: '' is neither an IPv4 address nor a name. Use 127.0.0.1, 0.0.0.0, or an address of",
    ),
    ("serving.host", "a" * 64, "serving.host: 'aaa"),
    ("serving.host", "a." * 200, "serving.host: 'a.a.a"),
    ("serving.host", "a" * 100_000 + "!", "serving.host: 'aaa"),
    ("serving.host", "a b", "serving.host: 'a b' is neither an IPv4 address nor a name"),
    ("serving.host", "a\nb", "serving.host: 'a\\nb' is neither an IPv4 address nor a name"),
    ("output", "/", "output: / is not a folder for one deployment. Give a folder below it."),
    ("output", "../../../../../../../../../../../..", "output: / is not a folder for one deployment."),
    ("output", "a" * 300, "' is not a path: File name too long"),
    ("slo.ttft_ms.p50", "x" * 5000, "slo.ttft_ms.p50: input should be a valid number"),
    ("slo." + "x" * 5000, 5, f"slo.{'x' * 100}...: unknown key. Known here: compliance, e2e_ms"),
    ("workload.requests", 2**31 - 1, "workload.requests: 2147483647 is more than 10,000,000. Use at most 10,000,000."),
    ("model.config.rms_norm_eps", 1e19, "rms_norm_eps: expected a number from 1e-12 to 0.1, got 1e+19"),
]


@pytest.mark.parametrize(("field", "value", "message"), MISTAKES, ids=lambda x: str(x)[:30])
def test_a_mistake_is_one_line_naming_file_field_and_value(
    tmp_path: Path, field: str, value: object, message: str
) -> None:
    content = yaml.safe_load(FLAGSHIP.read_text())
    *parents, last = field.split(".")
    section = content
    for parent in parents:
        section = section.setdefault(parent, {})
    section[last] = value
    with pytest.raises(ToolkitError) as caught:
        load(tmp_path, content)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "x.yaml"))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def fields_with_a_pattern(schema: dict[str, Any], section: dict[str, Any], above: str = "") -> Iterator[str]:
    """The fields of the YAML whose text must match a regular expression, by JSON schema."""
    for name, field in section.get("properties", {}).items():
        for form in (field, *field.get("anyOf", ()), *field.get("allOf", ())):
            if "pattern" in form:
                yield above + name
            if reference := form.get("$ref"):
                yield from fields_with_a_pattern(schema, schema["$defs"][reference.split("/")[-1]], f"{above}{name}.")


def test_a_text_that_does_not_match_its_pattern_is_refused_in_words(tmp_path: Path) -> None:
    schema = Deployment.model_json_schema()
    fields = {*fields_with_a_pattern(schema, schema)}
    assert {"name", "deploy.image", "deploy.claim"} <= fields
    assert str(schema).count("'pattern': ") == len(fields), "one that is looked for here in vain"
    for field in fields:
        content = yaml.safe_load(FLAGSHIP.read_text())
        section, _, key = field.rpartition(".")
        (content.setdefault(section, {}) if section else content)[key] = "a b"
        with pytest.raises(ToolkitError, match=rf"x\.yaml: {field}: expected .*, got 'a b'$") as caught:
            load(tmp_path, content)
        assert not {*"^$[]*\\"} & {*str(caught.value)}, "a regular expression"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("engine: [", "is not valid YAML"),
        ("- a\n- b\n", "expected a mapping of keys, got list"),
        ("", "is empty, expected a mapping of keys"),
        ("engine: rehearsal\nengine: tensorrt\n", "x.yaml:2: is not valid YAML: engine is given twice"),
        ("1: 2\n", "the key 1 is not text"),
        ("engine: rehearsal\n", "model: missing"),
        ("engine: !!python/object/apply:os.getcwd []\n", "is not valid YAML"),
    ],
)
def test_a_file_that_is_no_deployment(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(ToolkitError, match=re.escape(message)):
        load_deployment(file)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"engine: rehearsal\n# caf\xe9\n")
    with pytest.raises(ToolkitError, match=r"x.yaml:2: is not UTF-8 text: byte 0xe9\. Save it as UTF-8\."):
        load_deployment(tmp_path / "x.yaml")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('model: {path: "a\\0b"}', "model.path: 'a\\x00b' is not a path: embedded null byte"),
        ("output: ~nobody-of-this-name/x", "output: '~nobody-of-this-name/x' is not a path: Could not determine home"),
        ("workload: {trace: ~nobody-of-this-name/x}", "workload.trace: '~nobody-of-this-name/x' is not a path"),
        ("hardware: {gpus: 1000000000000}", "hardware.gpus: input should be less than 2147483648, got 1000000000000"),
        ("parallel: {tp: 3}\nhardware: {gpus: 2000000000}", "parallel.tp: 3 does not divide"),
    ],
)
def test_values_that_nothing_can_be_done_with(tmp_path: Path, line: str, message: str) -> None:
    content = yaml.safe_load(FLAGSHIP.read_text()) | yaml.safe_load(line)
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ToolkitError, match=re.escape(f"x.yaml: {message}")):
        load_deployment(tmp_path / "x.yaml")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, "is a named pipe, expected a file"),
        (Path.mkdir, "is a directory, expected a file"),
        (lambda file: file.symlink_to("/dev/zero"), "is a device, expected a file"),
        (lambda file: file.symlink_to("nowhere"), "is a link to nowhere, which is not there"),
        (lambda file: file.symlink_to(file), "cannot be read: Too many levels of symbolic links"),
        (lambda file: (file.touch(), os.truncate(file, 5 << 30)), "is larger than 4 MiB, the most that"),
        (lambda file: file.write_text("a: " + "[" * 20_000), "is not valid YAML: nested too deeply"),
    ],
)
def test_what_is_no_file_of_settings(tmp_path: Path, make, message: str) -> None:
    """Some of these would never end to be read, or only when the memory is full."""
    file = tmp_path / "x.yaml"
    make(file)
    with pytest.raises(ToolkitError, match=rf"x\.yaml(:1)?: {re.escape(message)}"):
        load_deployment(file)


def test_the_checkpoint_contradicts_the_yaml(tmp_path: Path) -> None:
    content = yaml.safe_load(FLAGSHIP.read_text())
    content["model"]["path"] = "."
    (tmp_path / "config.json").write_text(
        '{"architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "hidden_size": 8192,'
        '"intermediate_size": 28672, "num_hidden_layers": 32, "num_attention_heads": 64,'
        '"num_key_value_heads": 8, "max_position_embeddings": 8192, "rope_theta": 500000.0, "rms_norm_eps": 1e-5}'
    )
    with pytest.raises(ToolkitError, match=r"model\.config\.num_hidden_layers: 80, but the model in .* has 32"):
        load(tmp_path, content)


def load(folder: Path, content: dict) -> Deployment:
    file = folder / "x.yaml"
    file.write_text(yaml.safe_dump(content))
    return load_deployment(file)


def test_replicas_apart() -> None:
    deployment = load_deployment(BUILD_CONFIGS / "llama3-70b-h100-2xtp4-fp16.yaml")
    first, second = deployment.per_replica()
    assert [first.url("http"), second.url("grpc")] == ["http://127.0.0.1:8000", "grpc://127.0.0.1:8011"]
    assert (first.engine_dir, first.max_batch_size) == (deployment.engine_dir, 32), "32 of 64 in each"
    assert second.run_dir == deployment.run_dir / "replica1"
    assert second.per_replica() == (second,), "it has no replicas of its own"
    assert (deployment.all_ranks, second.all_ranks) == (8, 4)


def test_the_limits_of_a_metric_in_rising_order(tmp_path: Path) -> None:
    content = yaml.safe_load(FLAGSHIP.read_text()) | {"slo": {"ttft_ms": {"p99": 500, "p50": 200}}}
    slo = load(tmp_path, content).slo
    assert slo.percentiles("ttft_ms") == [(50, 200.0), (99, 500.0)]
    assert slo.percentiles("tpot_ms") == []
    with pytest.raises(AttributeError):
        slo.percentiles("tftt_ms")
