"""Rules for the Python models next to the one that generates: their parameters, and the models that they call."""

from __future__ import annotations

from collections.abc import Iterator

from toolkit.lint import parameter_rules, readings
from toolkit.lint.finding import Finding
from toolkit.lint.repository import Model, Repository
from toolkit.releases.models import OUR_LLMAPI_BLS_PARAMETERS, OUR_PARAMETERS
from toolkit.releases.release import Release

BLS = "tensorrt_llm_bls"
MODEL_NAMES = ("tensorrt_llm_model_name", "tensorrt_llm_draft_model_name", "multimodal_encoders_name")
TRUE = ("true", "yes", "1", "t")
"""What NVIDIA's tensorrt_llm_bls takes for true, in any case."""


def check(repository: Repository, release: Release) -> Iterator[Finding]:
    """Find mistakes in the Python models around the one that generates."""
    ours, tables = repository.ours, OUR_PARAMETERS if repository.ours else release.model_parameters
    if repository.ours_without_engines:
        ours, tables = True, {BLS: OUR_LLMAPI_BLS_PARAMETERS}
    for name, known in tables.items():
        model = repository.models.get(name)
        if model is not None and model.kind == "python":
            reader = f"{name} of toolkit repo" if ours else f"{name} of {release.name}"
            judge = readings.our_model if ours else readings.nvidias_model
            yield from parameter_rules.check(model, known, reader, judge)
    bls = repository.models.get(BLS)
    if bls is not None and bls.config is not None:
        yield from _called(bls, repository)
        if not ours:
            yield from _streams(bls)
            yield from _instances(bls, repository)


def _called(bls: Model, repository: Repository) -> Iterator[Finding]:
    for parameter in MODEL_NAMES:
        called = bls.parameters.get(parameter, "")
        if called and not called.startswith("${") and called not in repository.models:
            what = f"{parameter} {called} is not a model of this repository"
            fix = f"Use one of {', '.join(sorted(repository.models))}."
            yield bls.finding("bls-model", "answers", what, fix, at=called)
    if not bls.given("tensorrt_llm_model_name") and "tensorrt_llm" not in repository.models:
        what = "tensorrt_llm_model_name is not set, and its default, tensorrt_llm, does not exist"
        yield bls.finding("bls-model", "answers", what, "Name the model that generates.")


def _streams(bls: Model) -> Iterator[Finding]:
    if bls.decoupled and bls.parameters.get("accumulate_tokens", "").lower() not in TRUE:
        what = "accumulate_tokens is not true: each chunk of a stream is decoded alone and loses spaces and characters"
        yield bls.finding("accumulate-tokens", "default", what, "Set it to true.", at="accumulate_tokens")


def _instances(bls: Model, repository: Repository) -> Iterator[Finding]:
    """NVIDIA's tensorrt_llm_bls answers a request before it takes the next one."""
    called = repository.called_by(bls)
    if called is None or called.config is None or bls.instances >= called.config.max_batch_size:
        return
    count = f"{bls.instances} instance{'s' if bls.instances > 1 else ''}"
    what = f"has {count}, each with one request at a time; {called.name} could run {called.config.max_batch_size}"
    fix = "Set count to the largest batch (bls_instance_count)."
    yield bls.finding("bls-instances", "default", what, fix, at="instance_group")
