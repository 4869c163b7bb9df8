"""The arguments of TensorRT-LLM's LLM API for a deployment, each with the source of its value.

With engine: pytorch these replace the engine: the model is loaded as it is, with these limits. The same list becomes
the model.yaml of the Triton model and the options file of trtllm-serve.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from toolkit.config.sourced_value import EXTRA, SourcedValue, suggestion, with_extra
from toolkit.errors import ToolkitError
from toolkit.releases.llm_api import llm_arguments, llm_release_of
from toolkit.repository.parameters import kv_cache_fraction, kv_cache_tokens

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

Value = str | int | float | bool


Argument = SourcedValue[Value]
"""A name with a dot is a key of a section."""


def llm_args(deployment: Deployment) -> list[Argument]:
    """All arguments, in the order in which they are written.

    Raises ToolkitError for a wrong `engine.extra`, and for a KV cache that does not hold one sequence.
    """

    def read(name: str, value: Value) -> Value:
        return _extra(deployment, name, value)

    return with_extra(deployment, (*_fixed(deployment), *_chosen(deployment)), read)


def check_llm_args(deployment: Deployment) -> None:
    """Raise a ToolkitError for a wrong `engine.extra`, or for a setting that the release has no argument for."""
    release, block = llm_release_of(deployment.engine_options.version), deployment.kv_cache.tokens_per_block
    if block != 32 and "kv_cache_config.tokens_per_block" not in llm_arguments(release):
        what = f"kv_cache.tokens_per_block: {block} cannot be chosen in TensorRT-LLM {release} with engine: pytorch"
        raise ToolkitError(what, where=deployment.file, hint="Use 32, or a newer engine.version.")
    llm_args(deployment)


def as_yaml(arguments: Iterable[Argument]) -> str:
    """The arguments as YAML, each with a comment."""
    lines: list[str] = []
    section = ""
    for argument in sorted(arguments, key=lambda argument: "." in argument.name):
        above, _, key = argument.name.rpartition(".")
        if above != section:
            lines.append(f"{above}:")
            section = above
        # JSON's numbers, texts and booleans are YAML's, and a text in its quotes is never taken for anything else.
        lines.append(f"{'  ' if above else ''}{key}: {json.dumps(argument.value)}  # {argument.source}")
    return "\n".join(lines) + "\n"


def _fixed(deployment: Deployment) -> Iterator[Argument]:
    limits, parallel, cache = deployment.limits, deployment.parallel, deployment.kv_cache
    yield Argument("model", str(deployment.model.path), "model.path", fixed=True)
    yield Argument("backend", "pytorch", "engine: pytorch", fixed=True)
    yield Argument("trust_remote_code", False, "no code of a model is run", fixed=True)
    yield Argument("dtype", deployment.model.dtype, "model.dtype", fixed=True)
    yield Argument("tensor_parallel_size", parallel.tp, "parallel.tp", fixed=True)
    yield Argument("pipeline_parallel_size", parallel.pp, "parallel.pp", fixed=True)
    shared = f" / (pp {parallel.pp} x replicas {parallel.replicas})" if parallel.pp * parallel.replicas > 1 else ""
    batch = f"limits.max_sequences {limits.max_sequences}{shared}: of one micro-batch"
    yield Argument("max_batch_size", deployment.max_batch_size, batch, fixed=True)
    yield Argument("max_num_tokens", limits.max_num_tokens, "limits.max_num_tokens", fixed=True)
    yield Argument("max_seq_len", limits.max_seq_len, "limits.max_seq_len", fixed=True)
    yield Argument("max_beam_width", 1, "in-flight batching here samples, it has no beams", fixed=True)
    chunked = deployment.scheduler.chunked_context
    yield Argument("enable_chunked_prefill", chunked, "scheduler.chunked_context", fixed=True)
    yield Argument("kv_cache_config.enable_block_reuse", cache.reuse, "kv_cache.reuse", fixed=True)
    limit = f"hardware.gpu_memory_limit {deployment.hardware.gpu_memory_limit:g}"
    yield Argument("kv_cache_config.max_tokens", kv_cache_tokens(deployment), limit, fixed=True)
    given = "kv_cache.free_gpu_memory_fraction" if cache.free_gpu_memory_fraction else limit
    fraction = kv_cache_fraction(deployment)
    yield Argument("kv_cache_config.free_gpu_memory_fraction", fraction, given, fixed=True)
    if "kv_cache_config.tokens_per_block" in llm_arguments(llm_release_of(deployment.engine_options.version)):
        block = cache.tokens_per_block
        yield Argument("kv_cache_config.tokens_per_block", block, "kv_cache.tokens_per_block", fixed=True)
    policy = deployment.scheduler.policy.upper()
    yield Argument("scheduler_config.capacity_scheduler_policy", policy, "scheduler.policy", fixed=True)


def _chosen(deployment: Deployment) -> Iterator[Argument]:
    """Arguments that do not follow from the YAML: good defaults of ours."""
    graphs = "a decoding step of any batch size replays a CUDA graph: hundreds of launches less"
    yield Argument("cuda_graph_config.enable_padding", True, graphs)
    yield Argument("cuda_graph_config.max_batch_size", deployment.max_batch_size, "the same")
    yield Argument("enable_iter_perf_stats", True, "the metrics nv_trt_llm_* are read from them")


def _extra(deployment: Deployment, name: str, value: Value) -> Value:
    """A value of `engine.extra`. Raises ToolkitError for one that the LLM API refuses."""
    release = llm_release_of(deployment.engine_options.version)
    known, field = llm_arguments(release), f"{EXTRA}.{name}"
    if name not in known:
        hint = suggestion(name, known, "docs/how-to/pytorch.md lists them.")
        what = f"{field}: unknown argument of the LLM API in TensorRT-LLM {release}"
        raise ToolkitError(what, where=deployment.file, hint=hint)
    if problem := known[name].problem(value):
        raise ToolkitError(f"{field}: {problem}", where=deployment.file)
    return value
