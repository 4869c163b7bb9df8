"""What Triton needs on disk, and what is left of a template."""

from __future__ import annotations

from collections.abc import Iterator

from toolkit.lint.finding import Finding
from toolkit.lint.repository import CONFIG, PLACEHOLDER, Model, Repository
from toolkit.releases import Release

KINDS = ("python", "tensorrtllm", "ensemble")
FILL = "Fill it, or set it to an empty string: the backend takes ${{{name}}} for not given, and only its log says so."


def check(repository: Repository, release: Release) -> Iterator[Finding]:
    for folder in sorted(path for path in repository.folder.iterdir() if path.is_dir()):
        if folder.name not in repository.models:
            what = f"has no {CONFIG}: Triton takes every folder of a repository for a model"
            yield Finding("not-a-model", "error", folder, what, "Move it out of the repository.")
    for model in repository.models.values():
        yield from _of(model)


def _of(model: Model) -> Iterator[Finding]:
    if model.unreadable:
        yield model.unreadable
    yield from _placeholders(model)
    versions = [path for path in model.folder.iterdir() if path.is_dir() and path.name.isdigit()]
    if not versions:
        what = f"model {model.name} has no version directory"
        fix = f"Make {model.folder / '1'}, which may be empty; git does not keep empty folders."
        yield Finding("version-directory", "error", model.folder, what, fix)
    if model.config is None:
        return
    if model.config.name and model.config.name != model.name:
        what = f"name is {model.config.name}, its folder {model.name}"
        yield model.finding("name", "error", what, "Make them the same, or remove the name.", at=model.config.name)
    if model.kind not in KINDS:
        what = (
            f"backend {model.kind!r} is none of {', '.join(KINDS)}"
            if model.kind
            else "has neither backend nor platform"
        )
        yield model.finding("backend", "error", what, "Set backend, or platform for an ensemble.", at=model.kind)
    if model.kind == "python" and versions and not any((version / "model.py").is_file() for version in versions):
        what = f"backend is python, and there is no model.py in {versions[0].name}/"
        yield model.finding("model-file", "error", what, "Copy the model's Python file there.", at="python")


def _placeholders(model: Model) -> Iterator[Finding]:
    for number, line in enumerate(model.text.splitlines(), 1):
        if line.lstrip().startswith("#") or (model.unreadable and model.unreadable.line == number):
            continue
        for name in PLACEHOLDER.findall(line):
            what = f"${{{name}}} was not filled"
            yield Finding("placeholder", "error", model.path, what, FILL.format(name=name), number)
