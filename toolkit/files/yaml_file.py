"""Reads a YAML file of settings. Every error is one clear line."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import yaml

from toolkit.errors import LONGEST_QUOTE, ToolkitError, clipped, is_unicode, shown
from toolkit.files.atomic import LARGEST_TEXT, read_text

MOST_VALUES = 100_000
"""In one file, with keys, and with each alias (*name) counted as what it stands for. A settings file has hundreds."""
DEEPEST = 64
"""Levels of nested blocks. A settings file has five."""
TOO_DEEP = "nested too deeply"
MOST_LETTERS = LARGEST_TEXT
"""Characters of all values, with aliases counted in the same way."""
LONGEST_NUMBER = 100
"""Characters. PyYAML needs quadratic time for 1:1:1..., a number in base 60."""
TAGS = (None, "!", "tag:yaml.org,2002:str")
"""The types that a value may name (!!str). The others make Python objects that no setting needs."""

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # PyYAML with its C library is ten times as fast


class _Strict(_Loader):  # type: ignore[misc]
    """A loader that refuses duplicate keys, which plain YAML accepts, and very long numbers."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # <<: the keys of another mapping
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _wrong(f"the key {shown(key)} is not text", key_node)
            if key in seen:
                raise _wrong(f"{clipped(key)} is given twice", key_node)
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        if len(node.value) > LONGEST_NUMBER:
            raise _wrong(f"a number has {len(node.value):,} characters, expected at most {LONGEST_NUMBER}", node)
        is_whole = node.tag.endswith(":int")
        number: int | float = self.construct_yaml_int(node) if is_whole else self.construct_yaml_float(node)
        return number


for _kind in ("int", "float"):
    _Strict.add_constructor(f"tag:yaml.org,2002:{_kind}", _Strict.construct_number)


def read_yaml(file: Path, examples: str = "configs") -> dict[str, Any]:
    """The content of a YAML file. `examples` is what `toolkit sample` calls files of this kind."""
    text = read_text(file, missing=f"For examples: toolkit sample {examples} DIR")
    try:
        content = parse_yaml(text)
    except ValueError as error:
        mark = getattr(error.__cause__, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ToolkitError(f"is not valid YAML: {error}", where=f"{file}{line}") from None
    if content is None:
        raise ToolkitError("is empty, expected a mapping of keys", where=file)
    if not isinstance(content, dict):
        raise ToolkitError(f"expected a mapping of keys, got {type(content).__name__}", where=file)
    return content


def parse_yaml(text: str) -> Any:
    """The value of a YAML text. Raises ValueError with a short message; its cause is PyYAML's error."""
    try:
        _check_size(text)
        return yaml.load(text, Loader=_Strict)
    except (yaml.YAMLError, ValueError, ArithmeticError) as error:  # an impossible date or number
        problem = str(getattr(error, "problem", None) or error)
        raise ValueError(TOO_DEEP if "nesting depth" in problem else clipped(problem, 2 * LONGEST_QUOTE)) from error


def compose_yaml(text: str) -> yaml.Node | None:
    """The nodes of a text that `parse_yaml` accepts. A node says where in the text its value is."""
    node: yaml.Node | None = yaml.compose(text, Loader=_Loader)
    return node


def _check_size(text: str) -> None:
    """Raise a yaml.YAMLError for a text that would need too much memory or time, before building its values.

    PyYAML builds values by recursion, also in C. An alias costs nothing until somebody walks through its value.
    """
    open_blocks: list[tuple[str | None, int, int]] = []  # (its &name, values before it, letters before it)
    sizes: dict[str, tuple[int, int]] = {}  # &name: (values, letters) of what its alias stands for
    values = letters = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionEndEvent):
            name, values_before, letters_before = open_blocks.pop()
            if name is not None:
                sizes[name] = values - values_before, letters - letters_before
        elif isinstance(event, yaml.AliasEvent):
            alias = event.anchor or ""
            if any(name == alias for name, _, _ in open_blocks):
                raise _wrong(f"*{clipped(alias)} is inside of what it stands for", event)
            alias_values, alias_letters = sizes.get(alias, (0, 0))  # PyYAML refuses an unknown alias later
            values, letters = values + alias_values, letters + alias_letters
        elif isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            if event.tag not in TAGS:
                raise _wrong(f"the type {clipped(event.tag)} is not supported: write the value alone", event)
            if isinstance(event, yaml.CollectionStartEvent):
                open_blocks.append((event.anchor, values, letters))
            else:
                letters += len(event.value)
                if event.anchor is not None:
                    sizes[event.anchor] = 1, len(event.value)
            values += 1
        if values > MOST_VALUES or letters > MOST_LETTERS:
            most = f"{MOST_VALUES:,} values or {MOST_LETTERS >> 20} MiB"
            raise _wrong(f"has more than {most}, an alias (*name) counted as what it stands for", event)
        if len(open_blocks) > DEEPEST:
            raise _wrong(TOO_DEEP, event)


def _wrong(problem: str, at: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, at.start_mark)


def absolute_path(value: Any, file: Path, field: str) -> Any:
    """The path in a field of a YAML file, relative to the file's own folder.

    A value that is not text is returned as it is; the validation refuses it. Raises ToolkitError for text that is
    not a path.
    """
    if not isinstance(value, str) or not value:
        return value
    try:
        path = (file.resolve().parent / Path(value).expanduser()).resolve()
        with contextlib.suppress(PermissionError):
            path.exists()  # raises for a name that is too long
    except (ValueError, RuntimeError, OSError) as error:  # a NUL character, ~ of an unknown user, links in a circle
        why = error.strerror if isinstance(error, OSError) else error
        raise ToolkitError(f"{field}: {shown(value)} is not a path: {why}", where=file) from None
    if not is_unicode(str(path)):  # no lock file or command line could name it
        raise ToolkitError(f"{field}: {shown(str(path))} is not UTF-8 text", where=file, hint="Rename it.")
    return path
