"""Rules: how tensors pass through the ensemble: names, types, shapes, and the inputs of each step.

Triton checks them without regard to the order of the steps (ValidateEnsembleSchedulingConfig in
triton-inference-server/core model_config_utils.cc, ValidateEnsembleConfig in ensemble_utils.cc).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from toolkit.lint.finding import Finding
from toolkit.lint.repository import Model, Repository, type_name
from toolkit.releases.release import Release

FEW = 8
"""The most names that a line lists."""
SAME = "Make them the same."


@dataclass(frozen=True)
class End:
    """One end of a tensor in the ensemble: an input or output of the ensemble or of a step. `type` is None if
    unknown."""

    type: int | None
    dims: tuple[int, ...] = ()
    batched: bool = False

    def fits(self, other: End) -> bool:
        """Whether the shapes agree (-1 is any size), both with or both without the batch dimension."""
        return _alike(self.dims, other.dims) or _alike(self.whole, other.whole)

    @property
    def whole(self) -> tuple[int, ...]:
        return (-1, *self.dims) if self.batched else self.dims


def check(repository: Repository, release: Release) -> Iterator[Finding]:
    """Find steps, tensors and batch sizes of an ensemble that do not fit."""
    for ensemble in repository.ensembles:
        if ensemble.config is not None:
            yield from _sections(ensemble)
            yield from _steps(ensemble, repository)
            yield from _batches(ensemble, repository)


def _sections(ensemble: Model) -> Iterator[Finding]:
    config: Any = ensemble.config
    given = [name for name in ("instance_group", "model_warmup") if len(getattr(config, name))]
    for name in (*given, *(["optimization"] if config.HasField("optimization") else [])):
        what = f"{name} is not allowed in an ensemble"
        yield ensemble.finding("ensemble-section", "start", what, "Remove it.", at=name)
    if not config.ensemble_scheduling.step:
        yield ensemble.finding("ensemble-section", "start", "has no step", "Add ensemble_scheduling { step [ ... ] }.")


def _steps(ensemble: Model, repository: Repository) -> Iterator[Finding]:
    config: Any = ensemble.config
    steps = config.ensemble_scheduling.step
    made = {tensor.name: _end(config, tensor) for tensor in config.input}
    models = [repository.models.get(step.model_name) for step in steps]
    for step, model in zip(steps, models, strict=True):
        outputs = {} if model is None or model.config is None else _ends(model, "output")
        made.update({ours: outputs.get(theirs, End(None)) for theirs, ours in step.output_map.items()})
    for step, model in zip(steps, models, strict=True):
        if model is None:
            what = f"step {step.model_name} is not a model of this repository"
            fix = f"Use one of {', '.join(sorted(repository.models))}."
            yield ensemble.finding("step-model", "start", what, fix, at=step.model_name)
        elif model.config is not None:
            yield from _step(ensemble, step, model, made)
    for tensor in config.output:
        if tensor.name not in made:
            what = f"no step makes the output {tensor.name}"
            yield ensemble.finding("ensemble-output", "start", what, "Map it, or remove it.", at=tensor.name)
        else:
            yield from _differ(ensemble, f"output {tensor.name}", _end(config, tensor), "its step", made[tensor.name])
    used = {ours for step in steps for ours in step.input_map.values()} | {tensor.name for tensor in config.output}
    for name in (name for name in made if name not in used):
        what = f"no step uses tensor {name}, and it is not an output of the ensemble"
        yield ensemble.finding("ensemble-unused", "start", what, "Remove it, or map it.", at=name)


def _step(ensemble: Model, step: Any, model: Model, made: dict[str, End]) -> Iterator[Finding]:
    config: Any = model.config
    inputs, outputs = _ends(model, "input"), _ends(model, "output")
    for theirs, ours in sorted(step.input_map.items()):
        if theirs not in inputs:
            what = f"step {model.name}: has no input {theirs}"
            yield ensemble.finding("step-input", "start", what, _one_of(inputs, theirs), at=theirs)
        elif ours not in made:
            what = f"step {model.name}: {theirs} comes from {ours}, which is neither an input nor made by a step"
            yield ensemble.finding("step-source", "start", what, "Map it to a tensor that exists.", at=ours)
        else:
            yield from _differ(ensemble, f"step {model.name}: {theirs}", inputs[theirs], ours, made[ours])
    for tensor in config.input:
        if tensor.name not in step.input_map and not tensor.optional:
            what = f"step {model.name}: its input {tensor.name} is required, but no tensor is mapped to it"
            yield ensemble.finding("step-input-missing", "start", what, "Map it.", at=model.name)
    for theirs in sorted(step.output_map):
        if theirs not in outputs:
            what = f"step {model.name}: has no output {theirs}"
            yield ensemble.finding("step-output", "start", what, _one_of(outputs, theirs), at=theirs)


def _differ(ensemble: Model, here: str, one: End, there: str, other: End) -> Iterator[Finding]:
    at = here.split()[-1]
    if one.type is None or other.type is None:
        return
    if one.type != other.type:
        what = f"{here} is {type_name(one.type)}, {there} is {type_name(other.type)}"
        yield ensemble.finding("ensemble-type", "start", what, SAME, at=at)
    elif not one.fits(other):
        what = f"{here} has dims {list(one.dims)}, {there} has {list(other.dims)}"
        yield ensemble.finding("ensemble-shape", "start", what, SAME, at=at)


def _batches(ensemble: Model, repository: Repository) -> Iterator[Finding]:
    """Triton allows a step that takes no batches (max_batch_size 0)."""
    config: Any = ensemble.config
    for step in config.ensemble_scheduling.step:
        model = repository.models.get(step.model_name)
        most = 0 if model is None or model.config is None else model.config.max_batch_size
        if 0 < most < config.max_batch_size:
            what = f"max_batch_size {config.max_batch_size} is more than that of {step.model_name}, {most}"
            yield ensemble.finding("batch-size", "start", what, SAME)


def _ends(model: Model, side: str) -> dict[str, End]:
    return {tensor.name: _end(model.config, tensor, reshaped=False) for tensor in getattr(model.config, side)}


def _end(config: Any, tensor: Any, reshaped: bool = True) -> End:
    """Triton compares reshaped dims of the ensemble with the plain dims of its steps."""
    dims = tensor.reshape.shape if reshaped and tensor.HasField("reshape") else tensor.dims
    return End(tensor.data_type, tuple(dims), config.max_batch_size > 0)


def _alike(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return len(one) == len(other) and all(
        here == there or -1 in (here, there) for here, there in zip(one, other, strict=True)
    )


def _one_of(tensors: dict[str, End], name: str) -> str:
    if len(tensors) <= FEW:
        return f"It has {', '.join(sorted(tensors))}."
    close = difflib.get_close_matches(name, tensors, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(close)}?" if close else f"It has {len(tensors)} others: see its config.pbtxt."
