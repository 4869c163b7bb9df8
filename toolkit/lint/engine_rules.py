"""Rules: the repository fits the engine that it serves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from toolkit.lint.executor_rules import TRUE
from toolkit.lint.finding import Finding
from toolkit.lint.model_yaml import PLACEHOLDER
from toolkit.lint.repository import Engine, Model, Repository
from toolkit.releases.release import Release

NUMBER = re.compile("[0-9]{1,20}")
FALSE = ("false", "False", "FALSE", "0")


def check(repository: Repository, release: Release) -> Iterator[Finding]:
    """Find where the repository does not fit its engine."""
    for executor in repository.executors:
        if executor.model.config is not None and executor.model.reads_engine:
            yield from _of(executor.model, executor.engine, release)


def _of(executor: Model, engine: Engine | None, release: Release) -> Iterator[Finding]:
    if engine is None:
        unfilled = PLACEHOLDER.search(executor.parameters.get("gpt_model_path", ""))
        if unfilled or executor.given("encoder_model_path"):
            return
        what = "gpt_model_path is empty, so the backend has no engine to load"
        yield executor.finding("engine-path", "start", what, "Set it to the engine directory.", at="gpt_model_path")
        return
    if engine.config is None:
        what = f"gpt_model_path {engine.folder}: {engine.problem}"
        fix = "Give the directory of the engines with --engine, or run lint where the directory is."
        yield executor.finding("engine-path", "start", what, fix, at="gpt_model_path")
        return
    yield from _release(engine, release)
    yield from _ranks(engine)
    yield from _limits(executor, engine)
    yield from _attention(executor, engine)


def _release(engine: Engine, release: Release) -> Iterator[Finding]:
    version = (engine.version or "").partition("+")[0]
    if version not in release.versions:
        what = f"was built by TensorRT-LLM {engine.version or '(config.json does not name a version)'}"
        fix = (
            f"{release.name} runs only engines of exactly its version ({', '.join(release.versions)}): build it again."
        )
        yield Finding("engine-version", "start", engine.folder / "config.json", what, fix)


def _ranks(engine: Engine) -> Iterator[Finding]:
    if engine.world_size is None or engine.ranks == engine.world_size:
        return
    what = f"has {engine.ranks} rank files, but its mapping has a world size of {engine.world_size}"
    if engine.ranks < engine.world_size:
        yield Finding("world-size", "start", engine.folder, what, "Build it again; a rank is missing.")
    else:
        yield Finding(
            "world-size", "default", engine.folder, what, "Remove the files that are left over: they are not loaded."
        )


def _limits(executor: Model, engine: Engine) -> Iterator[Finding]:
    config: Any = executor.config
    most = engine.build.get("max_batch_size")
    if isinstance(most, int) and config.max_batch_size > most * engine.pp:
        stages = f" x {engine.pp} micro-batches" if engine.pp > 1 else ""
        what = f"max_batch_size {config.max_batch_size} is more than the engine's {most}{stages}"
        yield executor.finding(
            "engine-batch-size", "default", what, "Lower it: the other requests only wait in the executor."
        )
    beams, built = executor.parameters.get("max_beam_width", ""), engine.build.get("max_beam_width")
    if NUMBER.fullmatch(beams) and isinstance(built, int) and int(beams) > built:
        what = f"max_beam_width {beams} is more than the engine's {built}"
        yield executor.finding("engine-beams", "start", what, f"Use at most {built}.", at="max_beam_width")
    tokens, longest = executor.given("max_tokens_in_paged_kv_cache"), engine.build.get("max_seq_len")
    if NUMBER.fullmatch(tokens) and isinstance(longest, int) and int(tokens) < longest:
        at = "max_tokens_in_paged_kv_cache"
        what = f"{at} {tokens} does not hold one sequence of the engine's max_seq_len {longest}: "
        what += "a longer sequence sees only its last tokens"
        yield executor.finding("engine-kv-tokens", "default", what, f"Use at least {longest}.", at=at)


def _attention(executor: Model, engine: Engine) -> Iterator[Finding]:
    plugins = engine.build.get("plugin_config", {})
    paged = plugins.get("use_paged_context_fmha")
    for name in ("enable_kv_cache_reuse", "enable_chunked_context"):
        if executor.given(name) in TRUE and paged is False:
            what = f"{name} needs use_paged_context_fmha, which the engine was built without: the backend turns it off"
            yield executor.finding("engine-attention", "default", what, "Set it to false, or build again.", at=name)
    if executor.given("kv_cache_onboard_blocks") in FALSE and paged:
        what = "kv_cache_onboard_blocks is false, which an engine with use_paged_context_fmha refuses"
        yield executor.finding("engine-attention", "start", what, "Set it to true.", at="kv_cache_onboard_blocks")
    cache = str(engine.build.get("kv_cache_type", "paged")).lower()
    in_flight = executor.given("gpt_model_type").lower() != "v1"
    if in_flight and (plugins.get("remove_input_padding") is False or cache != "paged"):
        what = "was built without a paged KV cache and packed inputs, so it cannot batch in flight"
        yield Finding("engine-inflight", "start", engine.folder / "config.json", what, "Build it again with both.")
