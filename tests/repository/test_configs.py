"""The flagship's config.pbtxt: what must hold of it. tests/releases/golden/ has it whole, for each release."""

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.releases.tensors import table
from toolkit.repository.configs import model_configs, to_text
from toolkit.repository.parameters import SpecialTokens

ROOT = Path(__file__).parents[2]
FLAGSHIP = ROOT / "build_configs" / "llama3-70b-h100-pp4tp2-fp16.yaml"
LLAMA3_INSTRUCT = SpecialTokens(eos=(128001, 128009), pad=128001)


def flagship_texts() -> dict[str, str]:
    configs = model_configs(load_deployment(FLAGSHIP), LLAMA3_INSTRUCT, Path("/deployment/engine"))
    return {name: to_text(config) for name, config in configs.items()}


def rehearsal() -> dict:
    deployment = load_deployment(ROOT / "build_configs" / "tiny-llama-rehearsal.yaml")
    return model_configs(deployment, SpecialTokens((1, 2), 3), Path("/deployment/engine"))


def test_text_parses_back_and_has_no_placeholder():
    for text in flagship_texts().values():
        assert "${" not in text
        parsed = text_format.Parse(text, model_config_pb2.ModelConfig())
        assert to_text(parsed) == text


def test_figures_of_the_flagship():
    texts = flagship_texts()
    config = text_format.Parse(texts["tensorrt_llm"], model_config_pb2.ModelConfig())
    assert config.backend == "tensorrtllm" and config.model_transaction_policy.decoupled
    assert config.max_batch_size == 64
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 256
    values = {key: value.string_value for key, value in config.parameters.items()}
    assert values["gpt_model_type"] == "inflight_fused_batching"
    assert values["batch_scheduler_policy"] == "guaranteed_no_evict"
    assert values["enable_chunked_context"] == values["enable_kv_cache_reuse"] == "true"
    # By hand: 85 % of 79.6 GiB, less the weights of a GPU of the first stage (20 layers of 855.65 million parameters
    # halved by tp, and the whole embedding, 2 bytes each) and 3.35 + 0.812 GiB of workspace, at 40,960 bytes a token.
    weights = 20 * 855.65e6 / 2 * 2 + 128256 * 8192 * 2
    free = 0.85 * 79.6 * 2**30 - weights - (3.35 + 0.8118) * 2**30
    assert int(values["max_tokens_in_paged_kv_cache"]) == pytest.approx(free / 40960, rel=1e-3)


def test_in_a_rehearsal_triton_refuses_nothing_that_the_engine_has_room_for():
    """64 requests run and 64 wait, and each is an execution, as NVIDIA's backend counts."""
    config = rehearsal()["tensorrt_llm"]
    assert config.backend == "python" and config.parameters["max_queue_size"].string_value == "64"
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 64 + 64 + 1
    assert list(config.dynamic_batching.preferred_batch_size) == [1]


@pytest.mark.parametrize("decoupled", [True, False])
def test_serving_decoupled_is_the_policy_of_the_models_that_may_stream(decoupled):
    deployment = load_deployment(FLAGSHIP, changes={"serving.decoupled": decoupled})
    configs = model_configs(deployment, LLAMA3_INSTRUCT, Path("/deployment/engine"))
    policies = {name: config.model_transaction_policy.decoupled for name, config in configs.items()}
    assert policies.pop("tensorrt_llm") is policies.pop("tensorrt_llm_bls") is decoupled
    assert not any(policies.values())


def test_a_model_that_leaves_no_room_for_a_sequence():
    flagship = load_deployment(FLAGSHIP)
    small = flagship.hardware.model_copy(update={"gpu_memory_gib": 24.0})
    with pytest.raises(ToolkitError, match=r"gpu_memory_limit: leaves room for 0 tokens of KV cache"):
        model_configs(flagship.model_copy(update={"hardware": small}), LLAMA3_INSTRUCT, Path("/deployment/engine"))


def test_rehearsal_differs_from_engines_in_backend_queue_and_sizes_only():
    engines = model_configs(load_deployment(FLAGSHIP), LLAMA3_INSTRUCT, Path("/deployment/engine"))
    for name, config in rehearsal().items():
        assert list(config.input) == list(engines[name].input)
        assert list(config.output) == list(engines[name].output)
        assert config.ensemble_scheduling == engines[name].ensemble_scheduling
        own = {"max_queue_size", "toolkit_histograms"} if name == "tensorrt_llm" else set()
        assert set(config.parameters) == set(engines[name].parameters) | own
    assert rehearsal()["tensorrt_llm"].backend == "python"
    assert rehearsal()["tensorrt_llm"].parameters["max_tokens_in_paged_kv_cache"].string_value == "8192"


def test_every_ensemble_tensor_comes_from_somewhere():
    configs = rehearsal()
    ensemble = configs["ensemble"]
    known = {tensor.name: (tensor.data_type, len(tensor.dims)) for tensor in ensemble.input}
    for step in ensemble.ensemble_scheduling.step:
        model = configs[step.model_name]
        inputs = {tensor.name: (tensor.data_type, len(tensor.dims)) for tensor in model.input}
        outputs = {tensor.name: (tensor.data_type, len(tensor.dims)) for tensor in model.output}
        assert all(known[outer] == inputs[inner] for inner, outer in step.input_map.items())
        assert {tensor.name for tensor in model.input if not tensor.optional} <= set(step.input_map)
        known |= {outer: outputs[inner] for inner, outer in step.output_map.items()}
    assert all(known[tensor.name] == (tensor.data_type, len(tensor.dims)) for tensor in ensemble.output)


TWICE = ("x INT32[1]\nx INT32[1]", "x FP16[1] -1.0\nx INT32[1] 1.0-")


@pytest.mark.parametrize("line", ["x INT31[1]", "x INT32", "x INT32[1] optional", *TWICE])
def test_table_that_does_not_follow_the_form(line):
    with pytest.raises(ValueError, match="table"):
        table(line)
