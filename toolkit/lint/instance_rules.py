"""Rules: how many instances a model has, and on which GPUs.

Triton makes an instance for every GPU if instance_group is KIND_GPU, or if it is missing and the backend does not set a
kind itself (NormalizeInstanceGroup in triton-inference-server/core model_config_utils.cc). The tensorrtllm backend
chooses its GPUs itself, so each instance loads the whole engine (tensorrtllm_backend#127, #481).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from toolkit.lint.finding import Effect, Finding
from toolkit.lint.readings import taken
from toolkit.lint.repository import Executor, LlmModel, Model, Repository, enum_name
from toolkit.releases.release import Release
from toolkit.releases.setting import Parameter

AT = "instance_group"
MISSING = "missing"
GPU = "Set kind: KIND_CPU. Other settings choose the GPUs."
LISTS = {"gpu_device_ids": "GPUs", "participant_ids": "ranks"}


def check(repository: Repository, release: Release) -> Iterator[Finding]:
    """Find wrong numbers of instances, and instances on wrong GPUs."""
    for model in repository.models.values():
        yield from _gpus_for_nothing(model)
    for executor in repository.executors:
        if executor.model.config is not None:
            yield from _of_an_executor(executor, repository.is_rehearsal(executor.model), release)
    for llm in repository.llm_models:
        yield from _of_the_llm_api(llm)
    postprocessing = repository.models.get("postprocessing")
    if repository.ours and postprocessing is not None and postprocessing.config is not None:
        yield from _of_our_postprocessing(postprocessing)


def _gpus_for_nothing(model: Model) -> Iterator[Finding]:
    for group in model.config.instance_group if model.config is not None else ():
        name = enum_name(group.Kind, group.kind)
        if group.gpus and name in ("KIND_CPU", "KIND_MODEL"):
            what = f"instance_group has gpus, but its kind is {name}"
            yield model.finding("instance-kind", "start", what, "Remove gpus.", at=AT)


def _of_an_executor(executor: Executor, rehearsal: bool, release: Release) -> Iterator[Finding]:
    model, on_gpus = executor.model, _on_gpus(executor.model)
    if on_gpus == MISSING and rehearsal:
        on_gpus = None
    if on_gpus:
        what = f"instance_group is {on_gpus}: Triton makes an instance for each GPU, and each loads the whole engine"
        yield model.finding("instance-kind", "start", what, GPU, at=AT)
    groups = {name: _groups(model, release.backend_parameters[name]) for name in LISTS}
    ranks = executor.engine.world_size if executor.engine else None
    for name, what in LISTS.items():
        for group in groups[name] if ranks else ():
            yield from _group(model, name, what, group, ranks or 0)
    count, given = model.instances, groups["gpu_device_ids"]
    if count < 2 or on_gpus or len(given) >= count:
        return
    if given:
        what = f"has {count} instances, but gpu_device_ids for {len(given)}: some share their GPUs"
        yield model.finding("instances", "default", what, "Name the GPUs of each instance, for example 0,1;2,3.", at=AT)
        return
    # In leader mode, a rank above 0 never returns from its first instance.
    effect: Effect = "start" if ranks is None or ranks > 1 else "default"
    what = f"has {count} instances and no gpu_device_ids: all of them load the engine on the same GPUs"
    yield model.finding("instances", effect, what, "Set count: 1, or name the GPUs of each instance.", at=AT)


def _group(executor: Model, name: str, what: str, group: list[int], ranks: int) -> Iterator[Finding]:
    listed = ",".join(map(str, group))
    if len(group) != ranks:
        text = f"{name} {listed} is {len(group)} {what}, but the engine has {ranks} ranks"
        yield executor.finding("device-ids", "start", text, f"Name {ranks}.", at=name)
    elif len(set(group)) != len(group):
        text = f"{name} {listed} has a number twice"
        yield executor.finding("device-ids", "start", text, "Name each once.", at=name)


def _of_the_llm_api(llm: LlmModel) -> Iterator[Finding]:
    """NVIDIA's model gives each instance its own GPUs; ours has one instance."""
    model, count = llm.model, llm.model.instances
    if on_gpus := _on_gpus(model):
        what = f"instance_group is {on_gpus}: Triton makes an instance for each GPU, and each loads the whole model"
        yield model.finding("instance-kind", "start", what, GPU, at=AT)
    elif count > 1 and llm.yaml.ours:
        what = f"has {count} instances: all of them load the model on the same GPUs"
        yield model.finding("instances", "start", what, "Set count: 1.", at=AT)
    if count < 2 or llm.yaml.ours:
        return
    groups = [group for group in model.given("gpu_device_ids").split(";") if group.strip()]
    if len(groups) < count:
        what = f"has {count} instances, but gpu_device_ids for {len(groups)}: it does not start"
        yield model.finding(
            "instances", "start", what, "Set count: 1, or name the GPUs of each instance, for example 0,1;2,3.", at=AT
        )
    sizes = [llm.yaml.given.get(f"{name}_parallel_size", 1) for name in ("tensor", "pipeline")]
    for group in groups if all(type(size) is int for size in sizes) else ():
        gpus, ranks = sum(bool(gpu.strip()) for gpu in group.split(",")), sizes[0] * sizes[1]
        if gpus < ranks:
            what = (
                f"gpu_device_ids {group} is {gpus} GPUs, but tensor_parallel_size x pipeline_parallel_size is {ranks}"
            )
            yield model.finding("device-ids", "start", what, f"Name {ranks}.", at="gpu_device_ids")


def _of_our_postprocessing(model: Model) -> Iterator[Finding]:
    on_gpus = _on_gpus(model)
    if on_gpus or model.instances > 1:
        several = f"is {on_gpus}, an instance for each GPU," if on_gpus else f"has {model.instances} instances,"
        what = f"{several} and each knows only its own part of a stream's text"
        yield model.finding("instances", "answers", what, "Set count: 1 and kind: KIND_CPU.", at=AT)


def _on_gpus(model: Model) -> str | None:
    """The kind of an instance group that makes an instance for each GPU; None if there is no such group."""
    config: Any = model.config
    if not config.instance_group:
        return MISSING
    for group in config.instance_group:
        name = enum_name(group.Kind, group.kind)
        if name in ("KIND_GPU", "KIND_AUTO") and len(group.gpus) != 1:
            return name
    return None


def _groups(executor: Model, setting: Parameter) -> list[list[int]]:
    """The numbers for each instance, as the backend reads them."""
    text = taken(setting, executor.given(setting.name))
    return [[int(number) for number in group.split(",")] for group in text.split(";")] if text else []
