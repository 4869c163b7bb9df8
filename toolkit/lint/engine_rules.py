"""The repository against the engine that it serves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from toolkit.lint.executor_rules import TRUE
from toolkit.lint.finding import Finding
from toolkit.lint.repository import Engine, Model, Repository
from toolkit.releases import Release


def check(repository: Repository, release: Release) -> Iterator[Finding]:
    executor, engine = repository.executor, repository.engine
    if executor is None or executor.config is None or "gpt_model_path" not in executor.parameters:
        return
    if engine is None:
        what = "gpt_model_path is empty: the backend then has no engine to load"
        yield executor.finding("engine-path", "error", what, "Set it to the engine directory.", at="gpt_model_path")
        return
    if engine.config is None:
        what = f"gpt_model_path {engine.folder}: {engine.problem}"
        fix = "Give the directory of the engines, here with --engine, or lint where it is."
        yield executor.finding("engine-path", "error", what, fix, at="gpt_model_path")
        return
    yield from _release(engine, release)
    yield from _ranks(engine)
    yield from _limits(executor, engine)
    yield from _attention(executor, engine)


def _release(engine: Engine, release: Release) -> Iterator[Finding]:
    version = (engine.version or "").partition("+")[0]
    if version not in release.versions:
        what = f"was built by TensorRT-LLM {engine.version or '(its config.json does not say)'}"
        fix = f"{release.name} runs engines of {', '.join(release.versions)} only, each its own: build it again."
        yield Finding("engine-version", "error", engine.folder / "config.json", what, fix)


def _ranks(engine: Engine) -> Iterator[Finding]:
    if engine.world_size is not None and engine.ranks != engine.world_size:
        what = f"has {engine.ranks} rank files, its mapping a world size of {engine.world_size}"
        yield Finding("world-size", "error", engine.folder, what, "Build it again; a rank is missing or left over.")


def _limits(executor: Model, engine: Engine) -> Iterator[Finding]:
    config: Any = executor.config
    most = engine.build.get("max_batch_size")
    if isinstance(most, int) and config.max_batch_size > most * engine.pp:
        stages = f" x {engine.pp} micro-batches" if engine.pp > 1 else ""
        what = f"max_batch_size {config.max_batch_size} is more than the engine's {most}{stages}"
        yield executor.finding("engine-batch-size", "warning", what, "The rest waits in the executor; lower it.")
    beams, built = executor.parameters.get("max_beam_width", ""), engine.build.get("max_beam_width")
    if beams.isdigit() and isinstance(built, int) and int(beams) > built:
        what = f"max_beam_width {beams} is more than the engine's {built}"
        yield executor.finding("engine-beams", "error", what, f"Use at most {built}.", at="max_beam_width")
    tokens, longest = executor.parameters.get("max_tokens_in_paged_kv_cache", ""), engine.build.get("max_seq_len")
    if tokens.isdigit() and isinstance(longest, int) and int(tokens) < longest:
        what = f"max_tokens_in_paged_kv_cache {tokens} does not hold one sequence of the engine's max_seq_len {longest}"
        yield executor.finding(
            "engine-kv-tokens", "error", what, f"Use at least {longest}.", at="max_tokens_in_paged_kv_cache"
        )


def _attention(executor: Model, engine: Engine) -> Iterator[Finding]:
    plugins = engine.build.get("plugin_config", {})
    for name in ("enable_kv_cache_reuse", "enable_chunked_context"):
        if executor.parameters.get(name) in TRUE and plugins.get("use_paged_context_fmha") is False:
            what = f"{name} needs use_paged_context_fmha, which the engine was built without"
            yield executor.finding("engine-attention", "error", what, "Set it to false, or build again.", at=name)
    if (
        plugins.get("remove_input_padding") is False
        or str(engine.build.get("kv_cache_type", "paged")).lower() != "paged"
    ):
        what = "was built without a paged KV cache and packed inputs, so it cannot batch in flight"
        yield Finding("engine-inflight", "error", engine.folder / "config.json", what, "Build it again with both.")
