"""Changes settings in the text of a YAML file, and keeps its comments and order."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from toolkit.config.load import absolute_paths, changed
from toolkit.errors import ToolkitError
from toolkit.files.atomic import check_writable, read_text, write_text
from toolkit.files.yaml_file import absolute_path, compose_yaml, parse_yaml


def write_edited(
    source: Path, target: Path, changes: Mapping[str, Any], engine: str | None = None, force: bool = False
) -> None:
    """Write the deployment of `source` with `changes` ("section.key": value) as a YAML file of its own.

    It gets a name of its own, and so a folder of its own for what is built; relative paths lead where they led.
    Raises ToolkitError for a file that is there, unless `force`, and for one that cannot be written.
    """
    check_free(target, force)
    text = moved(source, target, changes, engine)
    write_text(target, text)


def moved(source: Path, target: Path, changes: Mapping[str, Any], engine: str | None = None) -> str:
    """The text that `write_edited` writes."""
    text = read_text(source)
    content = parse_yaml(text)
    own: dict[str, Any] = {}
    if source.resolve() != target.resolve() and "name" in content:
        own["name"] = re.sub(r"[^A-Za-z0-9._-]+|^[^A-Za-z0-9]+", "-", target.stem).strip("-") or "model"
    if source.resolve().parent != target.resolve().parent:
        own |= _absolute(content, source)
    if engine is not None:
        own["engine.kind" if isinstance(content.get("engine"), dict) else "engine"] = engine
    return edited(text, {**own, **changes})


def check_free(target: Path, force: bool) -> None:
    """Raise a ToolkitError if `write_edited` cannot write. Call it before long work."""
    if target.exists() and not force:
        raise ToolkitError("is already there", where=target, hint="Give another FILE, or --force to replace it.")
    check_writable(target)


def _absolute(content: dict[str, Any], source: Path) -> dict[str, Any]:
    """The relative paths of a YAML that moves to another folder, made absolute, by "section.key"."""
    resolved: dict[str, Any] = _plain(absolute_paths(content, source))
    paths = {
        f"{section}.{key}": value
        for section, block in resolved.items()
        if isinstance(block, dict)
        for key, value in block.items()
        if value != content[section][key]
    }
    if "output" in content:
        paths["output"] = str(absolute_path(content["output"], source, "output"))
    return paths


def _plain(value: Any) -> Any:
    """The value with each path as text."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def edited(text: str, changes: Mapping[str, Any]) -> str:
    """The text with "section.key" set to other values: in place if that is possible, else the whole text anew."""
    content = changed(parse_yaml(text), dict(changes))
    in_place = text if text.endswith("\n") else f"{text}\n"
    for name, value in changes.items():
        in_place = _with(in_place, name.split(".", 1), value)
    try:
        same = parse_yaml(in_place) == content
    except ValueError:  # a form that is unknown here: anchors, tags
        same = False
    return in_place if same else yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def inline(value: Any) -> str:
    """A value as YAML on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf, sort_keys=False).removesuffix("...\n").strip()


def _with(text: str, keys: list[str], value: Any) -> str:
    """The text with one value changed, or added at the end of the deepest block that exists."""
    node = compose_yaml(text)
    while isinstance(node, yaml.MappingNode) and node.value:
        inner = next((inner for key, inner in node.value if key.value == keys[0]), None)
        if inner is None:
            return _added(text, node, keys, value)
        if len(keys) == 1:
            return _replaced(text, inner, value)
        node, keys = inner, keys[1:]
    return text


def _replaced(text: str, node: yaml.Node, value: Any) -> str:
    """Replace a value. A block reaches to the next key, but comments and empty lines at its end are not its value."""
    start, end = node.start_mark.index, node.end_mark.index
    if isinstance(node, yaml.CollectionNode) and not node.flow_style:
        start = len(text[:start].rstrip())
        end = _last(node).end_mark.index
        return f"{text[:start]} {inline(value)}{text[end:]}"
    return text[:start] + inline(value) + text[end:]


def _last(node: yaml.Node) -> yaml.Node:
    """The last scalar of a block, or its last mapping or list in braces."""
    while isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        node = node.value[-1][1] if isinstance(node, yaml.MappingNode) else node.value[-1]
    return node


def _added(text: str, block: yaml.MappingNode, keys: list[str], value: Any) -> str:
    for key in reversed(keys[1:]):
        value = {key: value}
    if block.flow_style:
        end = block.end_mark.index - 1
        return f"{text[:end].rstrip()}, {keys[0]}: {inline(value)}{text[end:]}"
    end = text.find("\n", _last(block).end_mark.index)
    line = f"{' ' * block.value[0][0].start_mark.column}{keys[0]}: {inline(value)}"
    return f"{text[:end]}\n{line}{text[end:]}"
