"""What is left of a template: ${...} where nobody filled it in.

Which of them stop a server was read in model_state.cc and model_instance_state.cc, NVIDIA's three model.py, and ours;
docs/reference/lint.md has them one by one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from toolkit.lint.finding import Finding
from toolkit.lint.model_yaml import PLACEHOLDER
from toolkit.lint.readings import STOPS
from toolkit.lint.repository import Model, Repository
from toolkit.releases.models import OUR_PARAMETERS
from toolkit.releases.release import Release

PARAMETER = re.compile(r'key:\s*"(\w+)"\s*,?\s*value:?\s*\{\s*string_value:\s*"([^"]*)"')
QUOTED = re.compile(r'"[^"]*"')


def check(repository: Repository, release: Release) -> Iterator[Finding]:
    """Find placeholders of a template that nobody filled."""
    tolerated: dict[Model, list[str]] = {}
    for model in repository.models.values():
        parameters = _unfilled_parameters(model)
        for name, value in parameters.items():
            if why := _stops(repository, model, name, value):
                what = f"parameter {name} is {value}, {why}"
                yield model.finding("placeholder", "start", what, "Fill it.", at=name)
            elif not repository.has_engine(model) and model.name not in OUR_PARAMETERS:
                what = f"parameter {name} is {value}: {model.name} gets it as it is"
                yield model.finding("placeholder", "default", what, "Fill it.", at=name)
            else:
                tolerated.setdefault(model, []).append(name)
        yield from _outside_of_parameters(model, set(parameters.values()))
    if tolerated:
        yield _sum(repository, tolerated)


def _outside_of_parameters(model: Model, values: set[str]) -> Iterator[Finding]:
    for number, line in enumerate(_without_comments(model), 1):
        for found in PLACEHOLDER.finditer(line):
            quoted = [text[0][1:-1] for text in QUOTED.finditer(line) if found[0] in text[0]]
            if quoted and quoted[0] in values:
                continue
            where = "Triton takes it as it is" if quoted else "Triton expects a value there"
            what = f"{found[0]} was not filled: {where}"
            fix = f"Fill {found[1]}; NVIDIA's own list of keys does not have all of them."
            yield Finding("placeholder", "start", model.path, what, fix, number)


def _unfilled_parameters(model: Model) -> dict[str, str]:
    """Read from the text, because protobuf may not be able to read a file with placeholders."""
    found = PARAMETER.findall("\n".join(_without_comments(model)))
    return {name: value for name, value in found if PLACEHOLDER.search(value)}


def _without_comments(model: Model) -> list[str]:
    return ["" if line.lstrip().startswith("#") else line for line in model.text.splitlines()]


def _stops(repository: Repository, model: Model, name: str, value: str) -> str | None:
    """Why the model does not start with this placeholder as a value; None if it starts."""
    if repository.ours and model.name in OUR_PARAMETERS:
        known = OUR_PARAMETERS[model.name].get(name)
        return "which the model cannot read" if known is not None and known.kind != "words" else None
    if model.name in ("preprocessing", "postprocessing") and name == "tokenizer_dir":
        return "which is not a tokenizer"
    if name == "multimodal_model_path" and value != "${multimodal_model_path}":
        return "which is taken for a path; only ${multimodal_model_path} is not"
    if name == "FORCE_CPU_ONLY_INPUT_TENSORS" and model.kind == "python":
        return "which is neither yes nor no"
    if repository.has_engine(model) and name in STOPS:
        encoder_only = name == "gpt_model_path" and model.given("encoder_model_path")
        return None if encoder_only else "without which the backend does not start"
    return None


def _sum(repository: Repository, tolerated: dict[Model, list[str]]) -> Finding:
    count = sum(map(len, tolerated.values()))
    listed = "; ".join(f"{model.name}: {', '.join(names)}" for model, names in tolerated.items())
    what = f"{count} parameter{'s are' if count > 1 else ' is'} still ${{...}}, which counts as not set ({listed})"
    only = next(iter(tolerated)) if len(tolerated) == 1 else None
    path, line = (only.path, only.line_of(tolerated[only][0])) if only else (repository.folder, None)
    fix = "Fill them, or set them to an empty string. Only the log tells that they are ignored."
    return Finding("placeholder", "default", path, what, fix, line)
