"""Reading a YAML file of settings, with every way that can fail as one clear line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from toolkit.errors import ToolkitError, shown
from toolkit.files import read_text


class _UniqueKeyLoader(yaml.SafeLoader):
    """A mapping that gives a key twice is a mistake that plain YAML hides."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # <<: the keys of another mapping
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is not text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(file: Path, examples: str = "configs") -> dict[str, Any]:
    """The content of a YAML file. `examples` is the name of its kind in `toolkit sample`."""
    text = read_text(file, missing=f"For examples: toolkit sample {examples} DIR")
    try:
        content = yaml.load(text, Loader=_UniqueKeyLoader)
    except RecursionError:
        raise ToolkitError("is not valid YAML: nested too deeply", where=file) from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or number that cannot be
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ToolkitError(f"is not valid YAML: {getattr(error, 'problem', error)}", where=f"{file}{line}") from None
    if content is None:
        raise ToolkitError("is empty, expected a mapping of keys", where=file)
    if not isinstance(content, dict):
        raise ToolkitError(f"expected a mapping of keys, got {type(content).__name__}", where=file)
    return content


def absolute_path(value: Any, file: Path, field: str) -> Any:
    """The path in a field of a YAML file, relative to the file's own folder.

    What is not text is left for the validation to refuse. Raises ToolkitError for text that cannot be a path.
    """
    if not isinstance(value, str) or not value:
        return value
    try:
        return (file.resolve().parent / Path(value).expanduser()).resolve()
    except (ValueError, RuntimeError, OSError) as error:  # a NUL character, ~ of an unknown user, links in a circle
        raise ToolkitError(f"{field}: {shown(value)} is not a path: {error}", where=file) from None
