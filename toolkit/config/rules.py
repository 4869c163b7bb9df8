"""The rules between fields of a Deployment, and between its fields and the model.

They are checked when the YAML is read. Otherwise a broken rule shows an hour later, on the GPUs, as a failed
conversion, a failed build or a hang.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from toolkit.config.group_rules import group_rules
from toolkit.config.operating_rules import door_rules, monitoring_rules, serving_rules, tuning_rules
from toolkit.config.sections import Broken
from toolkit.config.workload import MOST_REQUESTS, lengths_and_times
from toolkit.errors import ToolkitError
from toolkit.files.distribution import PACKAGE
from toolkit.model.shape_rules import context_length, tensor_parallel_degrees
from toolkit.releases.llm_api import llm_release_of
from toolkit.releases.release import release_of
from toolkit.secrecy import tells_a_secret

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

MOST_USERS = 64_000
"""Each user has a connection, and a machine has 64,511 ports for connections to one server."""


def check(deployment: Deployment) -> None:
    """Raise a ToolkitError for the first broken rule."""
    version, where = deployment.engine_options.version, f"{deployment.file}: engine.version"
    if deployment.kind.vendor_build:
        release_of(version, where=where)
    elif not deployment.kind.engine_files:
        llm_release_of(version, where=where)
    for rules in RULES:
        for field, what, hint in rules(deployment):
            raise ToolkitError(f"{field}: {what}", where=deployment.file, hint=hint)


def _parallel_rules(deployment: Deployment) -> Iterator[Broken]:
    shape, gpus = deployment.shape, deployment.hardware.gpus
    tp, pp = deployment.parallel.tp, deployment.parallel.pp
    heads, kv_heads, ffn = shape.num_attention_heads, shape.num_key_value_heads, shape.intermediate_size
    choose = f"Use {', '.join(map(str, tensor_parallel_degrees(shape, gpus)))}."
    if heads % tp:
        yield "parallel.tp", f"{tp} does not divide num_attention_heads {heads} (model config.json)", choose
    if kv_heads % tp and tp % kv_heads:
        yield (
            "parallel.tp",
            f"{tp} neither divides num_key_value_heads {kv_heads} nor is a multiple of it",
            choose,
        )
    if ffn % tp:
        yield "parallel.tp", f"{tp} does not divide intermediate_size {ffn} (model config.json)", choose
    if pp > shape.num_hidden_layers:
        layers = shape.num_hidden_layers
        yield (
            "parallel.pp",
            f"{pp} is more than the model's {layers} layers",
            f"Use at most {layers}.",
        )
    replicas = deployment.parallel.replicas
    if tp * pp * replicas > deployment.all_gpus:
        times = f" x replicas {replicas}" if replicas > 1 else ""
        yield (
            "parallel",
            f"tp {tp} x pp {pp}{times} needs {tp * pp * replicas} GPUs, hardware.gpus is {gpus}",
            "Lower one of them, or raise hardware.gpus.",
        )
    if replicas > deployment.limits.max_sequences:
        what = f"{replicas} is more than limits.max_sequences {deployment.limits.max_sequences}"
        yield "parallel.replicas", what, "Each replica needs at least one sequence."


def _precision_rules(deployment: Deployment) -> Iterator[Broken]:
    if not deployment.kind.on_gpus:
        for field, value in (
            ("model.quantization", deployment.model.quantization),
            ("kv_cache.dtype", deployment.kv_cache.dtype),
        ):
            if value == "fp8":
                yield field, "fp8 cannot be rehearsed: a rehearsal computes in float32", "Plan with engine: tensorrt."


def _workload_rules(deployment: Deployment) -> Iterator[Broken]:
    for field, what, hint in lengths_and_times(deployment.workload):
        yield f"workload.{field}", what, hint


def _load_test_rules(deployment: Deployment) -> Iterator[Broken]:
    load = deployment.loadtest
    for field, value, most in (("users", load.users, MOST_USERS), ("requests", load.requests, MOST_REQUESTS)):
        if value > most:
            yield f"loadtest.{field}", f"{value:,} is more than {most:,}", f"Use at most {most:,}."


def _limit_rules(deployment: Deployment) -> Iterator[Broken]:
    limits, block = deployment.limits, deployment.kv_cache.tokens_per_block
    context = context_length(deployment.shape)
    if limits.max_seq_len > context:
        what = f"{limits.max_seq_len} is more than the model's context length {context}"
        yield "limits.max_seq_len", what, f"Use at most {context}."
    if limits.max_num_tokens < deployment.max_batch_size:
        yield (
            "limits.max_num_tokens",
            f"{limits.max_num_tokens} is less than one token for each of the "
            f"{deployment.max_batch_size} sequences in a micro-batch",
            f"Use at least {deployment.max_batch_size}.",
        )
    if not deployment.scheduler.chunked_context and limits.max_num_tokens < limits.max_seq_len - 1:
        what = f"{limits.max_num_tokens} is less than the longest prompt {limits.max_seq_len - 1}"
        yield "limits.max_num_tokens", what, "Set scheduler.chunked_context: true, or raise max_num_tokens."
    if deployment.scheduler.chunked_context and limits.max_num_tokens < block:
        what = f"{limits.max_num_tokens} is less than kv_cache.tokens_per_block {block}"
        yield "limits.max_num_tokens", what, f"Use at least {block}: a chunk of a prompt is one block or more."
    if (deployment.kv_cache.max_tokens or math.inf) < limits.max_seq_len:
        what = f"{deployment.kv_cache.max_tokens} cannot hold one sequence of limits.max_seq_len {limits.max_seq_len}"
        yield "kv_cache.max_tokens", what, f"Use at least {limits.max_seq_len}."


def _output_rules(deployment: Deployment) -> Iterator[Broken]:
    if deployment.output.is_relative_to(PACKAGE):
        hint = "Copy the examples, and use the copy: toolkit sample configs build_configs"
        yield "output", f"{deployment.output} is inside the installed package", hint


def _slo_rules(deployment: Deployment) -> Iterator[Broken]:
    lowest, highest = deployment.slo.gpu_utilisation or (0.0, 1.0)
    if lowest > highest:
        yield "slo.gpu_utilisation", f"[{lowest}, {highest}] is not [lowest, highest]", "Exchange them."


def _runtime_rules(deployment: Deployment) -> Iterator[Broken]:
    runtime = deployment.runtime
    if runtime.kind == "host" and runtime.options:
        yield "runtime.options", "kind host starts no container", "Remove them, or choose another kind."
    if runtime.image_file is not None and runtime.kind == "docker":
        yield "runtime.image_file", "docker runs no image file", "Give runtime.image, or use enroot or apptainer."
    for number, option in enumerate(runtime.options, 1):
        if name := tells_a_secret(option):  # the message must not quote the option: it holds the secret
            what = f"option {number} holds the value of {name}, which every user of the machine could read"
            variable = f"APPTAINERENV_{name}" if runtime.kind == "apptainer" else f"{name}, and give --env {name} alone"
            yield "runtime.options", what, f"Export {variable}."


def _node_rules(deployment: Deployment) -> Iterator[Broken]:
    if deployment.parallel.nodes > 1:
        yield from group_rules(deployment)
        return
    for name in type(deployment.cluster).model_fields:
        if getattr(deployment.cluster, name):
            what = "is for a group over several nodes, and parallel.nodes is 1"
            yield f"cluster.{name}", what, "Set parallel.nodes, or remove it."


RULES = (
    _output_rules,
    _node_rules,
    _parallel_rules,
    _precision_rules,
    _limit_rules,
    _workload_rules,
    _load_test_rules,
    serving_rules,
    _slo_rules,
    _runtime_rules,
    door_rules,
    monitoring_rules,
    tuning_rules,
)
"""In the order in which they are checked."""
