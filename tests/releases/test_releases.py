"""Which release a version is of, what its table holds, and what it says of values."""

import re
from pathlib import Path

import pytest

from toolkit.config.deployment import Deployment, with_settings
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.releases import tensors as signatures
from toolkit.releases.images import Image
from toolkit.releases.models import OUR_PARAMETERS
from toolkit.releases.parameters import RENAMES
from toolkit.releases.release import LATEST, RELEASES, Release, release_of
from toolkit.releases.setting import KINDS, Flag, Parameter
from toolkit.releases.setting import flags as read_flags
from toolkit.releases.tables import within
from toolkit.repository.parameters import tensorrt_llm

FLAGSHIP = Path("build_configs/llama3-70b-h100-pp4tp2-fp16.yaml")

GENERATED = (
    "gemm_plugin",
    "use_paged_context_fmha",
    "multiple_profiles",
    "remove_input_padding",
    "max_batch_size",
    "max_num_tokens",
    "max_seq_len",
    "max_beam_width",
    "kv_cache_type",
    "nccl_plugin",
    "reduce_fusion",
    "gpt_attention_plugin",
    "tokens_per_block",
    "workers",
    "checkpoint_dir",
    "output_dir",
    "input_timing_cache",
    "output_timing_cache",
    "log_level",
    "context_fmha",
)

everywhere = pytest.mark.parametrize("release", RELEASES.values(), ids=RELEASES)


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("0.20.0", "0.20"),
        ("1.0.0", "1.0"),
        ("1.0.3.2510", "1.0"),
        ("1.1.0", "1.1"),
        ("1.2.0", "1.2"),
        ("1.2.1", "1.2"),
        ("1.2", "1.2"),
        ("1.2.0rc6", "1.2"),
        ("1.2.1+cu130", "1.2"),
    ],
)
def test_a_version_is_of_the_release_of_its_major_and_minor(version: str, name: str) -> None:
    assert release_of(version) is RELEASES[name]


@pytest.mark.parametrize(
    "version", ["1.3.0", "0.2.0", "0.200.0", "1.20", "1.2x", "1", "", "one", " 1.2.1", "v1.2.1", "1.2 "]
)
def test_another_version_is_one_clear_line(version: str) -> None:
    with pytest.raises(ToolkitError) as caught:
        release_of(version, where="a.yaml")
    assert str(caught.value) == (f"a.yaml: TensorRT-LLM {version!r} is not supported. Use one of 0.20, 1.0, 1.1, 1.2.")


def test_what_cannot_be_printed_is_still_one_line() -> None:
    with pytest.raises(ToolkitError) as caught:
        release_of("1.3\n" * 1000)
    assert len(str(caught.value)) < 200 and "\n" not in str(caught.value)


def test_the_latest_is_1_2() -> None:
    assert LATEST is RELEASES["1.2"] and list(RELEASES) == ["0.20", "1.0", "1.1", "1.2"]
    assert LATEST.versions == ("1.2.0", "1.2.1")
    assert RELEASES["1.0"].versions == ("1.0.0", "1.0.3.2510")


def test_images_are_newest_first() -> None:
    assert LATEST.images[0] == Image(
        "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3",
        "1.2.1",
        tensorrt="10.14.1.48",
        cuda="13.1.0.036",
        driver="590.44.01",
        python="3.12.3",
    )
    for release in RELEASES.values():
        tags = [image.tag for image in release.images]
        assert tags == sorted(tags, reverse=True)


@everywhere
def test_the_generators_flags_are_known(release: Release) -> None:
    assert set(GENERATED) <= set(release.build_flags)


@everywhere
def test_a_removed_flag_is_no_flag(release: Release) -> None:
    assert not set(release.removed_flags) & set(release.build_flags)
    gone = ("tp_size", "pp_size", "max_output_len", "use_inflight_batching", "strongly_typed")
    assert set(gone) <= set(release.removed_flags)
    assert ("auto_parallel" in release.removed_flags) == (release is LATEST)
    assert all(re.match(r"(gone|not a flag).*: .+", why) for why in release.removed_flags.values())


@everywhere
def test_every_default_is_a_value(release: Release) -> None:
    models = (*release.model_parameters.values(), *OUR_PARAMETERS.values())
    others = (setting for settings in models for setting in settings.values())
    for setting in (*release.build_flags.values(), *release.backend_parameters.values(), *others):
        assert setting.kind in KINDS
        assert (setting.kind in ("choice", "words", "toggle", "bool")) == bool(setting.choices), setting.name
        assert setting.default is None or setting.problem(setting.default) is None, setting.name


@everywhere
def test_a_contract_cannot_be_changed(release: Release) -> None:
    with pytest.raises(TypeError):
        release.build_flags["x"] = Flag("x", "text")  # type: ignore[index]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("max_batch_size", 0, "expected a whole number of at least 1, got 0"),
        ("max_batch_size", "64.0", "expected a whole number of at least 1, got '64.0'"),
        ("max_batch_size", True, "expected a whole number of at least 1, got True"),
        ("max_batch_size", "٣", "expected a whole number of at least 1, got '٣'"),
        ("max_batch_size", None, "expected a whole number of at least 1, got None"),
        ("multiple_profiles", "yes", "expected enable or disable, got 'yes'"),
        ("multiple_profiles", True, "expected enable or disable, got True"),
        ("streamingllm", "enable", "expected disable, got 'enable'"),
        ("dry_run", "true", "expected no value, got 'true'"),
        ("gemm_allreduce_plugin", "auto", "expected float16, bfloat16 or disable, got 'auto'"),
        ("kv_cache_type", ["paged"], "expected continuous, paged or disabled, got ['paged']"),
        ("output_dir", "", "expected a path, got ''"),
        ("output_dir", "a\0b", r"expected a path, got 'a\x00b'"),
        ("model_cls_name", 3, "expected text, got 3"),
        ("lora_dir", [], "expected one word or more, got []"),
        ("lora_dir", ["a", ""], "expected one word or more, got ['a', '']"),
    ],
)
def test_what_is_wrong_with_a_flag(name: str, value: object, words: str) -> None:
    assert LATEST.build_flags[name].problem(value) == words


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("kv_cache_free_gpu_mem_fraction", "1.5", "expected a number above 0 and below 1, got '1.5'"),
        ("kv_cache_free_gpu_mem_fraction", "nan", "expected a number above 0 and below 1, got 'nan'"),
        ("kv_cache_free_gpu_mem_fraction", "0.9GB", "expected a number above 0 and below 1, got '0.9GB'"),
        ("max_beam_width", 2**31, "expected a whole number of at least 1 below 2147483648, got 2147483648"),
        (
            "kv_cache_host_memory_bytes",
            str(2**64),
            "expected a whole number of at least 0 below 18446744073709551616, got '18446744073709551616'",
        ),
        ("enable_chunked_context", "yes", "expected true or false, got 'yes'"),
        (
            "max_attention_window_size",
            "1;2",
            "expected whole numbers with commas, such as 4096,8192, each at least 1, got '1;2'",
        ),
        (
            "gpu_device_ids",
            "0,1;",
            "expected lists of whole numbers with semicolons, such as 0,1;2,3, got '0,1;'",
        ),
        ("kv_cache_free_gpu_mem_fraction", "1.0", "expected a number above 0 and below 1, got '1.0'"),
        ("kv_cache_free_gpu_mem_fraction", "0", "expected a number above 0 and below 1, got '0'"),
        ("kv_cache_free_gpu_mem_fraction", "0.99999999", "expected a number above 0 and below 1, got '0.99999999'"),
        ("cross_kv_cache_fraction", "1", "expected a number above 0 and below 1, got '1'"),
        (
            "max_attention_window_size",
            "4096,0",
            "expected whole numbers with commas, such as 4096,8192, each at least 1, got '4096,0'",
        ),
        ("sink_token_length", "0", "expected no value, an empty string, got '0'"),
        ("sink_token_length", "4", "expected no value, an empty string, got '4'"),
        ("gpt_model_type", "", "expected V1, v1, inflight_batching or inflight_fused_batching, got ''"),
        (
            "tokenizer_dir",
            "${tokenizer_dir}",
            "expected a path, got '${tokenizer_dir}', a template that was not filled",
        ),
    ],
)
def test_what_is_wrong_with_a_parameter(name: str, value: object, words: str) -> None:
    assert LATEST.backend_parameters[name].problem(value) == words


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        (LATEST.build_flags["max_batch_size"], 64),
        (LATEST.build_flags["max_batch_size"], "64"),
        (LATEST.build_flags["output_dir"], Path("/engines")),
        (LATEST.build_flags["dry_run"], True),
        (LATEST.build_flags["dry_run"], False),
        (LATEST.build_flags["lora_dir"], ["a", Path("b")]),
        (LATEST.build_flags["lora_dir"], "a"),
        (RELEASES["1.0"].build_flags["streamingllm"], "enable"),
        (LATEST.backend_parameters["enable_chunked_context"], "TRUE"),
        (LATEST.backend_parameters["enable_chunked_context"], True),
        (LATEST.backend_parameters["kv_cache_free_gpu_mem_fraction"], 0.9),
        (LATEST.backend_parameters["kv_cache_free_gpu_mem_fraction"], ".5"),
        (LATEST.backend_parameters["kv_cache_free_gpu_mem_fraction"], "0.999999"),
        (LATEST.backend_parameters["sink_token_length"], ""),
        (RELEASES["1.0"].backend_parameters["sink_token_length"], "4"),
        (LATEST.backend_parameters["kv_cache_host_memory_bytes"], str(2**64 - 1)),
        (LATEST.backend_parameters["gpu_device_ids"], "0,1;2,3"),
        (LATEST.backend_parameters["max_attention_window_size"], "4096,8192"),
        (LATEST.backend_parameters["encoder_model_path"], ""),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_nothing_is_wrong(setting: Flag | Parameter, value: object) -> None:
    assert setting.problem(value) is None


@everywhere
@pytest.mark.parametrize("value", [None, [], {}, object(), b"x", float("inf"), 10**400, "x" * 10**6, "\0", "9" * 5000])
def test_any_value_has_words_or_none(release: Release, value: object) -> None:
    for setting in (*release.build_flags.values(), *release.backend_parameters.values()):
        words = setting.problem(value)
        assert words is None or len(words) < 400


def flagship(release: Release) -> Deployment:
    return with_settings(load_deployment(FLAGSHIP), engine_options={"version": release.images[0].version})


@everywhere
def test_the_flagship_says_nothing_wrong(release: Release) -> None:
    said = tensorrt_llm(flagship(release), Path("/engines"))
    assert said["enable_chunked_context"] == "true" and len(said) > 30
    for name, value in said.items():
        assert release.backend_parameters[name].problem(value) is None, name
    for name, setting in release.backend_parameters.items():
        assert name in said or not setting.present, name


def test_what_a_backend_does_not_know_is_not_said_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before, release = flagship(RELEASES["1.0"]), Release("1.0")
    known = dict(release.backend_parameters)
    assert "multi_block_mode" in tensorrt_llm(before, Path("/engines"))
    del known["multi_block_mode"]
    vars(release)["backend_parameters"] = known
    monkeypatch.setattr(Deployment, "release", release)
    assert "multi_block_mode" not in tensorrt_llm(before, Path("/engines"))


def test_a_deployment_is_of_the_release_of_its_version_and_a_rehearsal_of_the_latest() -> None:
    old = flagship(RELEASES["0.20"])
    assert old.release is RELEASES["0.20"]
    assert old.model_copy(update={"engine": "rehearsal"}).release is LATEST


@everywhere
def test_tensors_of_a_release(release: Release) -> None:
    def dims(tensors: tuple[signatures.Tensor, ...]) -> dict[str, tuple[int, ...]]:
        return {tensor.name: tensor.dims for tensor in signatures.of_release(tensors, release.name)}

    several = release.name in ("1.1", "1.2")  # images in a request
    inputs, outputs = dims(signatures.PREPROCESSING_INPUTS), dims(signatures.PREPROCESSING_OUTPUTS)
    assert inputs["IMAGE_URL"] == ((-1,) if several else (1,))
    assert inputs.get("IMAGE_SIZES") == ((-1, 2) if several else None)
    assert outputs["IMAGE_SIZES"] == ((-1, 2) if several else (2,))
    assert ("image_sizes_input" in dims(signatures.BLS_INPUTS)) == several
    assert set(dims(signatures.TENSORRT_LLM_INPUTS)) == {one.name for one in signatures.TENSORRT_LLM_INPUTS}


def test_renamed_are_the_names_of_now() -> None:
    tensors = {tensor.name for tensor in signatures.TENSORRT_LLM_INPUTS}
    for old, (new, _) in RENAMES.items():
        assert old not in tensors and old not in LATEST.backend_parameters
        assert new in tensors or new in LATEST.backend_parameters


@pytest.mark.parametrize(
    "table", ["a int -", "a  int(1..)  -  2.0-  -", "a  number  -  -  -", "a  int  -  -  -\na  int  -  -  -"]
)
def test_a_slip_in_a_table_is_found(table: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_flags(table, "1.2")


def test_spans() -> None:
    assert [within("1.1-", name) for name in RELEASES] == [False, False, True, True]
    assert [within("-1.0", name) for name in RELEASES] == [True, True, False, False]
    assert all(within("-", name) for name in RELEASES)
