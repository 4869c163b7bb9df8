"""The flags of `trtllm-build`, each with where its value comes from.

A flag that follows from the YAML cannot be given again under `engine.extra`: the repository and the plan follow from
the same fields, and would not know. A flag that we choose can be changed there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.config.sourced_value import EXTRA, suggestion, with_extra
from toolkit.engine.build_plan import BuildFlag
from toolkit.engine.tensorrt.work import work_dir
from toolkit.errors import ToolkitError, shown

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

TOGGLE = {True: "enable", False: "disable"}
"""How a plugin flag spells true and false of YAML."""


def derive(deployment: Deployment, given: Path | None = None) -> list[BuildFlag]:
    """All flags, in the order in which they are given, with one worker unless the YAML says how many.

    `given` is a checkpoint of another tool, which takes the place of ours.
    Raises ToolkitError for an `engine.extra` that trtllm-build would refuse, or that contradicts the YAML.
    """

    def read(name: str, value: Any) -> str | None:
        return _extra(deployment, name, value)

    fixed = _fixed(deployment, given or deployment.checkpoint_dir)
    flags = with_extra(deployment, (*fixed, *_chosen(deployment)), read)
    for what, hint in _contradictions(deployment, {flag.name: flag.value for flag in flags}):
        raise ToolkitError(what, where=deployment.file, hint=hint)
    return flags


def changed(flags: list[BuildFlag], **values: str) -> list[BuildFlag]:
    """The same flags, some with another value."""
    return [replace(flag, value=values.get(flag.name, flag.value)) for flag in flags]


def arguments(flags: list[BuildFlag]) -> list[str]:
    """The flags as trtllm-build takes them."""
    return [part for flag in flags for part in (f"--{flag.name}", flag.value) if part is not None]


def _fixed(deployment: Deployment, checkpoint: Path) -> Iterator[BuildFlag]:
    limits, parallel = deployment.limits, deployment.parallel
    divisors = {"pp": parallel.pp, "replicas": parallel.replicas}
    shares = [f"{name} {number}" for name, number in divisors.items() if number > 1]
    batch = f"limits.max_sequences {limits.max_sequences}"
    if shares:
        batch += f" / ({' x '.join(shares)}): the executor keeps one micro-batch a stage in flight"
    yield BuildFlag("checkpoint_dir", str(checkpoint), "toolkit convert", fixed=True)
    yield BuildFlag("output_dir", str(work_dir(deployment)), "output", fixed=True)
    yield BuildFlag("max_batch_size", str(deployment.max_batch_size), batch, fixed=True)
    yield BuildFlag("max_num_tokens", str(limits.max_num_tokens), "limits.max_num_tokens", fixed=True)
    yield BuildFlag("max_seq_len", str(limits.max_seq_len), "limits.max_seq_len", fixed=True)
    yield BuildFlag("max_beam_width", "1", "in-flight batching here samples, it has no beams", fixed=True)
    yield BuildFlag("kv_cache_type", "paged", "in-flight batching needs it", fixed=True)
    yield BuildFlag("remove_input_padding", "enable", "in-flight batching needs it", fixed=True)
    block = str(deployment.kv_cache.tokens_per_block)
    yield BuildFlag("tokens_per_block", block, "kv_cache.tokens_per_block", fixed=True)
    users = {
        "kv_cache.reuse": deployment.kv_cache.reuse,
        "scheduler.chunked_context": deployment.scheduler.chunked_context,
    }
    needing = [field for field, needs in users.items() if needs]
    why = f"{' and '.join(needing)} {'need' if len(needing) > 1 else 'needs'} it" if needing else "the default"
    yield BuildFlag("use_paged_context_fmha", "enable", why, fixed=bool(needing))
    workers = str(deployment.engine_options.workers or 1)
    yield BuildFlag("workers", workers, "GPUs, and host memory for each rank; engine.workers", fixed=True)
    # Kernels' times hold for one release and one kind of GPU.
    cache = str(deployment.output / f"timing-{deployment.engine_options.version}-{deployment.hardware.gpu}.cache")
    yield BuildFlag("input_timing_cache", cache, "kept from build to build, in output", fixed=True)
    yield BuildFlag("output_timing_cache", cache, "the same", fixed=True)


def _chosen(deployment: Deployment) -> Iterator[BuildFlag]:
    """Flags that we choose. Source: the performance tuning guide of TensorRT-LLM, Llama-3.3-70B on H100."""
    yield BuildFlag("gpt_attention_plugin", "auto", "in-flight batching needs it; model.dtype")
    yield BuildFlag("gemm_plugin", "auto", "model.dtype; +9 % tokens/s in NVIDIA's tuning guide")
    yield BuildFlag("context_fmha", "enable", "the default")
    yield BuildFlag("multiple_profiles", "enable", "+19 % tokens/s in NVIDIA's tuning guide")
    if deployment.mapping.world_size > 1:
        yield BuildFlag("nccl_plugin", "auto", f"{deployment.mapping.world_size} ranks talk by NCCL")
    yield BuildFlag("log_level", "info", "progress is read from the log")


def _extra(deployment: Deployment, name: str, value: Any) -> str | None:
    """A value of `engine.extra` as trtllm-build takes it. Raises ToolkitError for one that it refuses."""

    def wrong(what: str, hint: str | None = None) -> ToolkitError:
        return ToolkitError(f"{EXTRA}.{name}: {what}", where=deployment.file, hint=hint)

    release = deployment.release
    flag = release.build_flags.get(name)
    if name in release.removed_flags or flag is None:
        similar = suggestion(name, release.build_flags, "docs/reference/contracts.md lists its flags.")
        hint = release.removed_flags.get(name, similar)
        raise wrong(f"unknown flag of trtllm-build in TensorRT-LLM {release.name}", hint)
    if flag.kind == "switch":
        if value is not True:
            raise wrong(f"takes no value, got {shown(value)}", "Write true, or leave it out.")
        return None
    text = TOGGLE[value] if isinstance(value, bool) else str(value)
    if problem := flag.problem(text):
        raise wrong(problem)
    return text


def _contradictions(deployment: Deployment, values: Mapping[str, str | None]) -> Iterator[tuple[str, str]]:
    """(what, fix) for combinations that trtllm-build refuses only after loading the model, or the runtime later."""
    if "opt_num_tokens" in values and values["multiple_profiles"] == "enable":
        yield "engine.extra.opt_num_tokens: cannot go with multiple_profiles", "Set multiple_profiles: disable too."
    if values.get("reduce_fusion") == "enable" and deployment.parallel.tp == 1:
        yield "engine.extra.reduce_fusion: fuses all-reduces, and tp 1 has none", "Remove it."
    if values.get("user_buffer") == "enable" and values.get("reduce_fusion") != "enable":
        yield "engine.extra.user_buffer: works only with reduce_fusion", "Set reduce_fusion: enable too."
    if values.get("nccl_plugin") == "disable" and deployment.mapping.world_size > 1:
        yield "engine.extra.nccl_plugin: disable leaves the ranks without messages", "Remove it."
    if values["gpt_attention_plugin"] == "disable":
        yield "engine.extra.gpt_attention_plugin: in-flight batching needs it", "Remove it."
    if values["context_fmha"] == "disable" and values["use_paged_context_fmha"] == "enable":
        yield "engine.extra.context_fmha: paged context attention needs it", "Remove it."
