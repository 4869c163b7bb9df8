"""Rules for the model that generates: its parameters, tensors and queue, for a release of the backend.

Sources: model_instance_state.cc for how the backend reads a value, trtGptModelInflightBatching.cpp for what the
executor then does.
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
"""Tensors with the data type of the model."""
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
    """Values with which the backend does not start, because of another value."""
    if executor.given("cross_kv_cache_fraction") and not executor.given("encoder_model_path"):
        what = "cross_kv_cache_fraction is set, but the executor refuses it for a model without an encoder"
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
        fix = "Write it, or run lint where the file is."
        yield executor.finding("parameter-value", "start", what, fix, at="xgrammar_tokenizer_info_path")


def _surprises(executor: Model) -> Iterator[Finding]:
    """Values that are allowed and have an effect that few expect."""
    if not executor.given("enable_kv_cache_reuse"):
        what = "enable_kv_cache_reuse is not set, so the backend reuses KV blocks"
        yield executor.finding("kv-reuse-unset", "default", what, "Set true or false.", at="enable_kv_cache_reuse")
    name = "kv_cache_free_gpu_mem_fraction"
    if not executor.given("max_tokens_in_paged_kv_cache"):
        for what, fix in cache_memory(name, executor.given(name)):
            yield executor.finding("kv-fraction", "default", what, fix, at=name)
    if executor.given("gpt_model_type").lower() == "v1":
        what = "gpt_model_type V1 computes whole batches: no request joins a running batch"
        yield executor.finding("model-type", "default", what, "Use inflight_fused_batching.", at="gpt_model_type")
    if executor.given("enable_chunked_context") not in TRUE:
        what = "enable_chunked_context is off: a prompt longer than the engine's max_num_tokens is refused"
        yield executor.finding("chunked-context", "default", what, "Set it to true.", at="enable_chunked_context")


def cache_memory(name: str, fraction: str) -> Iterator[tuple[str, str]]:
    """What is wrong with a KV cache that takes this fraction of the free memory, and what to do."""
    if not fraction:
        what = f"{name} is not set: the KV cache takes 0.9 of the free memory"
        yield what, f"Set a value that stays under {MEMORY_LIMIT:.0%} of the GPU: toolkit plan CONFIG computes it."
    elif _number(fraction) > MEMORY_LIMIT:
        what = f"{name} {fraction} leaves less than {1 - MEMORY_LIMIT:.0%} of a GPU free"
        yield what, "Lower it: toolkit plan CONFIG computes the largest value that leaves so much."


def _tensors(executor: Model, release: Release) -> Iterator[Finding]:
    config: Any = executor.config
    for signature, tensors, side in (
        (signatures.TENSORRT_LLM_INPUTS, config.input, "input"),
        (signatures.TENSORRT_LLM_OUTPUTS, config.output, "output"),
    ):
        known = {tensor.name: tensor for tensor in signatures.of_release(signature, release.name)}
        present = {tensor.name: tensor for tensor in tensors}
        for name, tensor in known.items():
            if tensor.required and name not in present:
                what = f"{side} {name} is missing"
                yield executor.finding(
                    "tensor-missing", "answers", what, "Add it; docs/reference/contracts.md has its type."
                )
        for name, tensor in present.items():
            theirs = type_name(tensor.data_type)
            if name in known and not _fits(name, theirs, known[name].type):
                what = f"{side} {name} is {theirs}, but the backend's is {known[name].type}"
                yield executor.finding("tensor-type", "answers", what, "Make them the same.", at=name)
            elif name not in known and name not in RENAMES:
                what = f"{side} {name} is not one of the backend's"
                yield executor.finding("tensor-unknown", "default", what, "Remove it.", at=name)


def _fits(name: str, given: str, wanted: str) -> bool:
    """Whether the types agree. The backend copies bytes, so signed and unsigned are the same (to_trt_datatype in
    utils.cc)."""
    if name in OF_ANY_FLOAT:
        return given in ("FP16", "FP32", "BF16")
    return given.removeprefix("U") == wanted.removeprefix("U")


def _renamed(repository: Repository) -> Iterator[Finding]:
    """Tensors that still have a name of an older release."""
    for model in repository.models.values():
        for tensor in model.config.input if model.config is not None else ():
            if tensor.name in RENAMES:
                new, since = RENAMES[tensor.name]
                what = (
                    f"input {tensor.name} is called {new} since {since}: a value that a request gives for it is ignored"
                )
                fix = "Rename it, in the ensemble too."
                yield model.finding("renamed", "default", what, fix, at=tensor.name)


def _queue(executor: Model) -> Iterator[Finding]:
    config: Any = executor.config
    if not config.HasField("dynamic_batching"):
        what = "has no dynamic_batching, whose queue policy sets the longest queue of the executor"
        fix = "Add dynamic_batching { default_queue_policy { max_queue_size: N } }."
        yield executor.finding("queue", "default", what, fix)
    elif not config.dynamic_batching.default_queue_policy.max_queue_size:
        what = "max_queue_size is 0: the queue has no limit, and requests time out instead of being refused"
        yield executor.finding("queue", "default", what, "Set it: dynamic_batching.default_queue_policy.")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
