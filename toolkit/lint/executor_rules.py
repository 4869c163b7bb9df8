"""The model that generates: its parameters, its tensors and its queue, for a release of the backend."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from toolkit.lint import parameter_rules
from toolkit.lint.finding import Finding
from toolkit.lint.repository import Model, Repository, type_name
from toolkit.releases import RENAMES, Release
from toolkit.repository import signatures

MEMORY_LIMIT = 0.85
"""hardware.gpu_memory_limit of the requirements."""
TRUE = ("true", "True", "TRUE", "1")


def check(repository: Repository, release: Release) -> Iterator[Finding]:
    executor = repository.executor
    if executor is None or executor.config is None:
        if executor is None and not repository.llm_models:
            what = "no model has backend tensorrtllm, and none is called tensorrt_llm"
            yield Finding("executor", "error", repository.folder, what, "Add it: toolkit repo CONFIG makes all five.")
        return
    yield from _renamed(repository)
    if executor.kind == "tensorrtllm" or "gpt_model_type" in executor.parameters:
        effect = "the backend only warns, and takes its default"
        yield from parameter_rules.check(executor, release.backend_parameters, f"the backend of {release.name}", effect)
        yield from _surprises(executor)
        yield from _tensors(executor, release)
    yield from _queue(executor)


def _surprises(executor: Model) -> Iterator[Finding]:
    """Values that are allowed, and do what few expect."""
    values = executor.parameters
    if not values.get("enable_kv_cache_reuse"):
        what = "enable_kv_cache_reuse is not set, and the backend then reuses KV blocks"
        yield executor.finding("kv-reuse-unset", "warning", what, "Say true or false.", at="enable_kv_cache_reuse")
    name = "kv_cache_free_gpu_mem_fraction"
    if not values.get("max_tokens_in_paged_kv_cache"):
        for what, fix in cache_memory(name, values.get(name, "")):
            yield executor.finding("kv-fraction", "warning", what, fix, at=name)
    if values.get("gpt_model_type", "").lower() == "v1":
        what = "gpt_model_type V1 computes whole batches: no request joins one that runs"
        yield executor.finding("model-type", "warning", what, "Use inflight_fused_batching.", at="gpt_model_type")
    if values.get("enable_chunked_context") not in TRUE:
        what = "enable_chunked_context is off: a prompt longer than the engine's max_num_tokens is refused"
        yield executor.finding("chunked-context", "warning", what, "Say true.", at="enable_chunked_context")


def cache_memory(name: str, fraction: str) -> Iterator[tuple[str, str]]:
    """What is wrong with a KV cache of this fraction of the memory that is free, and what to do."""
    if not fraction:
        what = f"{name} is not set: the KV cache takes 0.9 of the memory that is free"
        yield what, f"Set what stays under {MEMORY_LIMIT:.0%} of the GPU: toolkit plan CONFIG computes it."
    elif _number(fraction) > MEMORY_LIMIT:
        what = f"{name} {fraction} leaves less than {1 - MEMORY_LIMIT:.0%} of a GPU free"
        yield what, "toolkit plan CONFIG computes the largest that does."


def _tensors(executor: Model, release: Release) -> Iterator[Finding]:
    config: Any = executor.config
    for wanted, given, side in (
        (signatures.TENSORRT_LLM_INPUTS, config.input, "input"),
        (signatures.TENSORRT_LLM_OUTPUTS, config.output, "output"),
    ):
        known = {tensor.name: tensor for tensor in signatures.of_release(wanted, release.name)}
        found = {tensor.name: tensor for tensor in given}
        for name, tensor in known.items():
            if tensor.required and name not in found:
                what = f"{side} {name} is missing"
                yield executor.finding("tensor-missing", "error", what, "Add it; docs/contracts.md has its type.")
        for name, tensor in found.items():
            theirs = type_name(tensor.data_type)
            floats = {"FP16", "FP32", "BF16"}  # logits and tables may be of any of them
            if name in known and theirs != known[name].type and not {theirs, known[name].type} <= floats:
                what = f"{side} {name} is {theirs}, the backend's is {known[name].type}"
                yield executor.finding("tensor-type", "error", what, "Make them the same.", at=name)
            elif name not in known and name not in RENAMES:
                what = f"{side} {name} is not one of the backend's"
                yield executor.finding("tensor-unknown", "warning", what, "Remove it.", at=name)


def _renamed(repository: Repository) -> Iterator[Finding]:
    """Tensors by the names that they had before."""
    for model in repository.models.values():
        for tensor in model.config.input if model.config is not None else ():
            if tensor.name in RENAMES:
                new, since = RENAMES[tensor.name]
                what = f"input {tensor.name} is called {new} since {since}"
                yield model.finding("renamed", "error", what, "Rename it, also in the ensemble.", at=tensor.name)


def _queue(executor: Model) -> Iterator[Finding]:
    config: Any = executor.config
    if not config.HasField("dynamic_batching"):
        what = "has no dynamic_batching: its queue policy is where the executor's longest queue comes from"
        fix = "Add dynamic_batching { default_queue_policy { max_queue_size: N } }."
        yield executor.finding("queue", "warning", what, fix)
    elif not config.dynamic_batching.default_queue_policy.max_queue_size:
        what = "max_queue_size is 0: requests queue without end, and time out instead of being refused"
        yield executor.finding("queue", "warning", what, "Set it: dynamic_batching.default_queue_policy.")
    if executor.instances > 1 and not executor.parameters.get("gpu_device_ids"):
        what = f"has {executor.instances} instances and no gpu_device_ids: all of them load the engine on the same GPUs"
        yield executor.finding(
            "instances", "error", what, "Set count: 1, or say which GPUs each has.", at="instance_group"
        )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
