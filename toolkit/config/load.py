"""Reads a deployment's YAML: makes paths absolute, validates values, checks rules. An error is one line.

Relative paths in the YAML are relative to the YAML's own folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from toolkit.config.deployment import LONGEST_NAME, NAME, NAME_PATTERN, Deployment
from toolkit.config.engine_kind import KINDS
from toolkit.config.operating import CLAIM_PATTERN, IMAGE_PATTERN, OTLP_PATTERN, WEBHOOK_PATTERN
from toolkit.config.rules import check
from toolkit.config.sections import Runtime
from toolkit.config.workload import LENGTHS, NUMBER, TOKENS_EXPECTED
from toolkit.errors import ToolkitError, clipped, is_unicode, shown
from toolkit.files.invalid import first_problem
from toolkit.files.yaml_file import absolute_path, read_yaml

OPTIONS = "engine_options"
"""The field of Deployment for the keys of `engine` besides `kind`."""
NOT_IN_THE_YAML = {"file", OPTIONS, "replica", "engine_given"}
PATHS = (
    "model.path",
    "cluster.hostfile",
    "cluster.launch_agent",
    "runtime.image_file",
    "loadtest.prompts",
    "workload.trace",
    "gateway.keys_file",
    "gateway.tls.certificate",
    "gateway.tls.key",
    "gateway.node_tls.ca",
    "gateway.node_tls.certificate",
    "gateway.node_tls.key",
    "recovery.fallback",
    "monitoring.traffic",
)
"""The keys that hold paths, or lists of paths. Like `output`, they are relative to the YAML's folder."""


def load_deployment(
    file: str | Path, engine: str | None = None, changes: Mapping[str, Any] | None = None
) -> Deployment:
    """Read and check a YAML file. `engine` and `changes` ("section.key": value) override it. Raises ToolkitError."""
    file = Path(file)
    if not is_unicode(str(file.absolute())):  # no lock file or command line could name it
        raise ToolkitError("its path is not UTF-8 text", where=file, hint="Rename the folder.")
    content = changed(read_yaml(file), changes or {})
    for key in set(content) & NOT_IN_THE_YAML:
        raise ToolkitError(f"{key}: unknown key", where=file, hint=_known_keys([], Deployment))
    if isinstance(content.get("engine"), dict):
        content[OPTIONS] = {**content["engine"]}
        if "kind" not in content[OPTIONS]:
            raise ToolkitError("engine.kind: missing", where=file, hint=f"Use {', '.join(KINDS)}.")
        content["engine"] = content[OPTIONS].pop("kind")
    if "name" not in content and not re.fullmatch(NAME, file.stem):
        what = f"the file name {shown(file.stem)} cannot be the name of a deployment"
        hint = "Add `name: NAME` (letters, digits, '.', '_' and '-') to the file, or rename it."
        raise ToolkitError(what, where=file, hint=hint)
    name = content.setdefault("name", file.stem)
    content.setdefault("output", str(Path("..", "work", name if isinstance(name, str) else "")))
    if engine is not None:
        if engine not in KINDS:
            raise ToolkitError(f"engine: {shown(engine)} is unknown", hint=f"Use {', '.join(KINDS)}.")
        content["engine_given"] = content.get("engine") != engine
        content["engine"] = engine
    try:
        deployment = Deployment.model_validate({**_absolute_paths(content, file), "file": file})
    except ValidationError as error:
        raise explain(error, file, Deployment) from None
    check(deployment)
    if deployment.engine_given and not deployment.kind.on_gpus:
        # `runtime` is for the engine of the YAML, which needs NVIDIA's programs.
        return deployment.model_copy(update={"runtime": Runtime()})
    return deployment


def changed(content: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The YAML's content with "section.key" set to other values. Validation reports a section that is not a mapping."""
    content = dict(content)
    for name, value in changes.items():
        section, _, key = name.partition(".")
        if not key:
            content[section] = value
        elif isinstance(content.get(section, {}), dict):
            content[section] = {**content.get(section, {}), key: value}
    return content


def _absolute_paths(content: dict[str, Any], file: Path) -> dict[str, Any]:
    """Make the YAML's paths absolute. Raises ToolkitError for text that cannot be a path."""
    resolved = dict(content, output=absolute_path(content["output"], file, "output"))
    if isinstance(content["output"], str) and content["output"]:
        _check_output(resolved["output"], file.resolve().parent / Path(content["output"]).expanduser(), file)
    return absolute_paths(resolved, file)


def absolute_paths(content: dict[str, Any], file: Path) -> dict[str, Any]:
    """The content with each of `PATHS` made absolute. Raises ToolkitError for text that cannot be a path."""
    for name in PATHS:
        content = _with_absolute(content, name.split("."), name, file)
    return content


def _with_absolute(content: dict[str, Any], keys: list[str], name: str, file: Path) -> dict[str, Any]:
    """The mapping with the path under these keys, or each path of the list there, made absolute."""
    first, *rest = keys
    value = content.get(first)
    if first not in content or (rest and not isinstance(value, dict)):
        return content  # validation reports a wrong type
    if isinstance(value, dict):
        return {**content, first: _with_absolute(value, rest, name, file) if rest else value}
    if isinstance(value, list):
        return {**content, first: [absolute_path(path, file, f"{name}.{place}") for place, path in enumerate(value)]}
    return {**content, first: absolute_path(value, file, name)}


def _check_output(output: Path, written: Path, file: Path) -> None:
    """Raise a ToolkitError if `output` is unusable. `written` is the path before links are resolved."""
    if output == output.parent:
        raise ToolkitError("output: / is not a folder for one deployment", where=file, hint="Give a folder below it.")
    if written.is_symlink() and not output.exists():
        what = f"output: {shown(str(written))} is a link to {shown(str(output))}, which is not there"
        raise ToolkitError(what, where=file, hint="Make that folder, or remove the link.")


_WORDS = {
    "path_type": "expected a path as text",
    "model_type": "expected a mapping of keys",
    "tuple_type": "expected a list",
    NAME_PATTERN: "expected letters, digits, '.', '_' and '-', and a letter or a digit first",
    IMAGE_PATTERN: "expected the name of an image without spaces, such as registry.example.com/toolkit:1.0",
    WEBHOOK_PATTERN: "expected a URL that begins with http:// or https://",
    OTLP_PATTERN: "expected http://HOST:PORT of a collector, without a path",
    CLAIM_PATTERN: "expected a name of Kubernetes: a-z, 0-9, '-' and '.', and a letter or a digit at both ends",
}
"""Our words for pydantic's kinds of problem, and for each pattern of a field."""


def explain(error: ValidationError, file: Path, section: type[BaseModel]) -> ToolkitError:
    """The first of pydantic's errors about a section in a file, as one line in our form."""
    problem = first_problem(error, words=_WORDS)
    location = [str(part) for part in problem.place if part not in (NUMBER, LENGTHS)]
    if location[0] == OPTIONS:
        location[0] = "engine"
    field = ".".join(clipped(part, LONGEST_NAME) for part in location)
    more = f" ({problem.others} more after this one)" if problem.others else ""
    if problem.kind == "extra_forbidden":
        return ToolkitError(f"{field}: unknown key{more}", where=file, hint=_known_keys(location[:-1], section))
    if problem.kind == "missing":
        hint = "Add it; for examples: toolkit sample configs DIR"
        return ToolkitError(f"{field}: missing{more}", where=file, hint=hint)
    tokens = NUMBER in problem.place and problem.kind != "less_than"  # that message names the limit
    message = TOKENS_EXPECTED if tokens else problem.message
    return ToolkitError(f"{field}: {message}, got {shown(problem.value)}{more}", where=file)


def _known_keys(location: list[str], section: type[BaseModel]) -> str:
    for part in [OPTIONS if part == "engine" else part for part in location[:1]] + location[1:]:
        if part.isdigit():  # an index in a list
            continue
        inner = _section(section.model_fields[part].annotation)
        if inner is None:
            return ""
        section = inner
    names = {field.alias or name for name, field in section.model_fields.items()}
    return f"Known here: {', '.join(sorted(names - NOT_IN_THE_YAML))}."


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, or may hold where it has several forms."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section, get_args(annotation))), None)
