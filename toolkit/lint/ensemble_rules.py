"""How tensors go through the ensemble: names, types, and what each step needs."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from toolkit.lint.finding import Finding
from toolkit.lint.repository import Model, Repository, type_name
from toolkit.releases import Release

FEW = 8
"""So many names can be read in a line."""


def check(repository: Repository, release: Release) -> Iterator[Finding]:
    for ensemble in repository.ensembles:
        yield from _steps(ensemble, repository)
        yield from _decoupled(ensemble, repository)
        yield from _batches(ensemble, repository)


def _steps(ensemble: Model, repository: Repository) -> Iterator[Finding]:
    config: Any = ensemble.config
    types = {tensor.name: tensor.data_type for tensor in config.input}
    for step in config.ensemble_scheduling.step:
        model = repository.models.get(step.model_name)
        if model is None:
            what = f"step {step.model_name} is no model of this repository"
            fix = f"Use one of {', '.join(sorted(repository.models))}."
            yield ensemble.finding("step-model", "error", what, fix, at=step.model_name)
        if model is None or model.config is None:
            for name in step.output_map.values():
                types.setdefault(name, None)
            continue
        inputs = {tensor.name: tensor for tensor in model.config.input}
        outputs = {tensor.name: tensor for tensor in model.config.output}
        for theirs, ours in sorted(step.input_map.items()):
            yield from _input(ensemble, model, theirs, ours, inputs, types)
        for name, tensor in inputs.items():
            if name not in step.input_map and not tensor.optional:
                what = f"step {model.name}: its input {name} is required, and nothing is mapped to it"
                yield ensemble.finding("step-input-missing", "error", what, "Map it.", at=model.name)
        for theirs, ours in sorted(step.output_map.items()):
            if theirs not in outputs:
                what = f"step {model.name}: has no output {theirs}"
                yield ensemble.finding("step-output", "error", what, _one_of(outputs, theirs), at=theirs)
            types[ours] = outputs[theirs].data_type if theirs in outputs else None
    for tensor in config.output:
        made = types.get(tensor.name, "nobody")
        if made == "nobody":
            what = f"output {tensor.name} is made by no step"
            yield ensemble.finding("ensemble-output", "error", what, "Map it, or remove it.", at=tensor.name)
        elif made is not None and made != tensor.data_type:
            what = (
                f"output {tensor.name} is {type_name(tensor.data_type)}, the step that makes it gives {type_name(made)}"
            )
            yield ensemble.finding("ensemble-type", "error", what, "Make them the same.", at=tensor.name)


def _input(
    ensemble: Model, model: Model, theirs: str, ours: str, inputs: dict[str, Any], types: dict[str, Any]
) -> Iterator[Finding]:
    if theirs not in inputs:
        what = f"step {model.name}: has no input {theirs}"
        yield ensemble.finding("step-input", "error", what, _one_of(inputs, theirs), at=theirs)
    elif ours not in types:
        what = f"step {model.name}: {theirs} comes from {ours}, which is no input and no earlier step's output"
        yield ensemble.finding("step-source", "error", what, "Map it to a tensor that is there.", at=ours)
    elif types[ours] is not None and types[ours] != inputs[theirs].data_type:
        what = (
            f"step {model.name}: {theirs} is {type_name(inputs[theirs].data_type)}, {ours} is {type_name(types[ours])}"
        )
        yield ensemble.finding("ensemble-type", "error", what, "Make them the same.", at=theirs)


def _decoupled(ensemble: Model, repository: Repository) -> Iterator[Finding]:
    """Streaming needs a decoupled executor; an ensemble with one gives any number of responses."""
    executor = repository.executor
    if executor is None or executor.config is None:
        return
    streams = any(tensor.name == "stream" for tensor in ensemble.config.input) if ensemble.config else False
    if streams and not executor.config.model_transaction_policy.decoupled:
        what = f"takes stream, and {executor.name} is not decoupled: requests with stream: true fail"
        fix = f"Set model_transaction_policy {{ decoupled: true }} in {executor.path}."
        yield ensemble.finding("decoupled", "warning", what, fix, at="stream")


def _batches(ensemble: Model, repository: Repository) -> Iterator[Finding]:
    config: Any = ensemble.config
    for step in config.ensemble_scheduling.step:
        model = repository.models.get(step.model_name)
        if model and model.config is not None and config.max_batch_size > model.config.max_batch_size:
            what = (
                f"max_batch_size {config.max_batch_size} is more than the {model.config.max_batch_size} of {model.name}"
            )
            yield Finding("batch-size", "error", ensemble.path, what, "Triton does not load it; make them the same.")


def _one_of(tensors: dict[str, Any], wanted: str) -> str:
    if len(tensors) <= FEW:
        return f"It has {', '.join(sorted(tensors))}."
    close = difflib.get_close_matches(wanted, tensors, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(close)}?" if close else f"It has {len(tensors)} others: see its config.pbtxt."
