"""Makes the model repository for engine: pytorch: NVIDIA's `llmapi` model, and the names that clients of engines use.

    tensorrt_llm/       config.pbtxt, 1/model.py, 1/model.yaml: text or token ids in and out, with the LLM API
    ensemble/           the tensors of the ensemble for engines, passed on to tensorrt_llm
    tensorrt_llm_bls/   config.pbtxt, 1/model.py: the same, and ends requests whose clients disconnect

The tensors of tensorrt_llm are those of NVIDIA/TensorRT-LLM triton_backend/all_models/llmapi/tensorrt_llm/
config.pbtxt@0a710573, and the other ones of ENSEMBLE_INPUTS. NVIDIA's model takes requests without a batch
dimension. Ours has one, because all models of an ensemble must agree. Token ids are ours, too: input_ids in the place
of text_input, then output_ids in the place of text_output; stop_token_ids end an answer as the model's own do.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tritonclient.grpc import model_config_pb2 as pb

from toolkit.config import histograms
from toolkit.releases.llm_api import ignored_by_sampler, llm_release_of
from toolkit.releases.tensors import BLS_INPUTS, ENSEMBLE_INPUTS, ENSEMBLE_OUTPUTS, table
from toolkit.repository.configs import model_inputs, model_outputs
from toolkit.repository.llm_args import as_yaml, llm_args
from toolkit.repository.parameters import CANCELLATION_CHECK_PERIOD_MS, STATS_CHECK_PERIOD_MS

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment
    from toolkit.model.tokenizer import SpecialTokens

MODEL = "tensorrt_llm"

INPUTS = table("""
    text_input                                                           STRING[1]
    input_ids, stop_token_ids                                            INT32[-1]
    streaming, stop                                                      BOOL[1]
    sampling_param_best_of, sampling_param_top_k                         INT32[1]
    sampling_param_max_tokens                                            INT32[1]
    sampling_param_temperature, sampling_param_top_p                     FP32[1]
    sampling_param_frequency_penalty, sampling_param_presence_penalty    FP32[1]
    sampling_param_stop                                                  STRING[-1]
    sampling_param_seed                                                  UINT64[1]
    sampling_param_exclude_input_from_output                             BOOL[1]
    sampling_param_return_perf_metrics                                   BOOL[1]
    return_finish_reason, return_stop_reason, return_cumulative_logprob  BOOL[1]
""")
OUTPUTS = table("""
    output_ids                                                           INT32[-1]
    finish_reason, stop_reason                                           STRING[-1]
    cumulative_logprob                                                   FP32[-1]
    kv_cache_reused_block, kv_cache_missed_block                         INT32[-1]
    kv_cache_hit_rate                                                    FP32[-1]
""")
STOP = tuple(tensor for tensor in BLS_INPUTS if tensor.name == "stop")

RENAMED = {
    "stream": "streaming",
    "stop_words": "sampling_param_stop",
    "exclude_input_in_output": "sampling_param_exclude_input_from_output",
    **{
        name: f"sampling_param_{name}"
        for name in (
            *("max_tokens", "temperature", "top_k", "top_p", "seed"),
            *("frequency_penalty", "presence_penalty", "return_perf_metrics"),
        )
    },
}
"""Inputs of the ensemble that have another name in tensorrt_llm."""


def llmapi_configs(deployment: Deployment) -> dict[str, Any]:
    """The ModelConfig of each model by name."""
    taken = {*(tensor.name for tensor in INPUTS), *RENAMED}
    others = [tensor for tensor in ENSEMBLE_INPUTS if tensor.name not in taken]
    config = pb.ModelConfig(name=MODEL, backend="python", max_batch_size=1)
    config.input.extend(model_inputs([*INPUTS, *others]))
    config.output.extend(model_outputs([*ENSEMBLE_OUTPUTS, *OUTPUTS]))
    config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_CPU)
    config.model_transaction_policy.decoupled = deployment.serving.decoupled
    config.parameters[histograms.PARAMETER].string_value = histograms.parameter()
    return {model.name: model for model in (config, _ensemble(), _bls(deployment))}


def model_yaml(deployment: Deployment, tokens: SpecialTokens, longest_token_bytes: int) -> str:
    """The text of model.yaml: the arguments of LLM(), and the values that the model itself needs."""
    options = deployment.engine_options
    ignored = ignored_by_sampler(llm_release_of(options.version), str(options.extra.get("sampler_type", "auto")))
    own = {
        "max_batch_size": 1,
        "decoupled": str(deployment.serving.decoupled).lower(),
        "cancellation_check_period_ms": CANCELLATION_CHECK_PERIOD_MS,
        "stats_check_period_ms": STATS_CHECK_PERIOD_MS,
        "max_running_requests": deployment.max_batch_size * deployment.parallel.pp,
        "max_active_requests": deployment.max_batch_size * deployment.parallel.pp + deployment.limits.max_queue_size,
        "eos_token_ids": list(tokens.eos),
        "longest_token_bytes": longest_token_bytes,
        "ignored_by_sampler": json.dumps(ignored),
    }
    lines = "".join(f"  {name}: {value}\n" for name, value in own.items())
    return f"{as_yaml(llm_args(deployment))}triton_config:  # what LLM() is not told\n{lines}"


def _ensemble() -> Any:
    """An ensemble with one step: it only gives the tensors of tensorrt_llm other names."""
    config = pb.ModelConfig(name="ensemble", platform="ensemble", max_batch_size=1)
    config.input.extend(model_inputs(ENSEMBLE_INPUTS))
    config.output.extend(model_outputs(ENSEMBLE_OUTPUTS))
    step = config.ensemble_scheduling.step.add(model_name=MODEL, model_version=-1)
    step.input_map.update({RENAMED.get(tensor.name, tensor.name): tensor.name for tensor in ENSEMBLE_INPUTS})
    step.output_map.update({tensor.name: tensor.name for tensor in ENSEMBLE_OUTPUTS})
    return config


def _bls(deployment: Deployment) -> Any:
    config = pb.ModelConfig(name="tensorrt_llm_bls", backend="python", max_batch_size=1)
    config.input.extend(model_inputs((*ENSEMBLE_INPUTS, *STOP)))
    config.output.extend(model_outputs(ENSEMBLE_OUTPUTS))
    config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_CPU)
    config.model_transaction_policy.decoupled = deployment.serving.decoupled
    values = {
        "tensorrt_llm_model_name": MODEL,
        "renamed_inputs": json.dumps(RENAMED),
        "cancellation_check_period_ms": str(CANCELLATION_CHECK_PERIOD_MS),
    }
    for name, value in values.items():
        config.parameters[name].string_value = value
    return config
