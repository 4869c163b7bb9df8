"""The rules between fields of a Deployment, and between its fields and the model.

They are checked when the YAML is read, because each of them otherwise shows itself as a failed
conversion, a failed build or a hang, an hour later and on the GPUs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.config.hosts import serving_problem
from toolkit.config.sections import LAST_PORT, PORTS_APART, Lengths, LoadWorkload, Workload
from toolkit.errors import ToolkitError, shown
from toolkit.files.distribution import PACKAGE
from toolkit.model.shape import ModelShape
from toolkit.releases.llm_api import llm_release_of
from toolkit.releases.release import release_of
from toolkit.secrecy import tells_a_secret

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

Broken = tuple[str, str, str]
"""A rule that does not hold: (field, what is wrong, what to do)."""
MOST_REQUESTS = 10**7
"""Of a load test: a week of 16 a second."""
MOST_USERS = 64_000
"""Each has a connection of its own, and a machine has 64,511 ports for connections to one server."""
LEAST_RATE, MOST_RATE = 1e-6, 1e6
"""Requests/s. The most is far more than the processes of a machine send."""


def check(deployment: Deployment) -> None:
    """Raise a ToolkitError for the first rule that does not hold."""
    version, where = deployment.engine_options.version, f"{deployment.file}: engine.version"
    if deployment.kind.vendor_build:
        release_of(version, where=where)
    elif not deployment.kind.engine_files:
        llm_release_of(version, where=where)
    kinds = (_parallel_rules, _precision_rules, _limit_rules, _workload_rules, _load_test_rules, _serving_rules)
    for rules in (_place_rules, *kinds, _runtime_rules):
        for field, what, hint in rules(deployment):
            raise ToolkitError(f"{field}: {what}", where=deployment.file, hint=hint)


def check_workload(workload: LoadWorkload, file: Path) -> None:
    """Raise a ToolkitError for the first rule that does not hold in a workload file."""
    for field, what, hint in chain(_load_rules(workload), _lengths_and_times(workload)):
        raise ToolkitError(f"{field}: {what}", where=file, hint=hint)


def check_can_be_made(deployment: Deployment) -> None:
    """Raise a ToolkitError for what can be planned and not made. FP8 needs scales that only calibration gives."""
    if not deployment.kind.engine_files:
        what = "engine: pytorch has nothing to convert: it loads the model itself"
        raise ToolkitError(what, where=deployment.file, hint=f"Go on with: toolkit repo {deployment.file}")
    for field, value in (
        ("model.quantization", deployment.model.quantization),
        ("kv_cache.dtype", deployment.kv_cache.dtype),
    ):
        if value == "fp8":
            hint = "Remove it, or bring a checkpoint quantised by NVIDIA's tools: toolkit build --checkpoint DIR."
            raise ToolkitError(f"{field}: fp8 can be planned, not converted", where=deployment.file, hint=hint)


def check_can_be_served(deployment: Deployment) -> None:
    """Raise a ToolkitError for what can be planned and not started, or has a chat template that the model has not."""
    if deployment.serving.mode == "orchestrator" and not deployment.kind.on_gpus:
        what = f"serving.mode: orchestrator is the tensorrtllm backend's, engine is {deployment.engine}"
        raise ToolkitError(what, where=deployment.file, hint="Remove it: leader is the default.")
    if deployment.model.chat_template is not None:
        from toolkit.model.chat_template import ChatTemplate

        ChatTemplate(deployment.model.path, deployment.model.chat_template)


def check_same_shape(found: ModelShape, stated: ModelShape, deployment: Deployment) -> None:
    """Raise a ToolkitError where the YAML's `model.config` contradicts the checkpoint."""
    for name in (field.name for field in fields(ModelShape) if field.name != "dtype"):
        if getattr(found, name) != getattr(stated, name):
            raise ToolkitError(
                f"model.config.{name}: {shown(getattr(stated, name))}, but the model in "
                f"{deployment.model.path} has {shown(getattr(found, name))}",
                where=deployment.file,
                hint="Correct model.config or remove it.",
            )


def context_length(shape: ModelShape) -> int:
    """Positions the model was made for. Only `linear` scaling stretches max_position_embeddings."""
    scaling = shape.rope_scaling or {}
    factor = scaling.get("factor", 1.0) if scaling.get("rope_type") == "linear" else 1.0
    return int(shape.max_position_embeddings * factor)


def tensor_parallel_degrees(shape: ModelShape, gpus: int) -> list[int]:
    """Every `tp` that the model can be split by, up to a number of GPUs."""
    heads, kv_heads, ffn = shape.num_attention_heads, shape.num_key_value_heads, shape.intermediate_size
    return [
        n
        for n in range(1, min(gpus, heads) + 1)
        if not heads % n and not ffn % n and not min(kv_heads % n, n % kv_heads)
    ]


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
            f"{pp} stages are more than the model's {layers} layers",
            f"Use at most {layers}.",
        )
    replicas = deployment.parallel.replicas
    if tp * pp * replicas > gpus:
        times = f" x replicas {replicas}" if replicas > 1 else ""
        yield (
            "parallel",
            f"tp {tp} x pp {pp}{times} needs {tp * pp * replicas} GPUs, hardware.gpus is {gpus}",
            "Lower one of them, or raise hardware.gpus.",
        )
    if replicas > deployment.limits.max_sequences:
        what = f"{replicas} are more than limits.max_sequences {deployment.limits.max_sequences}"
        yield "parallel.replicas", what, "Give each replica a sequence at least."


def _precision_rules(deployment: Deployment) -> Iterator[Broken]:
    if not deployment.kind.on_gpus:
        for field, value in (
            ("model.quantization", deployment.model.quantization),
            ("kv_cache.dtype", deployment.kv_cache.dtype),
        ):
            if value == "fp8":
                yield field, "fp8 cannot be rehearsed: a rehearsal computes in float32", "Plan with engine: tensorrt."


def _workload_rules(deployment: Deployment) -> Iterator[Broken]:
    for field, what, hint in _lengths_and_times(deployment.workload):
        yield f"workload.{field}", what, hint


def _lengths_and_times(workload: Workload) -> Iterator[Broken]:
    for name in ("prompt_tokens", "output_tokens"):
        given = getattr(workload, name)
        if isinstance(given, Lengths):
            if given.mean is None and given.max is None:
                yield name, "neither max nor mean is given", "Give {min, max}, or {mean, cv}, or one number."
            if given.max is not None and given.max < given.min:
                yield name, f"max {given.max} is less than min {given.min}", "Exchange them."
            elif given.mean is not None and given.mean < given.min:
                yield name, f"mean {given.mean} is less than min {given.min}", "It would not be the mean."
            elif given.mean is not None and given.mean > (given.max or math.inf):
                yield name, f"mean {given.mean} is more than max {given.max}", "It would not be the mean."
    for field, least in (("rate", LEAST_RATE), ("burstiness", 1e-3)):
        value = getattr(workload, field)
        if value is not None and value < least:
            yield field, f"{value} is too small", f"Use at least {least}."
    if workload.rate is not None and workload.rate > MOST_RATE:
        yield "rate", f"{workload.rate:g} requests/s are too many", f"Use at most {MOST_RATE:,.0f}."
    if workload.requests > MOST_REQUESTS:
        yield "requests", f"{shown(workload.requests)} are more than {MOST_REQUESTS:,}", "Use fewer."
    for field, its in (("users", "closed"), ("burstiness", "gamma")):
        if field in workload.model_fields_set and workload.arrivals != its:
            yield field, f"means nothing with arrivals: {workload.arrivals}", f"Remove it, or use arrivals: {its}."
    if workload.arrivals == "closed" and workload.rate is not None:
        yield "rate", "means nothing with arrivals: closed", "Remove it: users ask when their last answer has ended."
    if workload.arrivals == "trace" and workload.trace is None:
        yield "trace", "missing, with arrivals: trace", "Give the file to replay."
    for field in ("trace_form", "trace_block_tokens"):
        if field in workload.model_fields_set and workload.trace is None:
            yield field, "means nothing without trace", "Remove it, or give the file to replay."
    for field in ("prompt_tokens", "output_tokens", "shared_prefix_tokens"):
        if field in workload.model_fields_set and workload.trace is not None:
            yield field, "means nothing beside trace, which has the lengths of each request", "Remove one of them."


def _load_rules(workload: LoadWorkload) -> Iterator[Broken]:
    kind, given = workload.kind, workload.model_fields_set
    if workload.arrivals == "trace" and kind != "trace":
        yield "kind", f"{kind} with arrivals: trace", "A trace has times for its own requests only: use kind: trace."
    if kind == "trace" and workload.trace is None and workload.arrivals != "trace":
        yield "trace", "missing, with kind: trace", "Give the file to replay."
    if kind == "jsonl" and workload.prompts is None:
        yield "prompts", "missing, with kind: jsonl", "Give the JSONL file with your prompts."
    kinds = {
        "prompt_tokens": ("synthetic",),
        "shared_prefix_tokens": ("synthetic",),
        "output_tokens": ("synthetic", "chat", "jsonl"),
        "prompts": ("jsonl",),
        "trace": ("trace",),
        "trace_form": ("trace",),
        "trace_block_tokens": ("trace",),
        "turns": ("synthetic", "chat"),
        "think_s": ("synthetic", "chat"),
    }
    for field in (field for field, its in kinds.items() if field in given and kind not in its):
        yield field, f"means nothing with kind: {kind}", f"Remove it; it is for kind {', '.join(kinds[field])}."
    yield from _shape_rules(workload, given)
    if "think_s" in given and workload.turns == 1:
        yield "think_s", "means nothing without turns", "It is the pause between the turns of a conversation."


def _shape_rules(workload: LoadWorkload, given: set[str]) -> Iterator[Broken]:
    shapes = [field for field in ("stages", "ramp", "spike") if getattr(workload, field) is not None]
    if workload.stages == ():
        yield "stages", "is empty", "Give {rate, seconds} for each, or remove it."
    for shape in shapes[1:]:
        yield shape, f"is given beside {shapes[0]}", "Keep one; stages can say what the others say."
    for shape in shapes:
        if workload.arrivals in ("closed", "trace"):
            yield shape, f"has no rate to change with arrivals: {workload.arrivals}", "Use poisson, constant or gamma."
        for field in sorted(given & {"rate", "requests"}):
            yield field, f"{getattr(workload, field)} is given beside {shape}, which says it", "Remove one of them."


def _load_test_rules(deployment: Deployment) -> Iterator[Broken]:
    load = deployment.loadtest
    for field, value, most in (("users", load.users, MOST_USERS), ("requests", load.requests, MOST_REQUESTS)):
        if value > most:
            yield f"loadtest.{field}", f"{value:,} are more than {most:,}", "Use fewer."


def _limit_rules(deployment: Deployment) -> Iterator[Broken]:
    limits, block = deployment.limits, deployment.kv_cache.tokens_per_block
    context = context_length(deployment.shape)
    if limits.max_seq_len > context:
        what = f"{limits.max_seq_len} is more than the model's context length {context}"
        yield "limits.max_seq_len", what, f"Use at most {context}."
    if limits.max_num_tokens < deployment.max_batch_size:
        yield (
            "limits.max_num_tokens",
            f"{limits.max_num_tokens} is less than one token for each of a micro-batch's "
            f"{deployment.max_batch_size} sequences",
            f"Use at least {deployment.max_batch_size}.",
        )
    if not deployment.scheduler.chunked_context and limits.max_num_tokens < limits.max_seq_len - 1:
        what = f"{limits.max_num_tokens} is less than the longest prompt {limits.max_seq_len - 1}"
        yield "limits.max_num_tokens", what, "Set scheduler.chunked_context: true, or raise max_num_tokens."
    if deployment.scheduler.chunked_context and limits.max_num_tokens < block:
        what = f"{limits.max_num_tokens} is less than kv_cache.tokens_per_block {block}"
        yield "limits.max_num_tokens", what, "A chunk of a prompt is at least one block; raise it."
    if (deployment.kv_cache.max_tokens or math.inf) < limits.max_seq_len:
        what = f"{deployment.kv_cache.max_tokens} cannot hold one sequence of max_seq_len {limits.max_seq_len}"
        yield "kv_cache.max_tokens", what, f"Use at least {limits.max_seq_len}."


def _place_rules(deployment: Deployment) -> Iterator[Broken]:
    if deployment.output.is_relative_to(PACKAGE):
        hint = "Copy the examples and use the copy: toolkit sample configs build_configs"
        yield "output", f"{deployment.output} is inside the installed package", hint


def _serving_rules(deployment: Deployment) -> Iterator[Broken]:
    serving = deployment.serving
    if problem := serving_problem(serving.host):
        hint = "Use 127.0.0.1, 0.0.0.0, or an address of this machine."
        yield "serving.host", f"{shown(serving.host)} {problem}", hint
    ports = serving.ports()
    if len(set(ports.values())) < len(ports):
        given = ", ".join(f"{name} {port}" for name, port in ports.items())
        yield "serving", f"ports must differ, got {given}", "Give each its own."
    replicas = deployment.parallel.replicas
    those, last = f"ports of {replicas} replicas, {PORTS_APART} apart,", max(serving.ports(replicas - 1).values())
    if last > LAST_PORT:
        yield "serving", f"{those} go up to {last}", f"Give lower ones: the last is {LAST_PORT}."
    every = [port for replica in range(replicas) for port in serving.ports(replica).values()]
    if len(set(every)) < len(every):
        what = f"{those} must differ, got {', '.join(map(str, every))}"
        yield "serving", what, f"Give those of one replica less than {PORTS_APART} apart."
    lowest, highest = deployment.slo.gpu_utilisation or (0.0, 1.0)
    if lowest > highest:
        yield "slo.gpu_utilisation", f"[{lowest}, {highest}] is not [lowest, highest]", "Exchange them."


def _runtime_rules(deployment: Deployment) -> Iterator[Broken]:
    runtime = deployment.runtime
    if runtime.kind == "host" and runtime.options:
        yield "runtime.options", "kind host starts no container program", "Remove them, or choose another kind."
    if runtime.image_file is not None and runtime.kind == "docker":
        yield "runtime.image_file", "docker takes no file", "Give runtime.image, or use enroot or apptainer."
    for place, option in enumerate(runtime.options):
        if name := tells_a_secret(option):  # the option itself is not shown: it holds the secret
            what = f"number {place + 1} tells the value of {name}, which every user of the machine could read"
            by_name = f"APPTAINERENV_{name}" if runtime.kind == "apptainer" else f"{name}, and give --env {name} alone"
            yield "runtime.options", what, f"Export {by_name}."
