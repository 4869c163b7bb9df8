"""Rules: what Triton needs from any model, on disk and in its config.pbtxt."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from toolkit.errors import shown
from toolkit.lint.finding import Finding
from toolkit.lint.model_yaml import PLACEHOLDER
from toolkit.lint.repository import CONFIG, Model, Repository
from toolkit.releases.release import Release

IN_THE_IMAGE = ("python", "tensorrtllm", "ensemble")
OF_TRITON = (
    *("tensorrt", "tensorrt_plan", "onnxruntime", "onnxruntime_onnx", "pytorch", "pytorch_libtorch", "vllm", "dali"),
    *("tensorflow", "tensorflow_graphdef", "tensorflow_savedmodel", "openvino", "fil", "identity", "repeat", "square"),
)
"""Backends and platforms that are in other images of Triton."""


def check(repository: Repository, release: Release) -> Iterator[Finding]:
    """Find files and keys that Triton refuses in any model."""
    for folder in sorted(path for path in repository.folder.iterdir() if path.is_dir()):
        if folder.name not in repository.models:
            what = f"has no {CONFIG}: Triton takes every folder of a repository for a model"
            yield Finding("not-a-model", "start", folder, what, "Move it out of the repository.")
    for model in repository.models.values():
        yield from _of(model)


def _of(model: Model) -> Iterator[Finding]:
    if model.unreadable:
        yield model.unreadable
    if not model.versions:
        what = f"model {model.name} has no version directory"
        fix = f"Make the folder {model.folder / '1'}. It may be empty, but git does not keep empty folders."
        yield Finding("version-directory", "start", model.folder, what, fix)
    if model.config is None:
        return
    if model.config.name and model.config.name != model.name:
        what = f"name is {model.config.name}, but its folder is {model.name}"
        yield model.finding("name", "start", what, "Make them the same, or remove the name.", at=model.config.name)
    if not PLACEHOLDER.search(model.kind):
        yield from _backend(model)
    file = model.config.default_model_filename or "model.py"
    if model.kind == "python" and model.versions and not model.has_file(file):
        what = f"backend is python, but there is no {file} in {model.versions[0].name}/"
        yield model.finding("model-file", "start", what, "Copy the model's Python file there.", at="python")
    yield from _numbers(model)
    for side in ("input", "output"):
        for tensor in getattr(model.config, side):
            if problem := _problem(tensor):
                what = f"{side} {tensor.name or 'without a name'}: {problem}"
                yield model.finding("tensor-config", "start", what, "Correct it.", at=tensor.name or side)


def _numbers(model: Model) -> Iterator[Finding]:
    config: Any = model.config
    most, preferred = config.max_batch_size, config.dynamic_batching.preferred_batch_size
    if most < 0:
        yield model.finding("batch-size", "start", f"max_batch_size is {most}", "Use 0 or more.", at="max_batch_size")
    elif any(not 0 < size <= most for size in preferred):
        what = f"preferred_batch_size is {list(preferred)}, but max_batch_size is {most}"
        yield model.finding("batch-size", "start", what, "Use sizes from 1 to max_batch_size.")
    for version in config.version_policy.specific.versions if model.versions else ():
        if not (model.folder / str(version)).is_dir():
            what = f"version_policy names version {version}, but there is no such folder"
            yield model.finding("version-directory", "start", what, "Make it, or name another.", at="version_policy")


def _problem(tensor: Any) -> str | None:
    if not tensor.name:
        return "has no name"
    if not tensor.data_type:
        return "has no data_type"
    if not tensor.dims:
        return "has no dims"
    wrong = [size for size in tensor.dims if size < 1 and size != -1]
    return f"dims must be 1 or more, or -1 for any size, got {wrong[0]}" if wrong else None


def _backend(model: Model) -> Iterator[Finding]:
    if model.kind in IN_THE_IMAGE:
        return
    if model.kind in OF_TRITON:
        what = f"backend {model.kind} is not in the image with TensorRT-LLM: Triton starts only where it is installed"
        yield model.finding(
            "backend", "default", what, "Install the backend, or serve this model elsewhere.", at=model.kind
        )
        return
    known = ", ".join(IN_THE_IMAGE)
    what = f"backend {shown(model.kind)} is not one of {known}" if model.kind else "has neither backend nor platform"
    close = difflib.get_close_matches(model.kind, (*IN_THE_IMAGE, *OF_TRITON), n=1)
    fix = f"Did you mean {close[0]}?" if close else "Set backend, or platform for an ensemble."
    yield model.finding("backend", "start", what, fix, at=model.kind)
