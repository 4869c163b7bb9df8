"""The model that generates: its parameters, its tensors and its queue, for a release of the backend.

What the backend makes of a value is in model_instance_state.cc; what the executor then does in
trtGptModelInflightBatching.cpp.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from toolkit.lint import parameter_rules, readings
from toolkit.lint.finding import Finding
from toolkit.lint.repository import Model, Repository, type_name
from toolkit.releases import tensors as signatures
from toolkit.releases.models import OUR_REHEARSAL_PARAMETERS
from toolkit.releases.parameters import RENAMES
from toolkit.releases.release import Release

MEMORY_LIMIT = 0.85
"""hardware.gpu_memory_limit of the requirements."""
TRUE = ("true", "True", "TRUE", "1")
OF_ANY_FLOAT = (
    *("draft_logits", "context_logits", "generation_logits", "encoder_input_features"),
    *("prompt_embedding_table", "lora_weights"),
)
"""Tensors that have the type of the model."""
LOOKAHEAD = ("lookahead_window_size", "lookahead_ngram_size", "lookahead_verification_set_size")


def check(repository: Repository, release: Release) -> Iterator[Finding]:
    """Find mistakes in the models of the tensorrtllm backend."""
    if not repository.executors and not repository.llm_models:
        what = "no model has backend tensorrtllm, and none is called tensorrt_llm"
        yield Finding("executor", "answers", repository.folder, what, "Add it: toolkit repo CONFIG makes all five.")
    if repository.executors:
        yield from _renamed(repository)
    for executor in repository.executors:
        if executor.model.config is not None:
            yield from _of(executor.model, repository.is_rehearsal(executor.model), release)


def _of(executor: Model, rehearsal: bool, release: Release) -> Iterator[Finding]:
    if executor.reads_engine:
        own = OUR_REHEARSAL_PARAMETERS if rehearsal else {}
        known, reader = {**release.backend_parameters, **own}, f"the backend of {release.name}"
        yield from parameter_rules.check(executor, known, reader, readings.backend)
        yield from _together(executor)
        yield from _surprises(executor)
        yield from _tensors(executor, release)
    yield from _queue(executor)


def _together(executor: Model) -> Iterator[Finding]:
    """Values that stop the backend together with, or without, others."""
    if executor.given("cross_kv_cache_fraction") and not executor.given("encoder_model_path"):
        what = "cross_kv_cache_fraction is set, which the executor refuses for a model without an encoder"
        yield executor.finding("parameter-value", "start", what, "Leave it empty.", at="cross_kv_cache_fraction")
    if executor.given("decoding_mode") == "lookahead" and (missing := [n for n in LOOKAHEAD if not executor.given(n)]):
        what = f"decoding_mode is lookahead, and {', '.join(missing)} {'are' if len(missing) > 1 else 'is'} not set"
        yield executor.finding("parameter-value", "start", what, "Set all three.", at="decoding_mode")
    guidance, tokens = executor.given("guided_decoding_backend"), executor.given("xgrammar_tokenizer_info_path")
    if guidance and tokens and guidance != "xgrammar":
        what = f"guided_decoding_backend is {guidance}, which the backend refuses"
        yield executor.finding("parameter-value", "start", what, "Use xgrammar.", at="guided_decoding_backend")
    elif guidance and tokens and not os.path.lexists(tokens):  # unlike Path.exists, never raises
        what = f"xgrammar_tokenizer_info_path {tokens}: no such file"
        fix = "Write it, or lint where it is."
        yield executor.finding("parameter-value", "start", what, fix, at="xgrammar_tokenizer_info_path")


def _surprises(executor: Model) -> Iterator[Finding]:
    """Values that are allowed, and do what few expect."""
    if not executor.given("enable_kv_cache_reuse"):
        what = "enable_kv_cache_reuse is not set, and the backend then reuses KV blocks"
        yield executor.finding("kv-reuse-unset", "default", what, "Say true or false.", at="enable_kv_cache_reuse")
    name = "kv_cache_free_gpu_mem_fraction"
    if not executor.given("max_tokens_in_paged_kv_cache"):
        for what, fix in cache_memory(name, executor.given(name)):
            yield executor.finding("kv-fraction", "default", what, fix, at=name)
    if executor.given("gpt_model_type").lower() == "v1":
        what = "gpt_model_type V1 computes whole batches: no request joins one that runs"
        yield executor.finding("model-type", "default", what, "Use inflight_fused_batching.", at="gpt_model_type")
    if executor.given("enable_chunked_context") not in TRUE:
        what = "enable_chunked_context is off: a prompt longer than the engine's max_num_tokens is refused"
        yield executor.finding("chunked-context", "default", what, "Say true.", at="enable_chunked_context")


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
                yield executor.finding(
                    "tensor-missing", "answers", what, "Add it; docs/reference/contracts.md has its type."
                )
        for name, tensor in found.items():
            theirs = type_name(tensor.data_type)
            if name in known and not _fits(name, theirs, known[name].type):
                what = f"{side} {name} is {theirs}, the backend's is {known[name].type}"
                yield executor.finding("tensor-type", "answers", what, "Make them the same.", at=name)
            elif name not in known and name not in RENAMES:
                what = f"{side} {name} is not one of the backend's"
                yield executor.finding("tensor-unknown", "default", what, "Remove it.", at=name)


def _fits(name: str, given: str, wanted: str) -> bool:
    """The backend copies bytes, so that the sign of an integer does not matter (to_trt_datatype in utils.cc)."""
    if name in OF_ANY_FLOAT:
        return given in ("FP16", "FP32", "BF16")
    return given.removeprefix("U") == wanted.removeprefix("U")


def _renamed(repository: Repository) -> Iterator[Finding]:
    """Tensors by the names that they had before."""
    for model in repository.models.values():
        for tensor in model.config.input if model.config is not None else ():
            if tensor.name in RENAMES:
                new, since = RENAMES[tensor.name]
                what = f"input {tensor.name} is called {new} since {since}: what a request gives there is not used"
                fix = "Rename it, also in the ensemble."
                yield model.finding("renamed", "default", what, fix, at=tensor.name)


def _queue(executor: Model) -> Iterator[Finding]:
    config: Any = executor.config
    if not config.HasField("dynamic_batching"):
        what = "has no dynamic_batching: its queue policy is where the executor's longest queue comes from"
        fix = "Add dynamic_batching { default_queue_policy { max_queue_size: N } }."
        yield executor.finding("queue", "default", what, fix)
    elif not config.dynamic_batching.default_queue_policy.max_queue_size:
        what = "max_queue_size is 0: requests queue without end, and time out instead of being refused"
        yield executor.finding("queue", "default", what, "Set it: dynamic_batching.default_queue_policy.")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
