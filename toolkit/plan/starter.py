"""Writes a first YAML for a model. Everything has a stated default; layout and batch limits are those that `--compare`
ranks first."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from toolkit.config.deployment import Deployment
from toolkit.config.engine_kind import TENSORRT
from toolkit.config.load import changed, load_deployment
from toolkit.errors import ToolkitError, printable, shown
from toolkit.files.atomic import atomic_file
from toolkit.files.yaml_file import parse_yaml
from toolkit.model.shape import ModelShape, load_shape
from toolkit.model.shape_rules import context_length
from toolkit.plan.layouts import Comparison, any_fits, compare, nodes_that_hold
from toolkit.plan.show import wording
from toolkit.plan.show.reasons import reason
from toolkit.plan.tuning import Ceiling, Objective
from toolkit.sizing.gpus import gpu_named
from toolkit.workload.presets import PRESETS

Progress = Callable[[int, int], None]
MAX_SEQ_LEN = 8192
REQUESTS = 500
"""Requests of the workload: enough for a P99, in half the time that the default takes."""
MAX_NUM_TOKENS = 8192
MAX_SEQUENCES = 512
"""The most sequences in flight over all replicas, where the user gives no number."""
Quantization = Literal["none", "fp8"]
SLO: dict[str, Any] = {
    "ttft_ms": {"p99": 1500},
    "tpot_ms": {"p50": 50, "p99": 100},
    "prefill_ms": {"p50": 500, "p99": 1000},
    "requests_per_s": 8,
    "compliance": 0.99,
}


@dataclass(frozen=True)
class Wanted:
    """The options of `toolkit init`."""

    model: Path
    output: Path | None = None
    gpus: int = 8
    hardware: str = "h100-sxm"
    workload: str = "chat-1k"
    rate: float | None = None
    quantization: Quantization | None = None
    """None: no quantization, or FP8 where the model fits only in FP8."""
    max_sequences: int | None = None
    """The most sequences in flight over all replicas."""
    max_seq_len: int | None = None
    slo: tuple[str, ...] = ()
    """NAME=VALUE, as in ttft_ms.p99=1500."""
    objective: Objective = "slo"


@dataclass(frozen=True)
class Started:
    """The YAML that was written, and the comparison that chose its layout."""

    file: Path
    comparison: Comparison

    @property
    def why(self) -> str:
        """One line: the batch limits, why this layout was chosen, and what the second-best layout would serve."""
        best, following = self.comparison.best, self.comparison.layouts[1:2]
        layouts = [layout for layout in (best, *following) if layout.prediction]
        rates = [(layout.name, layout.prediction.capacity.highest) for layout in layouts if layout.prediction]
        served = ", ".join(f"{name} {wording.rate(rate)}" for name, rate in rates)
        limits, fp8 = best.deployment.limits, best.deployment.model.quantization == "fp8"
        chosen = f"max_sequences {limits.max_sequences}, max_num_tokens {limits.max_num_tokens}{', FP8' * fp8}"
        return f"{chosen}: {reason(best, self.comparison)}; requests/s in time: {served}"


def start(wanted: Wanted, force: bool = False, progress: Progress | None = None) -> Started:
    """Write the YAML. Returns it with the comparison of the layouts. Raises ToolkitError, and then writes nothing."""
    shape = load_shape(wanted.model)
    file = wanted.output or Path(f"{wanted.model.resolve().name.lower()}-{wanted.hardware}.yaml")
    content = _content(wanted, shape, re.sub(r"[^A-Za-z0-9._-]+|^[^A-Za-z0-9]+", "-", file.stem).strip("-") or "model")
    if file.exists() and not force:
        raise ToolkitError("exists already", where=file, hint="Give another --output, or --force to replace it.")
    with atomic_file(file) as partial:
        draft = _loaded(partial, content, wanted)
        if wanted.quantization is None and gpu_named(wanted.hardware).flops_fp8 and not any_fits(draft):
            content["model"]["quantization"] = "fp8"
            draft = _loaded(partial, content, wanted)
        if wanted.quantization == "none" and (wider := nodes_that_hold(draft)):
            content["parallel"] = _of(wider)
            draft = _loaded(partial, content, wanted)
        ceiling = Ceiling(draft.limits.max_num_tokens, wanted.max_sequences or MAX_SEQUENCES, 0)
        comparison = compare(draft, wanted.objective, progress, ceiling=ceiling)
        if comparison.best.prediction is None:
            raise ToolkitError(_nothing_fits(comparison, wanted), hint="Use more or larger GPUs.")
        best = comparison.best.deployment
        content["parallel"] = _parallel(comparison)
        content["limits"] |= {name: getattr(best.limits, name) for name in ("max_sequences", "max_num_tokens")}
        _loaded(partial, content, wanted, comparison)
    return Started(file, comparison)


def _content(wanted: Wanted, shape: ModelShape, name: str) -> dict[str, Any]:
    gpu, context = gpu_named(wanted.hardware), context_length(shape)
    longest = wanted.max_seq_len or min(MAX_SEQ_LEN, context)
    if longest > context:
        what = f"--max-seq-len: {longest} is more than the model's context length {context}"
        raise ToolkitError(what, hint=f"Use at most {context}.")
    if wanted.quantization == "fp8" and gpu.flops_fp8 is None:
        what = f"--quantization: {gpu.name} has no FP8 tensor cores"
        raise ToolkitError(what, hint="Use none, or another GPU.")
    if wanted.workload not in PRESETS:
        raise ToolkitError(f"--workload: {shown(wanted.workload)} is unknown", hint=f"Use {', '.join(PRESETS)}.")
    preset = PRESETS[wanted.workload]
    if preset.prompt_tokens + preset.output_tokens > longest:
        fitting = [name for name, p in PRESETS.items() if p.prompt_tokens + p.output_tokens <= longest]
        whose = "--max-seq-len" if wanted.max_seq_len else "the model's"
        what = f"--workload: {wanted.workload} is longer than {whose} {longest} tokens"
        raise ToolkitError(what, hint=f"Use {', '.join(fitting)}." if fitting else None)
    slo = changed(SLO, dict(_slo(wanted.slo)))
    return {
        "name": name,
        "engine": TENSORRT.name,
        "model": {
            "path": str(wanted.model.resolve()),
            "dtype": shape.dtype if shape.dtype in ("float16", "bfloat16") else "float16",
            **({"quantization": "fp8"} if wanted.quantization == "fp8" else {}),
        },
        "parallel": {"tp": 1, "pp": 1},
        "limits": {
            "max_sequences": 64,  # both are chosen with the layout
            "max_num_tokens": min(MAX_NUM_TOKENS, longest),
            "max_seq_len": longest,
            "max_queue_size": 256,
        },
        "kv_cache": {"tokens_per_block": 32, "reuse": True},
        "scheduler": {"policy": "guaranteed_no_evict", "chunked_context": True},
        "hardware": {
            "gpu": gpu.name,
            "gpus": wanted.gpus,
            "gpu_memory_gib": gpu.memory_gib,
            "gpu_memory_limit": 0.85,
            "host_memory_gb": 256,
        },
        "workload": {
            "arrivals": "poisson",
            "rate": wanted.rate or slo["requests_per_s"],
            "prompt_tokens": preset.prompt_tokens,
            "output_tokens": preset.output_tokens,
            "requests": REQUESTS,
        },
        "slo": slo,
        "loadtest": {"users": 64, "requests": 1000, "warmup_requests": 64, "max_tokens": preset.output_tokens},
    }


def _slo(settings: Iterable[str]) -> Iterable[tuple[str, Any]]:
    for setting in settings:
        name, equals, text = setting.partition("=")
        try:
            value = parse_yaml(text)
        except ValueError:
            equals = ""
        if not equals:
            hint = "Give NAME=VALUE, as in ttft_ms.p99=1500 or requests_per_s=8."
            raise ToolkitError(f"--slo: {shown(setting)} is not a target", hint=hint)
        yield name, value


def _parallel(comparison: Comparison) -> dict[str, int]:
    return _of(comparison.best.deployment)


def _of(deployment: Deployment) -> dict[str, int]:
    """`parallel` without what has its default, but for tp and pp."""
    parallel = deployment.parallel.model_dump()
    return {name: value for name, value in parallel.items() if name in ("tp", "pp") or value > 1}


def _loaded(file: Path, content: dict[str, Any], wanted: Wanted, comparison: Comparison | None = None) -> Deployment:
    """Write the content with comments to the file, and read it as every command reads it."""
    file.write_text(_text(content, wanted, comparison), encoding="utf-8")
    try:
        return load_deployment(file)
    except ToolkitError as error:  # without the name of a file that the user never sees
        raise ToolkitError(error.what, hint=error.hint) from None


BRING = "Build it from a checkpoint that NVIDIA's tools quantised: toolkit build --checkpoint DIR"
COMMENTS = {
    "name": "the name of reports and folders",
    "engine": "tensorrt needs GPUs; to rehearse this file without one: toolkit COMMAND FILE --engine rehearsal",
    "model": "the checkpoint, and the precision of weights and KV cache",
    "parallel": "tp GPUs share each layer, pp stages share the layers; replicas share the requests",
    "limits": "sequences in flight over all micro-batches; tokens a step; tokens a sequence; waiting requests",
    "kv_cache": "paged; prompts that begin alike share blocks",
    "scheduler": "a running sequence is never paused; long prompts are cut to fit a step",
    "hardware": "memory as the driver shows it; the limit is the share of it that may be used",
    "workload": "the traffic for the plan: open loop, requests/s, tokens per request",
    "slo": "targets for the load test: milliseconds by percentile, requests/s, share of requests inside all limits",
    "loadtest": "the requests that `toolkit loadtest` sends",
}


def _text(content: dict[str, Any], wanted: Wanted, comparison: Comparison | None) -> str:
    head = [f"# Made by: toolkit init {printable(str(wanted.model))}"]
    if comparison:
        best = comparison.best
        verdict = "" if best.meets_slo else " (and misses it)"
        nodes = best.deployment.parallel.nodes
        machine = f"{nodes} nodes of {wanted.gpus}" if nodes > 1 else f"{wanted.gpus}"
        place = f"{len(comparison.layouts)} layouts on {machine} {wanted.hardware}"
        head.append(f"# Of {place}, {best.name} serves {wanted.workload} best under this SLO{verdict}: a prediction.")
        if content["model"].get("quantization") == "fp8" and wanted.quantization is None:
            head.append(f"# In FP8, because no layout fits in 16 bits. {BRING}")
            head.append("# In 16 bits it may fit on more nodes: toolkit init --quantization none")
        if nodes > 1:
            head.append(f"# No layout fits on one node: {nodes} nodes share a group. Add cluster.hosts to serve it.")
    parts = ["\n".join(head)]
    for name, value in content.items():
        if isinstance(value, dict):
            body = "\n".join([f"{name}:", *(f"  {key}: {_inline(part)}" for key, part in value.items())])
        else:
            body = f"{name}: {_inline(value)}"
        parts.append(f"# {COMMENTS[name]}\n{body}")
    return "\n\n".join(parts) + "\n"


def _inline(value: Any) -> str:
    """A value as YAML on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("...\n").strip()


def _nothing_fits(comparison: Comparison, wanted: Wanted) -> str:
    would = [f"{layout.name} with {layout.remedy}" for layout in comparison.layouts if layout.remedy]
    nearest = f"; {would[0]} would fit" if would else ""
    return f"{wanted.model}: no layout fits on {wanted.gpus} {wanted.hardware}{nearest}"
