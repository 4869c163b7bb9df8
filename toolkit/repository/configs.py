"""Makes the config.pbtxt of the five models as protobuf messages: without templates, no placeholder can be left."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from toolkit.config import histograms
from toolkit.config.deployment import Deployment
from toolkit.model.tokenizer import SpecialTokens
from toolkit.releases import tensors as signatures
from toolkit.releases.tensors import Tensor
from toolkit.repository import parameters

# The rehearsal answers as NVIDIA's backend does, but in Python. llmapi.py makes the repository for engine: pytorch.

PREPROCESSING_INSTANCES = 4
"""With four instances, a short prompt does not wait while three long ones are tokenised."""


def model_configs(deployment: Deployment, tokens: SpecialTokens, engine_dir: Path) -> dict[str, Any]:
    """The ModelConfig of each model by name. The only file that it reads is the model's config.json, if it exists."""
    models = (
        _preprocessing(deployment, tokens),
        _tensorrt_llm(deployment, engine_dir),
        _postprocessing(deployment),
        _tensorrt_llm_bls(deployment),
        _ensemble(deployment),
    )
    return {model.name: model for model in models}


def to_text(config: Any) -> str:
    """The text of a config.pbtxt."""
    return text_format.MessageToString(config)


def _preprocessing(deployment: Deployment, tokens: SpecialTokens) -> Any:
    return _model(
        deployment,
        "preprocessing",
        backend="python",
        inputs=signatures.PREPROCESSING_INPUTS,
        outputs=signatures.PREPROCESSING_OUTPUTS,
        values=parameters.preprocessing(deployment, tokens),
        instances=PREPROCESSING_INSTANCES,
    )


def _postprocessing(deployment: Deployment) -> Any:
    # One instance, no batching queue: the tokens of a stream must be decoded in their order.
    return _model(
        deployment,
        "postprocessing",
        backend="python",
        inputs=signatures.POSTPROCESSING_INPUTS,
        outputs=signatures.POSTPROCESSING_OUTPUTS,
        values=parameters.postprocessing(),
    )


def _tensorrt_llm(deployment: Deployment, engine_dir: Path) -> Any:
    config = _model(
        deployment,
        "tensorrt_llm",
        backend=deployment.kind.triton_backend,
        inputs=signatures.TENSORRT_LLM_INPUTS,
        outputs=signatures.TENSORRT_LLM_OUTPUTS,
        values=parameters.tensorrt_llm(deployment, engine_dir),
        scalars=True,
    )
    config.model_transaction_policy.decoupled = deployment.serving.decoupled
    batching, queue = config.dynamic_batching, deployment.limits.max_queue_size
    batching.preferred_batch_size.append(config.max_batch_size)
    batching.default_queue_policy.max_queue_size = queue
    if not deployment.kind.on_gpus:
        # NVIDIA's backend counts each request as one execution, and empties Triton's queue at once. A Python model
        # counts
        # batches and takes longer, so Triton's queue holds as many requests as the engine has room for. One more place
        # lets the engine refuse a request itself: NVIDIA's HTTP client looks for the engine's words in every burst.
        batching.preferred_batch_size[:] = [1]
        batching.default_queue_policy.max_queue_size = config.max_batch_size + queue + 1
        config.parameters["max_queue_size"].string_value = str(queue)
        config.parameters[histograms.PARAMETER].string_value = histograms.parameter()
    return config


def _tensorrt_llm_bls(deployment: Deployment) -> Any:
    config = _model(
        deployment,
        "tensorrt_llm_bls",
        backend="python",
        inputs=signatures.BLS_INPUTS,
        outputs=signatures.BLS_OUTPUTS,
        values=parameters.tensorrt_llm_bls(deployment),
    )
    config.model_transaction_policy.decoupled = deployment.serving.decoupled
    return config


def _ensemble(deployment: Deployment) -> Any:
    config = pb.ModelConfig(name="ensemble", platform="ensemble", max_batch_size=deployment.limits.max_sequences)
    release = deployment.release.name
    config.input.extend(model_inputs(signatures.of_release(signatures.ENSEMBLE_INPUTS, release)))
    config.output.extend(model_outputs(signatures.of_release(signatures.ENSEMBLE_OUTPUTS, release)))
    generation = _same_names(signatures.GENERATION, without=signatures.TENSORRT_LLM_FROM_PREPROCESSING)
    steps = (
        ("preprocessing", signatures.PREPROCESSING_FROM_REQUEST, signatures.PREPROCESSING_TO_ENSEMBLE),
        (
            "tensorrt_llm",
            signatures.TENSORRT_LLM_FROM_PREPROCESSING + signatures.TENSORRT_LLM_RENAMED + generation,
            signatures.TENSORRT_LLM_TO_ENSEMBLE + _same_names(signatures.RESULTS),
        ),
        ("postprocessing", signatures.POSTPROCESSING_FROM_ENSEMBLE, signatures.POSTPROCESSING_TO_ENSEMBLE),
    )
    for name, inputs, outputs in steps:
        step = config.ensemble_scheduling.step.add(model_name=name, model_version=-1)
        step.input_map.update(inputs)
        step.output_map.update(outputs)
    return config


def _model(
    deployment: Deployment,
    name: str,
    *,
    backend: str,
    inputs: Iterable[Tensor],
    outputs: Iterable[Tensor],
    values: dict[str, str],
    scalars: bool = False,
    instances: int = 1,
) -> Any:
    config = pb.ModelConfig(name=name, backend=backend, max_batch_size=deployment.limits.max_sequences)
    release = deployment.release.name
    config.input.extend(model_inputs(signatures.of_release(inputs, release), scalars))
    config.output.extend(model_outputs(signatures.of_release(outputs, release)))
    config.instance_group.add(count=instances, kind=pb.ModelInstanceGroup.KIND_CPU)
    for key, value in values.items():
        config.parameters[key].string_value = value
    return config


def model_inputs(tensors: Iterable[Tensor], scalars: bool = False) -> Iterable[Any]:
    """The inputs of a config.pbtxt."""
    for tensor in tensors:
        message = pb.ModelInput(
            name=tensor.name,
            data_type=_data_type(tensor),
            dims=tensor.dims,
            optional=not tensor.required,
            allow_ragged_batch=tensor.ragged,
        )
        if scalars and tensor.scalar:
            message.reshape.SetInParent()
        yield message


def model_outputs(tensors: Iterable[Tensor]) -> Iterable[Any]:
    """The outputs of a config.pbtxt."""
    for tensor in tensors:
        yield pb.ModelOutput(name=tensor.name, data_type=_data_type(tensor), dims=tensor.dims)


def _data_type(tensor: Tensor) -> int:
    return int(pb.DataType.Value(f"TYPE_{tensor.type}"))


def _same_names(tensors: Iterable[Tensor], without: tuple[tuple[str, str], ...] = ()) -> tuple[tuple[str, str], ...]:
    taken = dict(without)
    return tuple((tensor.name, tensor.name) for tensor in tensors if tensor.name not in taken)
