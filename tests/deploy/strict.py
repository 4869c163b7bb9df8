"""Finds fields of Kubernetes objects that their kind does not have: kinds.yaml says which it has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

KINDS = yaml.safe_load((Path(__file__).parent / "kinds.yaml").read_text())["kinds"]
TYPES = {"string": str, "integer": int, "boolean": bool}


def problems(thing: dict[str, Any]) -> list[str]:
    """A line for each field that is unknown, is missing, or has another type."""
    kind = f"{thing['kind']} {thing['apiVersion']}"
    rest = {name: value for name, value in thing.items() if name not in ("kind", "apiVersion")}
    return list(_problems(rest, KINDS[kind], kind)) if kind in KINDS else [f"{kind}: unknown"]


def _problems(value: Any, schema: Any, where: str) -> Iterator[str]:
    if isinstance(schema, list):
        if not isinstance(value, list):
            yield f"{where}: is no list"
            return
        for number, item in enumerate(value):
            yield from _problems(item, schema[0], f"{where}.{number}")
    elif isinstance(schema, dict):
        yield from _fields(value, {name.removesuffix("!"): inner for name, inner in schema.items()}, where)
        for name in schema:
            if name.endswith("!") and (not isinstance(value, dict) or name[:-1] not in value):
                yield f"{where}.{name[:-1]}: is missing"
    elif schema in ("map", "quantities"):
        inner = str if schema == "map" else (int, str)
        if not isinstance(value, dict) or not all(isinstance(each, inner) for each in value.values()):
            yield f"{where}: is no {schema}"
    elif schema == "quantity":
        if isinstance(value, bool) or not isinstance(value, int | str):
            yield f"{where}: is no quantity"
    elif type(value) is not TYPES[schema]:
        yield f"{where}: is no {schema}"


def _fields(value: Any, schema: dict[str, Any], where: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{where}: has no fields"
        return
    for name, inner in value.items():
        if name in schema:
            yield from _problems(inner, schema[name], f"{where}.{name}")
        else:
            yield f"{where}.{name}: unknown"
