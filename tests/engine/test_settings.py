import json

import pytest

from toolkit.engine.settings import EngineSettings
from toolkit.errors import ToolkitError


def of(engine_dir="/nowhere", **parameters):
    config = {"name": "tensorrt_llm", "parameters": {"gpt_model_path": {"string_value": str(engine_dir)}}}
    config["parameters"] |= {name: {"string_value": value} for name, value in parameters.items()}
    return EngineSettings.of_model(config)


def test_sizes_of_the_engine_and_options_of_the_model(tiny):
    settings = of(
        tiny.engine_dir,
        max_queue_size="9",
        batch_scheduler_policy="max_utilization",
        enable_chunked_context="True",
        enable_kv_cache_reuse="0",
        max_tokens_in_paged_kv_cache="1001",
    )
    scheduling = settings.scheduling
    assert (scheduling.policy, scheduling.chunked_context, scheduling.reuse) == ("max_utilization", True, False)
    assert (scheduling.max_batch_size, scheduling.max_num_tokens, scheduling.max_seq_len) == (8, 64, 128)
    assert (scheduling.tokens_per_block, scheduling.num_blocks, scheduling.max_queue_size) == (8, 126, 9)
    assert settings.mapping.world_size == 1


def test_unset_parameters_mean_what_the_backend_means(tiny):
    settings = of(tiny.engine_dir, batch_scheduler_policy="", enable_kv_cache_reuse="${enable_kv_cache_reuse}")
    assert (settings.scheduling.policy, settings.scheduling.reuse) == ("guaranteed_no_evict", True)
    assert (settings.enable_chunked_context, settings.exclude_input_in_output) == (False, False)
    assert settings.scheduling.num_blocks == tiny.kv_blocks


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gpt_model_type", "V1"),
        ("batch_scheduler_policy", "static_batch"),
        ("enable_chunked_context", "maybe"),
        ("max_tokens_in_paged_kv_cache", "0"),
        ("max_tokens_in_paged_kv_cache", "many"),
        ("max_beam_width", "4"),
        ("stats_check_period_ms", "-1"),
        ("max_queue_size", "-1"),
    ],
)
def test_a_wrong_value_is_refused_by_name(name, value):
    with pytest.raises(ToolkitError) as caught:
        of(**{name: value})
    assert f"parameters of model tensorrt_llm: {name}: " in str(caught.value)
    assert repr(value) in str(caught.value)


def test_no_engine_or_another_one(tmp_path):
    with pytest.raises(ToolkitError, match="gpt_model_path must be an engine directory"):
        of(tmp_path).config  # noqa: B018
    (tmp_path / "config.json").write_text(json.dumps({"version": "1.2.1"}))
    with pytest.raises(ToolkitError, match=r"version: 1.2.1 is not a rehearsal engine. Build with --engine rehearsal"):
        of(tmp_path).config  # noqa: B018


def test_another_number_of_processes(tiny):
    of(tiny.engine_dir).check_world(1)
    with pytest.raises(ToolkitError, match="was built for tp 1 x pp 1 = 1 ranks, but 4 were started"):
        of(tiny.engine_dir).check_world(4)
