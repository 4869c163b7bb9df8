"""The flags of `trtllm-build`, each with where its value comes from.

Flags that follow from the YAML cannot be given again under `engine.extra`: the repository and the plan are derived
from the same fields, and would not know. Those that are choices of ours can be overridden there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import ToolkitError, shown
from toolkit.releases.release import Release

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

TOGGLE = {True: "enable", False: "disable"}
"""How YAML's own true and false are said to a plugin flag."""


@dataclass(frozen=True)
class BuildFlag:
    """`value` is None for a flag that takes none. `source` says in words why it has this value."""

    name: str
    value: str | None
    source: str
    fixed: bool = False
    """Whether it follows from the YAML, so that `engine.extra` may not say otherwise."""

    def __str__(self) -> str:
        return f"--{self.name}" if self.value is None else f"--{self.name} {self.value}"


@dataclass(frozen=True)
class Places:
    """Where a build reads and writes."""

    checkpoint: Path
    output: Path
    timing_cache: Path


def derive(deployment: Deployment, release: Release, places: Places, workers: int) -> list[BuildFlag]:
    """All flags, in the order in which they are given. Raises ToolkitError for an `engine.extra` that cannot be."""
    derived = {flag.name: flag for flag in (*_fixed(deployment, places, workers), *_chosen(deployment))}
    for name, value in deployment.engine_options.extra.items():
        derived[name] = _extra(deployment, release, name, value, derived.get(name))
    for rule in _contradictions(deployment, {flag.name: flag.value for flag in derived.values()}):
        raise ToolkitError(rule[0], where=deployment.file, hint=rule[1])
    return list(derived.values())


def arguments(flags: list[BuildFlag]) -> list[str]:
    """As the program takes them."""
    return [part for flag in flags for part in (f"--{flag.name}", flag.value) if part is not None]


def sources(flags: list[BuildFlag]) -> list[str]:
    """A line for each flag: its value, where that is short, and where it comes from."""
    short = {flag.name: "" if flag.value is None or "/" in flag.value else flag.value for flag in flags}
    names, values = max(map(len, short)), max(map(len, short.values()))
    return [f"{flag.name:{names}}  {short[flag.name]:{values}}  {flag.source}" for flag in flags]


def _fixed(deployment: Deployment, places: Places, workers: int) -> Iterator[BuildFlag]:
    limits, parallel = deployment.limits, deployment.parallel
    shares = [f"pp {parallel.pp}"] * (parallel.pp > 1) + [f"replicas {parallel.replicas}"] * (parallel.replicas > 1)
    batch = f"limits.max_sequences {limits.max_sequences}"
    if shares:
        batch += f" / ({' x '.join(shares)}): the executor keeps one micro-batch a stage in flight"
    yield BuildFlag("checkpoint_dir", str(places.checkpoint), "toolkit convert", fixed=True)
    yield BuildFlag("output_dir", str(places.output), "output", fixed=True)
    yield BuildFlag("max_batch_size", str(deployment.max_batch_size), batch, fixed=True)
    yield BuildFlag("max_num_tokens", str(limits.max_num_tokens), "limits.max_num_tokens", fixed=True)
    yield BuildFlag("max_seq_len", str(limits.max_seq_len), "limits.max_seq_len", fixed=True)
    yield BuildFlag("max_beam_width", "1", "in-flight batching here samples, it has no beams", fixed=True)
    yield BuildFlag("kv_cache_type", "paged", "in-flight batching needs it", fixed=True)
    yield BuildFlag("remove_input_padding", "enable", "in-flight batching needs it", fixed=True)
    block = str(deployment.kv_cache.tokens_per_block)
    yield BuildFlag("tokens_per_block", block, "kv_cache.tokens_per_block", fixed=True)
    wanted = [
        name
        for name, wants in (
            ("kv_cache.reuse", deployment.kv_cache.reuse),
            ("scheduler.chunked_context", deployment.scheduler.chunked_context),
        )
        if wants
    ]
    why = f"{' and '.join(wanted)} {'need' if len(wanted) > 1 else 'needs'} it" if wanted else "the default"
    yield BuildFlag("use_paged_context_fmha", "enable", why, fixed=bool(wanted))
    yield BuildFlag("workers", str(workers), "GPUs, and host memory for each rank; engine.workers", fixed=True)
    cache = str(places.timing_cache)
    yield BuildFlag("input_timing_cache", cache, "kept from build to build, in output", fixed=True)
    yield BuildFlag("output_timing_cache", cache, "the same", fixed=True)


def _chosen(deployment: Deployment) -> Iterator[BuildFlag]:
    """Ours to choose. Source: the performance tuning guide of TensorRT-LLM, Llama-3.3-70B on H100."""
    yield BuildFlag("gpt_attention_plugin", "auto", "in-flight batching needs it; model.dtype")
    yield BuildFlag("gemm_plugin", "auto", "model.dtype; +9 % tokens/s in NVIDIA's tuning guide")
    yield BuildFlag("context_fmha", "enable", "the default")
    yield BuildFlag("multiple_profiles", "enable", "+19 % tokens/s in NVIDIA's tuning guide")
    if deployment.mapping.world_size > 1:
        yield BuildFlag("nccl_plugin", "auto", f"{deployment.mapping.world_size} ranks talk by NCCL")
    yield BuildFlag("log_level", "info", "progress is read from the log")


def _extra(deployment: Deployment, release: Release, name: str, value: Any, derived: BuildFlag | None) -> BuildFlag:
    field = f"engine.extra.{name}"

    def wrong(what: str, hint: str | None = None) -> ToolkitError:
        return ToolkitError(f"{field}: {what}", where=deployment.file, hint=hint)

    if name in release.removed_flags:
        raise wrong(f"is no flag of trtllm-build {release.name}", release.removed_flags[name])
    flag = release.build_flags.get(name)
    if flag is None:
        raise wrong(f"is no flag of trtllm-build {release.name}", _nearest(name, release.build_flags))
    if flag.kind == "switch":
        if value is not True:
            raise wrong(f"takes no value, got {shown(value)}", "Write true, or leave it out.")
        return BuildFlag(name, None, "engine.extra")
    text = TOGGLE[value] if isinstance(value, bool) else str(value)
    if problem := flag.problem(text):
        raise wrong(problem)
    if derived and derived.fixed and derived.value != text:
        raise wrong(f"{text} contradicts {derived.value}, which comes from: {derived.source}", "Change that instead.")
    return BuildFlag(name, text, "engine.extra")


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=3)
    return f"Did you mean {', '.join(close)}?" if close else "docs/reference/contracts.md lists its flags."


def _contradictions(deployment: Deployment, values: Mapping[str, str | None]) -> Iterator[tuple[str, str]]:
    """(what, fix) of combinations that the builder refuses after it has loaded the model, or the runtime later."""
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
