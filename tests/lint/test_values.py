"""Values of parameters: what the C++ backend makes of a text, and which of them the executor ends for."""

import pytest

from tests.lint.repositories import DEFAULT, LLM, START, check_found, config, parameter
from toolkit.lint import lint
from toolkit.lint.readings import taken
from toolkit.releases.release import LATEST, RELEASES

FRACTION, CACHE = "kv_cache_free_gpu_mem_fraction", "max_tokens_in_paged_kv_cache"
# std::stoi, std::stoull and std::stof of a GNU C++ library, in the C locale.
TAKEN = [
    ("max_beam_width", "2 beams", "2"),
    ("max_beam_width", " 2", "2"),
    ("max_beam_width", "1e3", "1"),
    ("max_beam_width", "0x10", "0"),
    ("max_beam_width", "two", None),
    ("max_beam_width", "99999999999", None),
    ("max_beam_width", "9" * 5000, None),
    ("kv_cache_host_memory_bytes", "-1", str(2**64 - 1)),
    ("kv_cache_host_memory_bytes", "1GB", "1"),
    (FRACTION, "0,5", "0"),
    (FRACTION, ".5x", ".5"),
    (FRACTION, "nan", "nan"),
    (FRACTION, "1e60", None),
    (FRACTION, "half", None),
    ("max_attention_window_size", "4096, 512,", "4096,512"),
    ("max_attention_window_size", "4096,x", None),
    ("gpu_device_ids", "0, 1; 2,3", "0,1;2,3"),
    ("gpu_device_ids", "0,1;two", "0,1"),
    ("gpu_device_ids", "${gpu_device_ids}", None),
    ("enable_kv_cache_reuse", "TRUE", "TRUE"),
    ("enable_kv_cache_reuse", "tRUE", None),
]
BROKEN = [
    ("parameter-value", START, parameter("gpt_model_type", "inflight"), "expected V1, v1, inflight_batching"),
    ("parameter-value", START, parameter("gpt_model_type", ""), "expected V1, v1, inflight_batching"),
    (
        "parameter-value",
        START,
        parameter(FRACTION, "1.0"),
        "above 0 and below 1, got '1.0', and the executor aborts on it",
    ),
    ("parameter-value", START, parameter(FRACTION, "0"), "above 0 and below 1"),
    ("parameter-value", START, parameter(FRACTION, "-0.5"), "above 0 and below 1"),
    ("parameter-value", START, parameter(FRACTION, "85%"), "above 0 and below 1, got '85'"),
    ("parameter-value", START, parameter(FRACTION, "0,85"), "above 0 and below 1, got '0'"),
    ("parameter-value", DEFAULT, parameter(FRACTION, "high"), "takes its default (0.9)"),
    ("parameter-value", DEFAULT, parameter(FRACTION, "0.8 of it"), "'0.8 of it' is read as 0.8"),
    ("parameter-value", START, parameter(CACHE, "0"), "a whole number of at least 1"),
    ("parameter-value", START, parameter("max_beam_width", "0"), "and the executor aborts on it"),
    ("parameter-value", START, parameter("max_attention_window_size", "0"), "and the executor aborts on it"),
    ("parameter-value", START, parameter("sink_token_length", "4"), "expected no value"),
    ("parameter-value", START, parameter("iter_stats_max_iterations", "-1"), "and the executor aborts on it"),
    ("parameter-value", DEFAULT, parameter("cancellation_check_period_ms", "-5"), "of at least 0"),
    ("parameter-value", DEFAULT, parameter("decoding_mode", "greedy"), "the backend warns in its log"),
    ("parameter-value", START, parameter("decoding_mode", "lookahead"), "and lookahead_window_size, lookahead_ngram"),
    (
        "parameter-value",
        START,
        parameter("cross_kv_cache_fraction", "0.5"),
        "refuses it for a model without an encoder",
    ),
    ("placeholder", START, parameter("gpt_model_type", "${batching_strategy}"), "does not start"),
    ("placeholder", START, parameter("gpt_model_path", "${engine_dir}"), "does not start"),
    ("placeholder", START, config(LLM, 'backend: "tensorrtllm"', 'backend: "${triton_backend}"'), "takes it as it is"),
    ("placeholder", START, parameter("vocab_size", "${vocab}", "preprocessing"), "which the model cannot read"),
    ("placeholder", DEFAULT, parameter("skip_special_tokens", "${skip}", "postprocessing"), "is still ${...}"),
]


@pytest.mark.parametrize(("name", "text", "value"), TAKEN)
def test_what_the_backend_takes_from_a_text(name, text, value):
    assert taken(LATEST.backend_parameters[name], text) == value


@pytest.mark.parametrize(
    ("kind", "effect", "change", "says"), BROKEN, ids=[f"{n}-{b[0]}" for n, b in enumerate(BROKEN)]
)
def test_each_way_to_break_it_is_found(repository, kind, effect, change, says):
    change(repository)
    check_found(repository, kind, effect, says)


@pytest.mark.parametrize(
    ("name", "value"),
    [("gpu_device_ids", "0, 1, 2, 3, 4, 5, 6, 7"), (FRACTION, " 0.8"), (FRACTION, "0.8"), ("sink_token_length", "")],
)
def test_what_the_backend_reads_is_right(repository, name, value):
    parameter(name, value)(repository)
    assert lint(repository) == []


def test_sinks_are_those_of_the_release(repository):
    parameter("sink_token_length", "4")(repository)
    by_release = {name: {one.kind for one in lint(repository, release=name)} for name in RELEASES}
    assert "parameter-value" not in by_release["1.0"] and "parameter-value" in by_release["1.1"]


def test_guided_decoding_stops_only_with_both_its_parameters(repository):
    parameter("guided_decoding_backend", "outlines")(repository)
    assert {(one.kind, one.effect) for one in lint(repository)} == {("parameter-value", DEFAULT)}
    parameter("xgrammar_tokenizer_info_path", "/nowhere")(repository)
    assert ("parameter-value", START) in {(one.kind, one.effect) for one in lint(repository)}
    parameter("guided_decoding_backend", "xgrammar")(repository)
    (found,) = lint(repository)
    assert (found.kind, found.effect) == ("parameter-value", START) and "/nowhere: no such file" in found.what


def test_unfilled_templates_that_are_tolerated_are_one_warning(repository):
    for name in ("decoding_mode", "num_nodes", "lora_prefetch_dir"):
        parameter(name, f"${{{name}}}")(repository)
    parameter("skip_special_tokens", "${skip}", "postprocessing")(repository)
    (found,) = lint(repository)
    assert (found.kind, found.effect, found.path) == ("placeholder", DEFAULT, repository)
    assert "4 parameters are still" in found.what and "tensorrt_llm: decoding_mode, num_nodes" in found.what
